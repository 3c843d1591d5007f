"""Methods and metrics: what is compared, the columns, and the scores of each image.

`protocol.protocol` says in words how the figures are made.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Generator, Tensor
from tqdm import tqdm

from datamodules.benchmarks import BenchmarkImage
from datamodules.degradations.resize import matlab_bicubic_up
from datamodules.randomness import generator_for
from experiments.build import COMB_PITCHES, perceptual_name, perceptual_of
from experiments.inference import STRIP_ROWS
from experiments.schema import PerceptualOptions
from lightning_modules.latent_flow import LatentFlow
from lightning_modules.networks.codec import Codec
from lightning_modules.networks.lora import without_adapters
from lightning_modules.one_step_flux import OneStepFlux
from lightning_modules.real_time_cnn import RealTimeCnn
from lightning_modules.super_resolution import pad_to_multiple, resize_up
from losses.color import color_error
from losses.comb_ratio import comb_ratio
from losses.fidelity import psnr, psnr_rgb, ssim, ssim_rgb
from losses.periodicity import periodicity_scores, smallest_side

Method = Callable[[Tensor, Tensor], Tensor]
"""method(lr, hr) -> image of hr's size: (1,3,h,w) and (1,3,H,W) in [0,1]; references alone look at hr's pixels."""

Seen = Callable[[BenchmarkImage, str, Tensor], None]
"""seen(image, name of the method, its output as it is measured: (3,H,W), rounded to 8 bits)."""

STUDENT, SHUFFLED = "student", "student, ids shuffled"
REAL_TIME = "rt4ksr"
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


def standard_metrics(options: PerceptualOptions, crop_border: int, period: int | None) -> list[Score]:
    """The columns of the project's tables; period: the token grid's in px, None where the systems have none."""
    distance = perceptual_of(options)
    on_grid = [] if period is None else [_periodicity(period), *[_comb(pitch) for pitch in COMB_PITCHES]]
    return [
        _fidelity("psnr_rgb", "PSNR", psnr_rgb, crop_border),
        _fidelity("ssim_rgb", "SSIM", ssim_rgb, crop_border),
        _fidelity("psnr_y", "PSNR-Y", psnr, crop_border),
        _fidelity("ssim_y", "SSIM-Y", ssim, crop_border),
        Score("perceptual", perceptual_name(options), distance.per_image, 32, digits=4),
        *on_grid,
        Score("color_error", "colour", color_error, digits=2),
    ]


def _fidelity(name: str, heading: str, measure: Callable[..., Tensor], border: int) -> Score:
    window, digits = (11, 4) if name.startswith("ssim") else (1, 3)
    return Score(name, heading, partial(measure, crop_border=border), 2 * border + window, digits=digits)


def _periodicity(period: int) -> Score:
    smallest = smallest_side(period)
    return Score("periodicity", "periodicity", lambda sr, _: periodicity_scores(sr, period=period), smallest, digits=4)


def _comb(pitch: int) -> Score:
    heading = f"comb 1/{pitch}"
    return Score(f"comb_{pitch}", heading, lambda sr, _: comb_ratio(sr, (pitch,))[:, 0], 64, median=True, digits=2)


def bicubic(lr: Tensor, hr: Tensor) -> Tensor:
    """The reference of the papers' tables."""
    return matlab_bicubic_up(lr, hr.shape[-1] // lr.shape[-1])


def original(lr: Tensor, hr: Tensor) -> Tensor:
    """hr itself: what the metrics make of it."""
    return hr


def codec_methods(reconstruct: Callable[[Tensor], Tensor]) -> dict[str, Method]:
    """What a codec makes of both images; `reconstruct` is its round trip."""
    return {
        "codec(lr)": lambda lr, hr: reconstruct(resize_up(lr, _size(hr))),
        "codec(hr)": lambda lr, hr: reconstruct(hr),
    }


def student_methods(students: Mapping[str, OneStepFlux]) -> dict[str, Method]:
    """The rows of students on one codec: references, the students by name, the first with shuffled ids, and hr."""
    first = next(iter(students.values()))
    return {
        "bicubic": bicubic,
        **codec_methods(codec_round_trip(first.codec)),
        **{name: student_method(student) for name, student in students.items()},
        SHUFFLED: shuffled_method(first, 0),
        "hr": original,
    }


def real_time_methods(system: RealTimeCnn) -> dict[str, Method]:
    """The rows of RT4KSR, whose network is folded for it, as users run it."""
    system.deploy()
    return {"bicubic": bicubic, REAL_TIME: lambda lr, hr: system.restore(lr), "hr": original}


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
    seen: Seen | None = None,
) -> list[ImageScores]:
    """Scores of every method on every image, one image in memory at a time; the methods run under `precision`.

    total: number of images, for the progress bar where `images` has no length. seen: is shown every output.
    """
    scores = []
    for image in tqdm(images, unit="image", total=total):
        lr, hr = image.lr[None].to(device), image.hr[None].to(device)
        for name, method in methods.items():
            with torch.inference_mode(), precision:
                sr = method(lr, hr)
            with torch.inference_mode():
                written = as_written(sr).cpu()
                values = _values(written, as_written(hr).cpu(), metrics)
            if seen is not None:
                seen(image, name, written[0])
            scores.append(ImageScores(image.name, image.group, name, values))
    return scores


def as_written(image: Tensor) -> Tensor:
    """Clamped and rounded to 8 bits, float32."""
    return (image.float().clamp(0, 1) * 255).round() / 255


def _values(sr: Tensor, hr: Tensor, metrics: Sequence[Score]) -> dict[str, float | None]:
    side = min(sr.shape[-2:])
    return {m.name: float(m.score(sr, hr)) if side >= m.smallest else None for m in metrics}
