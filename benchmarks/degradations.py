"""Time of the degradation pipeline and of its stages, as a table.

    python -m benchmarks.degradations --size 256 --batch 8 --scale 4 --threads 1

Stages are timed at full hr size, one call per sample; inside the pipeline most samples are smaller by then.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch

from datamodules.degradations.jpeg import jpeg
from datamodules.degradations.kernels import blur, gaussian_kernel
from datamodules.degradations.noise import gaussian_noise, poisson_noise
from datamodules.degradations.pipeline import PRESETS, DegradationPipeline
from datamodules.degradations.resize import FILTERS, resize
from experiments.inference import machine_name


def milliseconds(call: Callable[[int], object], repeats: int, device: torch.device) -> float:
    """Return the median time of `call(repeat)` after one call that does not count."""
    times = []
    for repeat in range(repeats + 1):
        start = time.perf_counter()
        call(repeat)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times[1:])


def stages(image: torch.Tensor, scale: int) -> dict[str, Callable[[int], object]]:
    """Return the stages of the pipeline by name, each for one sample (1, 3, H, W)."""
    noise = torch.Generator(image.device).manual_seed(0)
    size = 21 if scale < 8 else 41
    kernel = gaussian_kernel(size, 2.0, 1.0, 0.5)[None].to(image.device)
    smaller = (image.shape[-2] * 6 // 10, image.shape[-1] * 6 // 10)
    return {
        f"blur {size} x {size}": lambda _: blur(image, kernel),
        **{f"resize x .6 {name}": partial(_resize, image, smaller, name) for name in FILTERS},
        "gaussian noise": lambda _: gaussian_noise(image, 5.0, False, noise),
        "poisson noise": lambda _: poisson_noise(image, 1.0, False, noise),
        "jpeg": lambda _: jpeg(image, torch.tensor([75])),
    }


def _resize(image: torch.Tensor, size: tuple[int, int], name: str, _: int) -> torch.Tensor:
    return resize(image, size, name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=256, help="side of the hr crop, pixels")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--scale", type=int, default=4)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--repeats", type=int, default=20)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    hr = torch.rand(args.batch, 3, args.size, args.size, generator=torch.Generator().manual_seed(0)).to(device)

    print(f"{machine_name(device)}, torch {torch.__version__}")
    print(f"batch {args.batch} of {args.size} x {args.size}, scale {args.scale}; median ms per batch\n")
    for name, call in stages(hr[:1], args.scale).items():
        print(f"{name:24}{milliseconds(call, args.repeats, device) * args.batch:10.1f}")
    for name, preset in PRESETS.items():
        pipeline = DegradationPipeline(preset, args.scale)

        def run(repeat: int, pipeline: DegradationPipeline = pipeline) -> object:
            seeds = range(repeat * args.batch, (repeat + 1) * args.batch)
            return pipeline(hr, [torch.Generator().manual_seed(seed) for seed in seeds])

        print(f"{'total, preset ' + name:24}{milliseconds(run, args.repeats, device):10.1f}")


if __name__ == "__main__":
    main()
