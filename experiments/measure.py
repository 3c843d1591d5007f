"""Methods against references: scores of each image, rows of a table, and the table itself.

Protocol: every image is clamped and rounded to 8 bits first, as written to a PNG. PSNR and SSIM are those of the BT.601
Y channel without a border of `crop_border` px. A figure is the mean over a group's images, of comb ratios the median.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from tqdm import tqdm

from datamodules.benchmarks import BenchmarkImage
from datamodules.randomness import generator_for
from experiments.build import COMB_PITCHES, perceptual_name, perceptual_of
from experiments.inference import STRIP_ROWS
from experiments.schema import PerceptualOptions
from lightning_modules.latent_flow import LatentFlow
from lightning_modules.networks.codec import Codec
from lightning_modules.networks.lora import without_adapters
from lightning_modules.one_step_flux import OneStepFlux
from lightning_modules.super_resolution import pad_to_multiple, resize_up
from losses.color import color_error
from losses.comb_ratio import comb_ratio
from losses.fidelity import psnr, ssim
from losses.periodicity import periodicity_scores, smallest_side

Method = Callable[[Tensor, Tensor], Tensor]
"""method(lr, hr) -> image of hr's size: (1,3,h,w) and (1,3,H,W) in [0,1]; references alone look at hr's pixels."""

STUDENT, SHUFFLED = "student", "student, ids shuffled"
DENOISED, DENOISED_SHUFFLED = "denoised", "denoised, ids shuffled"


@dataclass(frozen=True)
class Score:
    """A metric as a column: score(sr, hr) -> one number for images of at least `smallest` px per side."""

    name: str
    heading: str
    score: Callable[[Tensor, Tensor], Tensor]
    smallest: int = 1
    median: bool = False
    digits: int = 3


@dataclass(frozen=True)
class ImageScores:
    """Values of one method on one image by the metrics' names; None where the image is too small for the metric."""

    image: str
    group: str
    method: str
    values: dict[str, float | None]


@dataclass(frozen=True)
class Row:
    """Values of one method over a group of `images` images; None where none of them is large enough."""

    group: str
    method: str
    images: int
    values: dict[str, float | None]


def standard_metrics(options: PerceptualOptions, crop_border: int, period: int) -> list[Score]:
    """The columns of the project's tables."""
    distance = perceptual_of(options)
    return [
        Score("psnr_y", "PSNR-Y", lambda sr, hr: psnr(sr, hr, crop_border=crop_border), 2 * crop_border + 1, digits=2),
        Score("ssim_y", "SSIM-Y", lambda sr, hr: ssim(sr, hr, crop_border=crop_border), 2 * crop_border + 11, digits=4),
        Score("perceptual", perceptual_name(options), distance.per_image, 32, digits=4),
        Score(
            "periodicity",
            "periodicity",
            lambda sr, _: periodicity_scores(sr, period=period),
            smallest_side(period),
            digits=4,
        ),
        *[_comb(pitch) for pitch in COMB_PITCHES],
        Score("color_error", "colour", color_error, digits=2),
    ]


def _comb(pitch: int) -> Score:
    heading = f"comb 1/{pitch}"
    return Score(f"comb_{pitch}", heading, lambda sr, _: comb_ratio(sr, (pitch,))[:, 0], 64, median=True, digits=2)


def reference_methods(reconstruct: Callable[[Tensor], Tensor]) -> dict[str, Method]:
    """What a student is compared with; `reconstruct` is the codec's round trip."""
    return {
        "bicubic": lambda lr, hr: resize_up(lr, _size(hr)),
        "codec(lr)": lambda lr, hr: reconstruct(resize_up(lr, _size(hr))),
        "codec(hr)": lambda lr, hr: reconstruct(hr),
        "hr": lambda lr, hr: hr,
    }


def student_method(student: OneStepFlux) -> Method:
    return lambda lr, hr: student.restore(resize_up(lr, _size(hr)), STRIP_ROWS)


def shuffled_method(student: OneStepFlux, seed: int) -> Method:
    """The student with its image ids permuted; the permutation depends on the seed and the image's size alone."""
    return lambda lr, hr: student.restore(resize_up(lr, _size(hr)), STRIP_ROWS, generator_for((seed,), "shuffled ids"))


def denoiser_methods(flow: LatentFlow, seed: int) -> dict[str, Method]:
    """What a pretrained flow makes of hr, noised in latent space; the same noise with the ids in order and permuted."""

    def denoise(hr: Tensor, shuffle: Generator | None) -> Tensor:
        return flow.denoise(hr, [generator_for((seed,), "flow noise")], shuffle)

    return {
        DENOISED: lambda lr, hr: denoise(hr, None),
        DENOISED_SHUFFLED: lambda lr, hr: denoise(hr, generator_for((seed,), "shuffled ids")),
    }


