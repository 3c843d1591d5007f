"""What stands beside the figures of an evaluation: protocol, fingerprints, versions; and the files of results."""

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

from datamodules.benchmarks import EMBEDDED, BenchmarkImage
from experiments.build import perceptual_name
from experiments.checkpoints import run_of
from experiments.inference import machine_name
from experiments.measure import DENOISED, DENOISED_SHUFFLED, SHUFFLED, STUDENT, ImageScores
from experiments.schema import DataOptions, PerceptualOptions
from experiments.tables import Row, shuffle_cost

MARKDOWN, JSON = "results.md", "results.json"
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


def fingerprinted(images: Iterable[BenchmarkImage], digest: "hashlib.blake2b") -> Iterator[BenchmarkImage]:
    """The images as they come, their names and pixels fed to `digest`, which tells two test sets apart."""
    for image in images:
        digest.update(f"{image.name} {tuple(image.lr.shape)} {tuple(image.hr.shape)}".encode())
        for pixels in (image.lr, image.hr):
            # rounded, as floats of the degradation differ in their last bits between machines
            digest.update((pixels * 255).round().byte().contiguous().numpy().tobytes())
        yield image


def protocol(perceptual: PerceptualOptions, crop_border: int) -> str:
    """How the figures of `measure.standard_metrics` are made, in one paragraph: the same for all systems."""
    return (
        "All images are clamped and rounded to 8 bits first, as in a PNG. PSNR and SSIM leave out a border of "
        f"{crop_border} px at each side: on RGB, PSNR of the error over all three channels and SSIM as the mean of the "
        "three; with -Y on BT.601 Y of that RGB (16-235, not rounded again). SSIM has an 11 x 11 Gaussian window of "
        f"sigma 1.5 and its valid region alone. Perceptual: {perceptual_name(perceptual)}, on whole images, lower is "
        "better. Colour: difference of the channels' means in grey levels. Figures are means of the images' own "
        "figures, of comb ratios medians. bicubic is MATLAB's imresize (a = -0.5). '-': no image is large enough."
    )


def described(data: DataOptions, paired: bool, crop: int | None) -> str:
    """Where the images come from, in one sentence."""
    made = "lr as given" if paired else f"lr by preset {data.degradation} with seed 0"
    cut = f"centre crops of at most {crop} px, " if crop else ""
    return f"Scale {data.scale}; {cut}{made}."


def provenance(checkpoint: str, data: str, fingerprint: str, device: torch.device) -> dict[str, Any]:
    """What was measured, by what, on what, and when."""
    return {
        "command": shlex.join(["python", "-m", "experiments.evaluate", *sys.argv[1:]]),
        "checkpoint": checkpoint,
        "checkpoint_sha256": sha256(checkpoint),
        "data": data,
        "data_fingerprint": fingerprint,
        "machine": machine_name(device),
        "date": date.today().isoformat(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
    }


def default_folder(checkpoint: str, data: str, fingerprint: str) -> Path:
    """Where results go: <run>/evaluate/<data> for a run's checkpoint, runs/evaluate/<file>/<data> for another file.

    Where results of another test set of that name lie there, its fingerprint is added to the name; where a file of no
    run has the name of another one that was measured, the beginning of its sha256.
    """
    run = run_of(checkpoint)
    base = Path("runs", "evaluate", Path(checkpoint).stem) if run is None else run / "evaluate"
    folder = base / (data if data in EMBEDDED else Path(data).resolve().name)
    if _differs(folder, "data_fingerprint", fingerprint):
        folder = folder.with_name(f"{folder.name}-{fingerprint}")
    digest = sha256(checkpoint)
    if run is None and _differs(folder, "checkpoint_sha256", digest):
        folder = folder.with_name(f"{folder.name}-{digest[:16]}")
    return Path(os.path.relpath(folder))


def _differs(folder: Path, key: str, value: str) -> bool:
    """Whether a folder holds results that say something else of themselves."""
    try:
        return bool(json.loads((folder / JSON).read_text())[key] != value)
    except (OSError, ValueError, KeyError, TypeError):
        return False  # nothing, or no results of ours


def report(facts: dict[str, Any], table: str, rows: list[Row]) -> str:
    """The results as Markdown."""
    lines = [f"    {facts['command']}", "", f"{facts['machine']}, {facts['date']}, {facts['precision']}."]
    lines += [facts["protocol"], "", table, ""]
    costs = shuffle_cost(rows, *shuffled_pair(rows))
    for group, cost in costs.items():
        parts = [f"{cost['psnr_y']:+.3f} dB PSNR-Y"] if "psnr_y" in cost else []
        parts += [f"{cost['perceptual']:+.4f} perceptual distance"] if "perceptual" in cost else []
        lines.append(f"Id-shuffle cost, {group}: {', '.join(parts)} (0: positions are ignored).")
    lines += [""] if costs else []
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    lines.append(f"Checkpoint sha256 {facts['checkpoint_sha256'][:16]}, data {facts['data_fingerprint']}; {versions}.")
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
    """Write both files of results, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    _replace(folder / MARKDOWN, text)
    _replace(folder / JSON, json.dumps(_finite(values), indent=1, allow_nan=False) + "\n")


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
