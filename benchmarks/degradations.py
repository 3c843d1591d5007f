"""Time of a degradation preset, per stage and in all, beside the same chain per image with OpenCV, as a table.

    python -m benchmarks.degradations --sizes 512 1024 --batch 8 --threads 1

Both chains get the same photographs and the same drawn parameters, and run in turns; each time is the mean over --draws
of the least of --repeats. `total` is the whole call for a batch, the draws included; `other` is what the stages leave
of it. On one CPU thread the clock is the process's own.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch

from datamodules.degradations.blur import reflect_pad
from datamodules.degradations.parameters import SampleParameters, draw_parameters
from datamodules.degradations.pipeline import PRESETS, DegradationPipeline, stages
from datamodules.image_io import read_image
from datamodules.randomness import generator_for
from datamodules.synthetic import HELD_OUT_PHOTOGRAPHS, bundled_path
from experiments.inference import machine_name

OPENCV_MISSING = (
    "The OpenCV column is left out, since OpenCV is not installed: "
    '`.venv/bin/python -m pip install "opencv-python-headless>=4.11"` adds it (extra `bench`).'
)
POISSON_NOTE = "OpenCV has no Poisson noise: its column takes NumPy's sampler, which draws every pixel on its own."
STAGES = ("blur", "resize", "gaussian noise", "poisson noise", "jpeg", "sinc")
Stages = Callable[[SampleParameters, tuple[int, int]], Iterable[tuple[str, Callable[[Any], Any]]]]
Times = dict[str, float]


def photographs(count: int, size: int) -> torch.Tensor:
    """Square crops (count, 3, size, size) of the bundled photographs, mirrored where these are smaller."""
    crops = []
    for index in range(count):
        image = read_image(bundled_path(HELD_OUT_PHOTOGRAPHS[index % len(HELD_OUT_PHOTOGRAPHS)])).rgb
        image = reflect_pad(image, (size // 2, size // 2), (size // 2, size // 2))
        top = index * (image.shape[1] - size) // count
        crops.append(image[:, top : top + size, top : top + size])
    return torch.stack(crops)


def milliseconds(call: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """Time of one call, and what it returns."""
    # The time of a single thread is its own, however busy the machine.
    clock = time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    result = call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (clock() - start) * 1e3, result


class OurChain:
    """The project's own pipeline."""

    title = "this project"

    def __init__(self, hr: torch.Tensor, preset: str, scale: int) -> None:
        self.hr, self.images, self.device = hr, list(hr[:, None]), hr.device
        self.preset, self.scale, self.side = PRESETS[preset], scale, hr.shape[-1] // scale
        self.pipeline = DegradationPipeline(self.preset, scale)
        self.stages: Stages = stages

    def batch(self, key: int) -> object:
        """Degrade the whole batch."""
        return self.pipeline(self.hr, [generator_for((key, index), "degradation") for index in range(len(self.hr))])


class OpenCVChain:
    """The same chain, image by image with OpenCV."""

    title = "OpenCV"

    def __init__(self, hr: torch.Tensor, preset: str, scale: int, threads: int) -> None:
        from benchmarks import degradations_opencv as opencv  # an extra, needed for this column only

        opencv.use_threads(threads)
        self.device = torch.device("cpu")
        self.images = [image.flip(0).permute(1, 2, 0).contiguous().numpy() for image in hr.cpu()]
        self.preset, self.scale, self.side = PRESETS[preset], scale, hr.shape[-1] // scale
        self.stages: Stages = opencv.opencv_stages
        self.to_8_bits = opencv.to_8_bits

    def batch(self, key: int) -> object:
        """Degrade the whole batch."""
        results = []
        for index, image in enumerate(self.images):
            parameters = draw_parameters(self.preset, self.scale, generator_for((key, index), "degradation"))
            for _, stage in self.stages(parameters, (self.side, self.side)):
                image = stage(image)
            results.append(self.to_8_bits(image))
        return results


def batch_times(chain: OurChain | OpenCVChain, key: int) -> Times:
    """Milliseconds of each stage, summed over a batch and by name, and of the whole call."""
    times: Times = dict.fromkeys(STAGES, 0.0)
    for index, image in enumerate(chain.images):
        parameters = draw_parameters(chain.preset, chain.scale, generator_for((key, index), "degradation"))
        for name, stage in chain.stages(parameters, (chain.side, chain.side)):
            spent, image = milliseconds(partial(stage, image), chain.device)
            times[name] += spent
    times["total"], _ = milliseconds(partial(chain.batch, key), chain.device)
    return times


def measure(chains: list[OurChain | OpenCVChain], draws: int, repeats: int) -> dict[str, Times]:
    """Milliseconds per image of every chain by stage, `total` and `other`: the least of the repeats, their mean."""
    results: dict[str, Times] = {chain.title: defaultdict(float) for chain in chains}
    share = draws * len(chains[0].images)
    for key in range(draws):
        rounds = [[batch_times(chain, key) for chain in chains] for _ in range(repeats)]
        for chain, runs in zip(chains, zip(*rounds, strict=True), strict=True):
            for name in (*STAGES, "total"):
                results[chain.title][name] += min(run[name] for run in runs) / share
    for times in results.values():
        times["other"] = times["total"] - sum(times[name] for name in STAGES)
    return results


def print_table(results: Mapping[str, Times]) -> None:
    """Print one column per chain."""
    print(f"{'ms per image':16}" + "".join(f"{title:>14}" for title in results))
    for name in (*STAGES, "other", "total"):
        print(f"{name:16}" + "".join(f"{times[name]:14.2f}" for times in results.values()))
    print(f"{'images/s':16}" + "".join(f"{1e3 / times['total']:14.1f}" for times in results.values()))
    print(f"{POISSON_NOTE}\n" if OpenCVChain.title in results else "", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    random = [name for name, preset in PRESETS.items() if preset.rule == "random"]
    parser.add_argument("--presets", nargs="+", default=random, choices=random)
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 1024], help="sides of the hr crops, pixels")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--scale", type=int, default=4)
    parser.add_argument("--device", default="cpu", help="of this project's chain; OpenCV's runs on the CPU")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--draws", type=int, default=6, help="batches of drawn parameters")
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--no-opencv", action="store_true", help="leave OpenCV out")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    print(f"{machine_name(device)}, torch {torch.__version__}, batch {args.batch}, scale {args.scale}\n")
    with_opencv = not args.no_opencv and find_spec("cv2") is not None
    if not with_opencv and not args.no_opencv:
        print(OPENCV_MISSING + "\n")
    for preset in args.presets:
        for size in args.sizes:
            hr = photographs(args.batch, size).to(device)
            chains: list[OurChain | OpenCVChain] = [OurChain(hr, preset, args.scale)]
            if with_opencv:
                chains.append(OpenCVChain(hr, preset, args.scale, args.threads))
            print(f"preset {preset}, {size} x {size}")
            print_table(measure(chains, args.draws, args.repeats))


if __name__ == "__main__":
    main()
