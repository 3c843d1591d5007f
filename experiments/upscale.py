"""Upscale photographs: `python -m experiments.upscale last.ckpt photo.jpg out/` (make upscale CKPT= IN= OUT= SCALE=).

Each image goes through the student in one piece, whatever its size and shape: no patches, so no seams.
"""

import argparse
import os
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from datamodules.image_io import (
    LONGEST_SIDE,
    MAX_PIXELS,
    WRITABLE,
    LoadedImage,
    image_size,
    list_images,
    read_image,
    write_image,
)
from experiments.checkpoints import load_system
from experiments.checks import has_bf16_base
from experiments.command_line import EXIT_INPUT, EXIT_PARTIAL, quiet, user_errors
from experiments.inference import (
    GIB,
    autocast,
    available_memory,
    expected_peak,
    peak_memory,
    pick_device,
    resident_memory,
    super_resolve,
)
from experiments.schema import Experiment
from lightning_modules.networks.lora import fold_lora
from lightning_modules.one_step_flux import OneStepFlux
from lightning_modules.super_resolution import resize_up


@dataclass(frozen=True)
class Job:
    """One input file and the file it becomes."""

    source: Path
    target: Path


@dataclass(frozen=True)
class Upscaler:
    """A student on its device, with what holds for all files of a batch; memory_limit is in bytes."""

    student: OneStepFlux
    options: Experiment
    scale: float
    memory_limit: int
    max_pixels: int

    def run(self, job: Job) -> str:
        """Upscale one file and return its report; ValueError, OSError or MemoryError where that is not possible."""
        if job.source.resolve() == job.target.resolve():
            raise ValueError(f"{job.source}: the output would replace the input; give another folder with OUT=")
        start = time.perf_counter()
        small = image_size(job.source, self.max_pixels)
        size = scaled(small, self.scale)
        self.check_memory(job.source, size)  # from the header, before a decoded image itself fills the memory
        loaded = read_image(job.source, self.max_pixels)
        depth = check_format(job.target, size, loaded)
        expected = self.check_memory(job.source, size, depth, loaded.alpha_pixels is not None)
        tqdm.write(f"{job.source}: expecting {expected / GIB:.2f} GiB at the peak")
        sr, alpha = self.restore(loaded, size)
        write_image(job.target, sr, alpha, depth, loaded.icc, loaded.exif)
        seconds, peak = time.perf_counter() - start, peak_memory(self.student.device)
        sizes = f"{small[1]} x {small[0]} -> {size[1]} x {size[0]}"
        memory = f"{peak / GIB:.2f} GiB peak (expected {expected / GIB:.2f})"
        return f"{job.target}  {sizes}  {seconds:.1f} s  {memory}"

    def check_memory(self, source: Path, size: tuple[int, int], bit_depth: int = 8, alpha: bool = False) -> int:
        """Bytes expected at the peak; MemoryError where they exceed the limit."""
        expected = resident_memory(self.student.device) + expected_peak(self.student, size, bit_depth, alpha)
        if expected > self.memory_limit:
            raise MemoryError(
                f"{source} to {size[1]} x {size[0]} px needs about {expected / GIB:.2f} GiB, more than the memory "
                f"limit of {self.memory_limit / GIB:.2f} GiB; raise --memory-limit or lower SCALE="
            )
        return expected

    def restore(self, loaded: LoadedImage, size: tuple[int, int]) -> tuple[Tensor, Tensor | None]:
        """sr (3,H,W) and alpha (1,H,W) or None in final size; alpha is bicubic."""
        device = self.student.device
        precision = autocast(self.options, device)
        if loaded.bit_depth == 16 and not has_bf16_base(self.options):  # bf16 has 8 significant bits
            precision = torch.autocast(device.type, enabled=False)
        with torch.inference_mode(), precision:
            sr = super_resolve(self.student, loaded.rgb, size)
            return sr, None if loaded.alpha is None else resize_up(loaded.alpha[None], size)[0]