def codec_round_trip(codec: Codec) -> Callable[[Tensor], Tensor]:
    """decode(encode(image)) of (1,3,H,W) in [0,1], any size, through the encoder as it was before any adapters."""

    def reconstruct(image: Tensor) -> Tensor:
        with without_adapters(codec):
            latent = codec.encode(pad_to_multiple(image, codec.cell), STRIP_ROWS)
            return _cropped(codec.decode(latent, STRIP_ROWS), image)

    return reconstruct


def _cropped(image: Tensor, like: Tensor) -> Tensor:
    return image[..., : like.shape[-2], : like.shape[-1]]


def _size(hr: Tensor) -> tuple[int, int]:
    return hr.shape[-2], hr.shape[-1]


def measure(
    methods: dict[str, Method],
    images: Iterable[BenchmarkImage],
    metrics: Sequence[Score],
    precision: torch.autocast,
    device: torch.device | str = "cpu",
    total: int | None = None,
) -> list[ImageScores]:
    """Scores of every method on every image, one image in memory at a time; the methods run under `precision`.

    total: number of images, for the progress bar where `images` has no length.
    """
    scores = []
    for image in tqdm(images, unit="image", total=total):
        lr, hr = image.lr[None].to(device), image.hr[None].to(device)
        for name, method in methods.items():
            with torch.inference_mode(), precision:
                sr = method(lr, hr)
            with torch.inference_mode():
                values = _values(as_written(sr).cpu(), as_written(hr).cpu(), metrics)
            scores.append(ImageScores(image.name, image.group, name, values))
    return scores


def as_written(image: Tensor) -> Tensor:
    """Clamped and rounded to 8 bits, float32."""
    return (image.float().clamp(0, 1) * 255).round() / 255


def _values(sr: Tensor, hr: Tensor, metrics: Sequence[Score]) -> dict[str, float | None]:
    side = min(sr.shape[-2:])
    return {m.name: float(m.score(sr, hr)) if side >= m.smallest else None for m in metrics}


def summarise(scores: Sequence[ImageScores], metrics: Sequence[Score]) -> list[Row]:
    """Rows by group and method in the order of their first appearance."""
    rows = []
    for group, method in dict.fromkeys((s.group, s.method) for s in scores):
        chosen = [s for s in scores if (s.group, s.method) == (group, method)]
        values = {m.name: _average([s.values[m.name] for s in chosen], m.median) for m in metrics}
        rows.append(Row(group, method, len(chosen), values))
    return sorted(rows, key=lambda row: [r.group for r in rows].index(row.group))


def _average(values: Sequence[float | None], median: bool) -> float | None:
    measured = [value for value in values if value is not None]
    if not measured:
        return None
    return statistics.median(measured) if median else statistics.fmean(measured)


def shuffle_cost(rows: Sequence[Row], student: str = STUDENT, shuffled: str = SHUFFLED) -> dict[str, dict[str, float]]:
    """By group, what shuffled image ids cost: dB of PSNR-Y lost and perceptual distance gained; 0 ignores position."""
    by_name = {(row.group, row.method): row.values for row in rows}
    costs: dict[str, dict[str, float]] = {}
    for group in dict.fromkeys(row.group for row in rows):
        plain, mixed = by_name.get((group, student), {}), by_name.get((group, shuffled), {})
        for metric, sign in (("psnr_y", 1), ("perceptual", -1)):
            before, after = plain.get(metric), mixed.get(metric)
            if before is not None and after is not None:
                costs.setdefault(group, {})[metric] = sign * (before - after) + 0.0  # no "-0"
    return costs


def markdown_table(rows: Sequence[Row], metrics: Sequence[Score]) -> str:
    """One table per group, the columns aligned."""
    parts = []
    for group in dict.fromkeys(row.group for row in rows):
        chosen = [row for row in rows if row.group == group]
        cells = [[f"{group} ({chosen[0].images})", *[m.heading for m in metrics]]]
        cells += [[row.method, *[_cell(row.values[m.name], m.digits) for m in metrics]] for row in chosen]
        widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
        lines = ["| " + " | ".join(_aligned(line, widths)) + " |" for line in cells]
        rule = "|" + "|".join([":" + "-" * (widths[0] + 1), *["-" * (width + 1) + ":" for width in widths[1:]]]) + "|"
        parts.append("\n".join([lines[0], rule, *lines[1:]]))
    return "\n\n".join(parts)


def _aligned(line: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [line[0].ljust(widths[0]), *[cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]]


def _cell(value: float | None, digits: int) -> str:
    if value is None:
        return "-"
    return f"{value:.{digits}f}" if math.isfinite(value) else "inf"
