"""Measure a checkpoint on test images: `python -m experiments.evaluate last.ckpt DATA` (make evaluate CKPT= DATA=).

DATA: a folder with HR/ and LR/, a folder of photographs from which the checkpoint's degradation makes lr, or "bundled".
"""

import argparse
import hashlib
import json
import math
import os
import platform
import shlex
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from datamodules.benchmarks import Benchmark, BenchmarkImage, open_benchmark
from datamodules.degradations.pipeline import PRESETS, DegradationPipeline
from experiments.build import perceptual_name
from experiments.checkpoints import load_system
from experiments.checks import period_of
from experiments.command_line import quiet, user_errors
from experiments.inference import autocast, machine_name, pick_device
from experiments.measure import (
    DENOISED,
    DENOISED_SHUFFLED,
    SHUFFLED,
    STUDENT,
    ImageScores,
    Method,
    Row,
    codec_round_trip,
    denoiser_methods,
    markdown_table,
    measure,
    reference_methods,
    shuffle_cost,
    shuffled_method,
    standard_metrics,
    student_method,
    summarise,
)
from experiments.schema import Experiment
from lightning_modules.autoencoder import Autoencoder
from lightning_modules.f16_decoder import F16Decoder
from lightning_modules.latent_flow import LatentFlow
from lightning_modules.networks.codec import Codec
from lightning_modules.one_step_flux import OneStepFlux
from lightning_modules.super_resolution import SuperResolution

PACKAGES = (
    "torch",
    "torchvision",
    "lightning",
    "diffusers",
    "torchmetrics",
    "lpips",
    "numpy",
    "pillow",
    "scikit-image",
)


