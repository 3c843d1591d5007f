"""How fast shards of 4K photographs feed a training: decoded images/s, crops/s, and the share of a step spent waiting.

    python -m benchmarks.data --images photographs --workers 1 2

--images: a folder of photographs; without it, eight of 3840 x 2160 px are made from bundled ones. They are packed into
shards in a temporary folder. The waiting share is that of a training of --experiment, after its first --skip steps.
Worker processes compute on one thread each; the training's own process on --threads.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader, Dataset

from datamodules.crops import CropDataset
from datamodules.sampling import ResumableBatchSampler
from datamodules.sources import Caches, ImageSource, open_source
from datamodules.synthetic import HELD_OUT_PHOTOGRAPHS, bundled_path
from experiments.inference import machine_name
from experiments.options import load_options
from experiments.shards import pack
from experiments.train import train

SIZE = (3840, 2160)
SECONDS = 60.0


class Decoded(Dataset[int]):
    """Decodes a whole image and hands on its number of pixels alone."""

    def __init__(self, source: ImageSource) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> int:
        return self.source.load(index).shape[-2:].numel()


def make_photographs(folder: Path, count: int) -> None:
    """JPEG files of SIZE: bundled photographs, enlarged, with the noise that makes files as large as a camera's."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for number in range(count):
        name = HELD_OUT_PHOTOGRAPHS[number % len(HELD_OUT_PHOTOGRAPHS)]
        pixels = np.asarray(Image.open(bundled_path(name)).convert("RGB").resize(SIZE), np.float32)
        noisy = pixels + rng.normal(0, 4, pixels.shape[:2])[..., None]
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.jpg", quality=92)


def per_second(batches: Iterator[object], size: int, workers: int) -> float:
    """Samples per second of a loader that runs, over SECONDS or to its end, after each worker's first batch."""
    for _ in range(max(workers, 1)):
        next(batches)
    start, done = time.perf_counter(), 0
    for _ in batches:
        done += size
        if time.perf_counter() - start > SECONDS:
            break
    return done / (time.perf_counter() - start)


def decoding(source: ImageSource, workers: int, images: int) -> float:
    """Whole images per second."""
    order = [[number % len(source)] for number in range(images)]
    return per_second(iter(DataLoader(Decoded(source), batch_sampler=order, num_workers=workers)), 1, workers)


def cropping(source: ImageSource, workers: int, crop: int, per_decode: int, batches: int) -> float:
    """Crops per second in batches of 8."""
    crops = CropDataset(source, crop, seed=0, crops_per_image=16, crops_per_decode=per_decode)
    loader = DataLoader(crops, batch_sampler=ResumableBatchSampler(batches, 8), num_workers=workers)
    return per_second(iter(loader), 8, workers)


def waiting(shards: Path, folder: Path, args: argparse.Namespace, workers: int, per_decode: int) -> dict[str, float]:
    """Means of the seconds per step of a training, by part, after the first args.skip steps."""
    name = f"w{workers}-d{per_decode}"
    overrides = [
        f"data.train={shards}",
        f"data.workers={workers}",
        f"data.crops_per_decode={per_decode}",
        "data.procedural_share=0",
        "data.decoded_mb=0",  # as of a set that is larger than memory
        f"trainer.steps={args.steps}",
        f"trainer.validate_every={args.steps}",
        f"trainer.checkpoint_every={args.steps}",
        "trainer.log_every=1",
        "trainer.panel_images=0",
        f"trainer.threads={args.threads}",
        "trainer.accelerator=" + ("auto" if torch.cuda.is_available() else "cpu"),
        f"runs={folder}",
        f"name={name}",
    ]
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):  # progress bars
        run = train(load_options(args.experiment, overrides))
    events = EventAccumulator(str(run)).Reload()
    parts = ("data_wait_s", "degrade_s", "step_s")
    return {part: float(np.mean([e.value for e in events.Scalars(f"speed/{part}")[args.skip :]])) for part in parts}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="folder of photographs (default: made from bundled ones)")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--crop", type=int, default=512, help="side of the crops, px")
    parser.add_argument("--per-decode", type=int, nargs="+", default=[1, 4, 8], help="crops per decoded image")
    parser.add_argument("--experiment", default="rt4ksr/s_x2_mini", help="what trains while data are waited for")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--skip", type=int, default=10, help="first steps that do not count")
    parser.add_argument("--threads", type=int, default=1, help="threads of the training's own process")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if args.images is None:
            make_photographs(folder / "photographs", 8)
        pack(args.images or folder / "photographs", folder / "shards", shard_mb=1000)
        source = open_source(str(folder / "shards"), (), args.crop, "data.train", "data.crop", Caches(image_bytes=0))
        megapixels = source.sizes().prod(axis=1).mean() / 1e6
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        print(f"{machine_name(device)}, torch {torch.__version__}")
        print(f"{len(source)} photographs of {megapixels:.1f} million px on average\n")
        print("workers  decoded images/s  million px/s")
        for workers in args.workers:
            speed = decoding(source, workers, 24)
            print(f"{workers:7}{speed:18.2f}{speed * megapixels:14.1f}", flush=True)
        print(f"\nworkers  crops per decode  crops of {args.crop} px per s")
        for workers in args.workers:
            for per_decode in args.per_decode:
                print(f"{workers:7}{per_decode:18}{cropping(source, workers, args.crop, per_decode, 24):24.1f}")
        print(f"\n{args.experiment}, s per step")
        print("workers  crops per decode  waiting  degrading  computing  share of waiting")
        for workers in args.workers:
            for per_decode in args.per_decode:
                parts = waiting(folder / "shards", folder / "runs", args, workers, per_decode)
                share = parts["data_wait_s"] / sum(parts.values())
                columns = "".join(f"{value:11.3f}" for value in parts.values())
                print(f"{workers:7}{per_decode:18}{columns[2:]}{share:18.1%}", flush=True)


if __name__ == "__main__":
    main()
