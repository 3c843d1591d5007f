"""Presets of degradation, as data."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Order:
    """One round of blur, resize, noise and JPEG (Real-ESRGAN, arXiv 2107.10833, figure 2); every range is uniform."""

    blur_probability: float
    blur_sigma: tuple[float, float]
    """Standard deviation in pixels of the image at that point."""
    resize_probabilities: tuple[float, float, float]
    """Up, down, keep."""
    resize_factor: tuple[float, float]
    resize_from_lr: bool
    """The factor multiplies the lr size instead of the size the image has."""
    gaussian_sigma: tuple[float, float]
    """8-bit grey levels."""
    poisson_scale: tuple[float, float]
    jpeg_quality: tuple[int, int]
    """Both ends included."""
    gaussian_probability: float = 0.5
    """Otherwise the noise is Poisson."""
    grey_probability: float = 0.4


@dataclass(frozen=True)
class KernelSizes:
    """Sides of the blur kernels, and where a sinc kernel is wide enough for lower cutoffs."""

    least: int
    """Odd, as `most`; both included."""
    most: int
    wide: int
    """From this side on the cutoff starts at pi / 5, below at pi / 3."""


@dataclass(frozen=True)
class Preset:
    """A fixed rule, or random rounds of degradation as Real-ESRGAN defines them."""

    name: str
    rule: Literal["random", "bicubic", "none"] = "random"
    """bicubic is MATLAB's imresize; with none lr is hr itself, at scale 1."""
    jpeg_quality: int | None = None
    """Of the JPEG compression (4:2:0) after rule bicubic; None: none."""
    orders: tuple[Order, ...] = ()
    final_sinc_probability: float = 0.8
    sizes: KernelSizes = KernelSizes(7, 21, 13)
    """Below scale 8."""
    large_sizes: KernelSizes = KernelSizes(7, 21, 13)
    """From scale 8 on."""


KERNEL_WEIGHTS = {
    "gaussian": 0.45,
    "anisotropic gaussian": 0.25,
    "generalised": 0.12,
    "anisotropic generalised": 0.03,
    "plateau": 0.12,
    "anisotropic plateau": 0.03,
}
"""Shares of the kernels among those that are no sinc, alike in Real-ESRGAN and OMGSR."""
SINC_PROBABILITY = 0.1
GENERALISED_BETA = (0.5, 4.0)
PLATEAU_BETA = (1.0, 2.0)

# Real-ESRGAN's training settings, without its sharpening of hr.
_REAL_ESRGAN = Preset(
    name="real_esrgan",
    orders=(
        Order(
            blur_probability=1.0,
            blur_sigma=(0.2, 3.0),
            resize_probabilities=(0.2, 0.7, 0.1),
            resize_factor=(0.15, 1.5),
            resize_from_lr=False,
            gaussian_sigma=(1.0, 30.0),
            poisson_scale=(0.05, 3.0),
            jpeg_quality=(30, 95),
        ),
        Order(
            blur_probability=0.8,
            blur_sigma=(0.2, 1.5),
            resize_probabilities=(0.3, 0.4, 0.3),
            resize_factor=(0.3, 1.2),
            resize_from_lr=True,
            gaussian_sigma=(1.0, 25.0),
            poisson_scale=(0.05, 2.5),
            jpeg_quality=(30, 95),
        ),
    ),
)
# The milder settings of OMGSR's training, whose kernels grow with the scale; its resize back to the size of hr is
# the model's own.
_OMGSR = Preset(
    name="omgsr",
    orders=(
        Order(
            blur_probability=1.0,
            blur_sigma=(0.2, 3.0),
            resize_probabilities=(0.2, 0.7, 0.1),
            resize_factor=(0.3, 1.5),
            resize_from_lr=False,
            gaussian_sigma=(1.0, 15.0),
            poisson_scale=(0.05, 2.0),
            jpeg_quality=(60, 95),
        ),
        Order(
            blur_probability=0.5,
            blur_sigma=(0.2, 1.5),
            resize_probabilities=(0.3, 0.4, 0.3),
            resize_factor=(0.6, 1.2),
            resize_from_lr=True,
            gaussian_sigma=(1.0, 12.0),
            poisson_scale=(0.05, 1.0),
            jpeg_quality=(60, 100),
        ),
    ),
    large_sizes=KernelSizes(11, 41, 25),
)
_BICUBIC = Preset(name="bicubic", rule="bicubic")
# NTIRE 2023's challenge of real-time 4K super-resolution.
_NTIRE = Preset(name="ntire", rule="bicubic", jpeg_quality=90)
_NONE = Preset(name="none", rule="none")

PRESETS = {preset.name: preset for preset in (_REAL_ESRGAN, _OMGSR, _BICUBIC, _NTIRE, _NONE)}