def scaled(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """Height and width times scale, rounded."""
    return round(size[0] * scale), round(size[1] * scale)


def check_format(target: Path, size: tuple[int, int], loaded: LoadedImage) -> int:
    """Bit depth of the output; ValueError, before the work is done, for what the target's format cannot hold."""
    kind = WRITABLE[target.suffix.lower()]
    if loaded.alpha_pixels is not None and kind == "JPEG":
        raise ValueError(f"cannot write {target}: JPEG holds no alpha; use --format png or webp")
    if max(size) > LONGEST_SIDE[kind]:
        raise ValueError(f"cannot write {target}: {size[1]} x {size[0]} px exceed {kind}'s limit; use --format png")
    if loaded.bit_depth == 16 and kind != "PNG":
        tqdm.write(f"warning: {target} gets 8 of the input's 16 bits; use --format png to keep them", file=sys.stderr)
        return 8
    return loaded.bit_depth


def plan_jobs(source: Path, out: Path, suffix: str) -> list[Job]:
    """What becomes of a file, or of every image below a folder, whose tree is kept; errors name IN= or OUT=."""
    if source.is_dir():
        if out.exists() and not out.is_dir():
            raise ValueError(f"OUT={out} is a file, but IN={source} is a folder; give a folder")
        names = [path.relative_to(source) for path in list_images(source)]
        if not names:
            raise ValueError(f"IN={source} holds no images; expected files ending in .png, .jpg, .webp or .bmp")
        # photo.jpg beside photo.png: the old suffix stays in the name, so that none replaces the other
        count = Counter(name.with_suffix("") for name in names)
        stems = [name.with_suffix("") if count[name.with_suffix("")] == 1 else name for name in names]
        return [Job(source / n, out / stem.with_name(stem.name + suffix)) for n, stem in zip(names, stems, strict=True)]
    if not source.is_file():
        raise FileNotFoundError(f"IN={source}: no such file or folder")
    if out.is_dir() or not out.suffix:
        return [Job(source, out / (source.stem + suffix))]
    if out.suffix.lower() not in WRITABLE:
        raise ValueError(f"OUT={out}: expected a folder or a file ending in {', '.join(WRITABLE)}")
    return [Job(source, out)]


def run_jobs(upscaler: Upscaler, jobs: list[Job], skip_existing: bool) -> int:
    """Upscale all files, report each, and return the exit code; a file that fails ends nothing but itself."""
    failed = skipped = 0
    for job in tqdm(jobs, unit="image", disable=len(jobs) == 1):
        if skip_existing and job.target.exists():
            skipped += 1
            continue
        try:
            tqdm.write(upscaler.run(job))
        except Exception as error:  # whatever it is, the other files are to be done
            if os.environ.get("SR_TRACEBACK"):
                raise
            failed += 1
            tqdm.write(f"error: {_sentence(job.source, error)}", file=sys.stderr)
    done = len(jobs) - failed - skipped
    print(f"{done} upscaled, {skipped} skipped, {failed} failed")
    if not failed:
        return 0
    return EXIT_PARTIAL if done or skipped else EXIT_INPUT


def _sentence(source: Path, error: Exception) -> str:
    """One line that names the file."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if str(source) in text else f"{source}: {text}"


def build_upscaler(checkpoint: str, overrides: list[str], scale: str, memory_limit: str, max_pixels: int) -> Upscaler:
    """The student of a checkpoint on its device; ValueError for a checkpoint of another system and for wrong values."""
    factor, limit = _number("SCALE", scale, 1), _number("--memory-limit", memory_limit, 0)
    # the network that measured the training is not needed, and need not be on this machine
    student, options = load_system(checkpoint, ["perceptual.backbone=", "perceptual.linear=", *overrides])
    if not isinstance(student, OneStepFlux):
        raise ValueError(f"CKPT={checkpoint} is of system={options.system}, expected one_step_flux")
    if not has_bf16_base(options):  # a bf16 weight would round the adapters' share off
        fold_lora(student.codec)
        fold_lora(student.transformer)
    if options.trainer.threads:
        torch.set_num_threads(options.trainer.threads)
    device = pick_device(options)
    if factor and factor != student.scale:
        print(
            f"warning: SCALE={factor:g} is not the {student.scale} this student was trained at: expect a worse image",
            file=sys.stderr,
        )
    bytes_ = int(limit * GIB) if limit else available_memory(device)
    return Upscaler(student.to(device), options, factor or student.scale, bytes_, max_pixels)


def _number(name: str, text: str, smallest: float) -> float:
    """A number from `smallest` on, or 0 for nothing given."""
    if not text:
        return 0.0
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not smallest <= value < float("inf") or value == 0:
        raise ValueError(f"{name}={text}: expected a number {'from 1 on' if smallest else 'above 0'}")
    return value


def main() -> None:
    parser = argparse.ArgumentParser(description="Upscale an image or a folder of images.")
    parser.add_argument("checkpoint", help="checkpoint of a student (CKPT=)")
    parser.add_argument("input", type=Path, help="image or folder (IN=)")
    parser.add_argument("output", type=Path, help="folder, or for a single image a file (OUT=)")
    parser.add_argument("overrides", nargs="*", default=[], help="key=value ... (SET=)")
    parser.add_argument("--scale", default="", help="factor; the trained one unless given (SCALE=)")
    parser.add_argument("--format", default="png", choices=["png", "jpg", "webp"], help="of the files in a folder")
    parser.add_argument("--memory-limit", default="", help="GiB; a file that needs more is refused; else: what is free")
    parser.add_argument("--max-pixels", type=int, default=MAX_PIXELS, help="an input of more pixels is refused")
    parser.add_argument("--skip-existing", action="store_true", help="leave files alone whose output is there")
    given = parser.parse_intermixed_args()
    quiet()
    with user_errors():
        jobs = plan_jobs(given.input, given.output, f".{given.format}")
        upscaler = build_upscaler(given.checkpoint, given.overrides, given.scale, given.memory_limit, given.max_pixels)
    raise SystemExit(run_jobs(upscaler, jobs, given.skip_existing))


if __name__ == "__main__":
    main()
