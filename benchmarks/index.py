"""What the index of shards costs at the start, in memory and per look-up: make bench BENCH=index.

The entries are synthetic, of photographs of 3 MB; the shards are sparse files without content. Every figure is of a
process of its own, which has done nothing but its imports before.
"""

import argparse
import multiprocessing
import pickle
import statistics
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datamodules.shards.index import RECORD, index_bytes
from datamodules.shards.manifest import INDEX, MANIFEST, Manifest, PackedFile, checksum_of
from datamodules.shards.reader import ShardSource, open_shards
from experiments.inference import machine_name, resident_memory

IMAGE_BYTES = 3_000_000
IMAGES_PER_SHARD = 333
FORK = multiprocessing.get_context("fork")
CPU = torch.device("cpu")
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


def opened(folder: Path) -> ShardSource:
    return open_shards(str(folder), "", 0, 256, "data.train", "data.crop")


def look_up(source: ShardSource, numbers: list[int]) -> float:
    """Microseconds of this process per look-up of a sample's place and its name."""
    start = time.process_time()  # other processes on the machine do not count
    for number in numbers:
        source.index.entry(number)
        source.name(number)
    return 1e6 * (time.process_time() - start) / len(numbers)


def measure_start(folder: Path, numbers: list[int], answer: Connection) -> None:
    """Open, and look samples up, in this process and in one that is forked from it as a worker is."""
    before, start = resident_memory(CPU), time.perf_counter()
    source = opened(folder)
    seconds, at_start = time.perf_counter() - start, resident_memory(CPU) - before
    micros = statistics.median(look_up(source, numbers) for _ in range(3))
    after = resident_memory(CPU) - before
    worker = in_process(measure_worker, source, numbers)
    answer.send((seconds, at_start, micros, after, worker, len(pickle.dumps(source))))


def measure_worker(source: ShardSource, numbers: list[int], answer: Connection) -> None:
    before = resident_memory(CPU)
    look_up(source, numbers)
    answer.send(resident_memory(CPU) - before)


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
    print(f"{machine_name(CPU)}, {RECORD.itemsize} bytes per entry beside its name\n")
    titles = ("entries", "start s", "added MB", "and looked up", "worker MB", "look-up us", "pickled kB")
    print("".join(f"{title:>15}" for title in titles))
    for count in given.counts:
        with tempfile.TemporaryDirectory() as temporary:
            in_process(write_dataset, Path(temporary), count)
            numbers = np.random.default_rng(0).integers(0, count, given.look_ups).tolist()
            found = in_process(measure_start, Path(temporary), numbers)
        seconds, at_start, micros, after, worker, pickled = found
        values = f"{seconds:15.3f}{at_start / MB:15.1f}{after / MB:15.1f}{worker / MB:15.1f}{micros:15.1f}"
        print(f"{count:15,}{values}{pickled / 1e3:15.1f}", flush=True)


if __name__ == "__main__":
    main()