def evaluate(checkpoint: str, data: str, overrides: list[str], crop: int | None) -> tuple[str, dict[str, Any]]:
    """Measure a checkpoint's methods on a test set: the report as Markdown, and everything in it as plain values."""
    system, options = load_system(checkpoint, overrides)
    if options.trainer.threads:
        torch.set_num_threads(options.trainer.threads)
    device = pick_device(options)
    system = system.to(device)
    border = options.data.scale
    images = open_test_set(options, data, crop)
    methods = methods_of(system, options)
    metrics = standard_metrics(options.perceptual, border, period_of(options))
    digest = hashlib.blake2b(digest_size=8)
    scores = measure(methods, fingerprinted(images, digest), metrics, autocast(options, device), device, len(images))
    rows = summarise(scores, metrics)
    facts = {
        "command": shlex.join(["python", "-m", "experiments.evaluate", *sys.argv[1:]]),
        "checkpoint": checkpoint,
        "checkpoint_sha256": sha256(checkpoint),
        "data": data,
        "data_fingerprint": digest.hexdigest(),
        "protocol": protocol(options, images, border, crop),
        "machine": machine_name(device),
        "date": date.today().isoformat(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
    }
    table = markdown_table(rows, metrics)
    return report(facts, table, rows), results(facts, rows, scores)


def open_test_set(options: Experiment, data: str, crop: int | None) -> Benchmark:
    """The images of DATA; where they are no pairs, lr is made by the options' degradation, alike for every seed."""
    degrade = DegradationPipeline(PRESETS[options.data.degradation], options.data.scale)
    return open_benchmark(data, options.data.scale, degrade, crop=crop)


def methods_of(system: SuperResolution, options: Experiment) -> dict[str, Method]:
    """The rows of the table: a student beside its references, or a codec's own round trip."""
    if isinstance(system, OneStepFlux):
        references = reference_methods(codec_round_trip(system.codec))
        hr = references.pop("hr")
        student = {STUDENT: student_method(system), SHUFFLED: shuffled_method(system, 0)}
        return {**references, **student, "hr": hr}
    if isinstance(system, LatentFlow | Autoencoder | F16Decoder):
        codec = system.codec if isinstance(system.codec, Codec) else Codec(system.codec)
        references = reference_methods(codec_round_trip(codec))
        flow = denoiser_methods(system, 0) if isinstance(system, LatentFlow) else {}
        return {"codec(hr)": references["codec(hr)"], **flow, "hr": references["hr"]}
    raise ValueError(f"system={options.system} cannot be evaluated")


def fingerprinted(images: Iterable[BenchmarkImage], digest: "hashlib.blake2b") -> Iterator[BenchmarkImage]:
    """The images as they come, their names and pixels fed to `digest`, which tells two test sets apart."""
    for image in images:
        digest.update(f"{image.name} {tuple(image.lr.shape)} {tuple(image.hr.shape)}".encode())
        for pixels in (image.lr, image.hr):
            # rounded, as floats of the degradation differ in their last bits between machines
            digest.update((pixels * 255).round().byte().contiguous().numpy().tobytes())
        yield image


def protocol(options: Experiment, images: Benchmark, border: int, crop: int | None) -> str:
    """How the figures were made, in one paragraph."""
    data = options.data
    made = "lr as given" if images.paired else f"lr by preset {data.degradation} with seed 0"
    cut = f"centre crops of at most {crop} px, " if crop else ""
    return (
        f"Scale {data.scale}; {cut}{made}. All images are clamped and rounded to 8 bits. PSNR and SSIM on BT.601 Y "
        f"(16-235), {border} px cropped at each border, SSIM with an 11 x 11 Gaussian window (sigma 1.5). Perceptual "
        f"distance: {perceptual_name(options.perceptual)}, on whole images, lower is better. Colour: difference of the "
        f"channels' means in grey levels. Means over images; medians for comb ratios. '-': all images are too small "
        f"for this metric."
    )


def report(facts: dict[str, Any], table: str, rows: list[Row]) -> str:
    """The results as Markdown."""
    lines = [f"    {facts['command']}", "", f"{facts['machine']}, {facts['date']}.", facts["protocol"], "", table, ""]
    for group, cost in shuffle_cost(rows, *shuffled_pair(rows)).items():
        parts = [f"{cost['psnr_y']:+.3f} dB PSNR-Y"] if "psnr_y" in cost else []
        parts += [f"{cost['perceptual']:+.4f} perceptual distance"] if "perceptual" in cost else []
        lines.append(f"Id-shuffle cost, {group}: {', '.join(parts)} (0: positions are ignored).")
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    lines += ["", f"Checkpoint sha256 {facts['checkpoint_sha256'][:16]}, data {facts['data_fingerprint']}; {versions}."]
    return "\n".join(lines) + "\n"


def shuffled_pair(rows: list[Row]) -> tuple[str, str]:
    """The two methods whose difference is the id-shuffle cost."""
    return (DENOISED, DENOISED_SHUFFLED) if any(row.method == DENOISED for row in rows) else (STUDENT, SHUFFLED)


def results(facts: dict[str, Any], rows: list[Row], scores: list[ImageScores]) -> dict[str, Any]:
    """The results as plain values for JSON."""
    return {
        **facts,
        "rows": [asdict(row) for row in rows],
        "id_shuffle_cost": shuffle_cost(rows, *shuffled_pair(rows)),
        "images": [asdict(score) for score in scores],
    }


def save(folder: Path, text: str, values: dict[str, Any]) -> None:
    """Write results.md and results.json, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    _replace(folder / "results.md", text)
    _replace(folder / "results.json", json.dumps(_finite(values), indent=1, allow_nan=False) + "\n")


def _replace(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    partial.write_text(text)
    os.replace(partial, path)


def _finite(value: Any) -> Any:
    """JSON has no infinity: hr's own PSNR becomes the text "inf"."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def sha256(path: str | Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure a checkpoint on test images.")
    parser.add_argument("checkpoint", help="checkpoint of a student or a codec (CKPT=)")
    parser.add_argument("data", help='folder of images, of HR/ and LR/, or "bundled" (DATA=)')
    parser.add_argument("overrides", nargs="*", default=[], help="key=value ... (SET=)")
    parser.add_argument(
        "--out", type=Path, help="folder for results.md and results.json; the checkpoint's unless given"
    )
    parser.add_argument("--crop", type=int, help="cut a centre square of at most so many px from hr")
    given = parser.parse_intermixed_args()
    quiet()
    with user_errors():
        if given.crop is not None and given.crop < 1:
            raise ValueError(f"--crop {given.crop}: expected a number of pixels above 0")
        text, values = evaluate(given.checkpoint, given.data, given.overrides, given.crop)
        save(given.out or Path(given.checkpoint).parent, text, values)
        print(text)


if __name__ == "__main__":
    main()
