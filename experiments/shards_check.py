"""Read whole shards and tell all damage: `python -m experiments.shards_check IN` (make shards-check IN=).

IN: a folder of shards or its address. Exit code 0 where all is as it was packed, 1 where something is not,
2 where nothing can be said.
"""

import argparse
import threading

from tqdm import tqdm

from datamodules.cores import usable_cores
from datamodules.shards.check import check_shards, open_dataset
from datamodules.shards.manifest import REPAIR
from experiments.command_line import EXIT_PARTIAL, quiet, user_errors


def check(location: str, workers: int) -> int:
    """Print a line per problem and a summary; the exit code. ShardError where there is no readable dataset.json.

    workers: threads; 0 for one per core.
    """
    if workers < 0:
        raise ValueError(f"WORKERS={workers}: expected how many shards are read at once, 1 or more; 0 is one per core")
    dataset = open_dataset(location)
    manifest = dataset.manifest
    size = sum(shard.bytes for shard in manifest.shards)
    found = list(dataset.problems)
    for problem in found:
        print(problem, flush=True)
    lock = threading.Lock()
    with tqdm(total=size, unit="B", unit_scale=True) as bar:

        def progress(count: int) -> None:
            with lock:
                bar.update(count)

        for problem in check_shards(dataset, workers or usable_cores(), progress):
            found.append(problem)
            tqdm.write(problem)
    what = f"{manifest.samples} images in {len(manifest.shards)} shards, {tqdm.format_sizeof(size)}B"
    print(
        f"{what}: {len(found)} problems; {REPAIR.partition('; ')[2]}" if found else f"{what}: all as they were packed"
    )
    return EXIT_PARTIAL if found else 0


def main() -> None:
    parser = argparse.ArgumentParser(description="Check every byte of shards against their checksums.")
    parser.add_argument("location", help="folder of shards, or its address (IN=)")
    parser.add_argument("--workers", type=int, default=0, help="shards at the same time (WORKERS=)")
    given = parser.parse_args()
    quiet()
    with user_errors():
        code = check(given.location, given.workers)
    raise SystemExit(code)


if __name__ == "__main__":
    main()
