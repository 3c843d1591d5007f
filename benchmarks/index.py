"""What 200,000 images cost at the start, in memory and per sample: make bench BENCH=index.

The entries are synthetic, of photographs of 3 MB; the shards are sparse files without content. Every row is of a
process of its own, which has done nothing but its imports before; memory is what is added to these, after opening the
shards, after looking images up in the index, and after drawing samples in the order of an epoch of 16 crops per image.
"""

import argparse
import multiprocessing
import os
import pickle
import platform
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.cores import usable_cores
from datamodules.crops import CropDataset
from datamodules.shards.index import RECORD, index_bytes
from datamodules.shards.manifest import INDEX, MANIFEST, Manifest, PackedFile, checksum_of
from datamodules.shards.reader import ShardSource, open_shards

IMAGE_BYTES = 3_000_000
IMAGES_PER_SHARD = 333
CROPS_PER_IMAGE = 16
FORK = multiprocessing.get_context("fork")
MB = 1e6


def write_dataset(folder: Path, count: int, answer: Connection) -> None:
    """A dataset of `count` samples as far as opening it and looking samples up are concerned."""
    rows = [
        (i // IMAGES_PER_SHARD, 512 + i % IMAGES_PER_SHARD * (IMAGE_BYTES + 2048), IMAGE_BYTES, 2160, 3840, i)
        for i in range(count)
    ]
    names = [f"photographs/{i // 1000:04d}/IMG_{i:08d}.jpg" for i in range(count)]
    data = index_bytes(rows, names)
    (folder / INDEX).write_bytes(data)
    length = IMAGES_PER_SHARD * (IMAGE_BYTES + 2048) + 1024
    shards = tuple(PackedFile(f"shard-{k:06d}.tar", length, "0" * 32) for k in range(-(-count // IMAGES_PER_SHARD)))
    for shard in shards:
        with (folder / shard.name).open("wb") as file:
            file.truncate(length)
    index = PackedFile(INDEX, len(data), checksum_of(data))
    (folder / MANIFEST).write_bytes(Manifest(count, 10**9, "0" * 32, index, shards).to_bytes())
    answer.send("written")


def resident_bytes() -> int:
    """Memory of this process, 0 where the system does not tell; `experiments` has it too, but imports all networks."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.is_file() else 0


def opened(folder: Path) -> ShardSource:
    return open_shards(str(folder), "", 0, 256, "data.train", "data.crop")


def look_up(source: ShardSource, numbers: list[int]) -> float:
    """Microseconds of this process per look-up of a sample's place and its name."""
    start = time.process_time()  # other processes on the machine do not count
    for number in numbers:
        source.index.entry(number)
        source.name(number)
    return 1e6 * (time.process_time() - start) / len(numbers)


def draw(source: ShardSource, numbers: list[int]) -> float:
    """Seconds until the order of an epoch is drawn and these of its samples have their images."""
    crops = CropDataset(source, 256, 0, CROPS_PER_IMAGE)
    start = time.perf_counter()
    for number in numbers:
        crops.key(number)
    return time.perf_counter() - start


def measure_start(folder: Path, numbers: list[int], answer: Connection) -> None:
    """Open, look images up and draw samples in this process; the last two in one forked from it, as a worker is."""
    before, start = resident_bytes(), time.perf_counter()
    source = opened(folder)
    seconds, at_start = time.perf_counter() - start, resident_bytes() - before
    worker = in_process(measure_worker, source, numbers)
    micros = look_up(source, numbers)
    looked_up = resident_bytes() - before
    order = draw(source, numbers)
    drawn = resident_bytes() - before
    memory = [value / MB for value in (at_start, looked_up, drawn, worker)]
    answer.send((seconds, *memory, micros, order, len(pickle.dumps(source)) / MB))


def measure_worker(source: ShardSource, numbers: list[int], answer: Connection) -> None:
    before = resident_bytes()
    look_up(source, numbers)
    draw(source, numbers)
    answer.send(resident_bytes() - before)


def in_process(function: Callable[..., None], *arguments: Any) -> Any:
    """What a function sends from a forked process."""
    receive, send = FORK.Pipe(duplex=False)
    process = FORK.Process(target=function, args=(*arguments, send))
    process.start()
    send.close()
    try:
        return receive.recv()
    finally:
        process.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[2_000, 20_000, 200_000], help="entries")
    parser.add_argument("--look-ups", type=int, default=20_000)
    given = parser.parse_args()
    machine = f"{usable_cores()} cores of {platform.processor() or platform.machine()}"
    print(f"{machine}, {RECORD.itemsize} bytes per entry beside its name\n")
    titles = ("start s", "start MB", "looked up MB", "drawn MB", "worker MB", "look-up us", "order s", "pickled MB")
    print("entries".rjust(10) + "".join(f"{title:>14}" for title in titles))
    for count in given.counts:
        with tempfile.TemporaryDirectory() as temporary:
            in_process(write_dataset, Path(temporary), count)
            numbers = np.random.default_rng(0).integers(0, count, given.look_ups).tolist()
            found = in_process(measure_start, Path(temporary), numbers)
        print(f"{count:10,}" + "".join(f"{value:14.3f}" for value in found), flush=True)


if __name__ == "__main__":
    main()
