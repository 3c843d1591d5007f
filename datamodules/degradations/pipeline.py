"""From a high-resolution batch to its degraded low-resolution batch: presets as data, and the walk through them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from datamodules.degradations.draws import chance, choice, fork, integer, uniform
from datamodules.degradations.jpeg import jpeg
from datamodules.degradations.kernels import blur, draw_gaussian_kernel
from datamodules.degradations.noise import gaussian_noise, poisson_noise
from datamodules.degradations.resize import FILTERS, draw_factor, resize, scaled


@dataclass(frozen=True)
class Order:
    """One round of blur, resize, noise and JPEG (Real-ESRGAN, arXiv 2107.10833, figure 2); every range is uniform."""

    blur_probability: float
    blur_sigma: tuple[float, float]
    """Standard deviation in pixels of the image at that point."""
    anisotropic_probability: float
    resize_probabilities: tuple[float, float, float]
    """Up, down, keep."""
    resize_factor: tuple[float, float]
    resize_from_lr: bool
    """The factor multiplies the lr size instead of the size the image has."""
    gaussian_probability: float
    """Otherwise the noise is Poisson."""
    gaussian_sigma: tuple[float, float]
    """8-bit grey levels."""
    poisson_scale: tuple[float, float]
    grey_probability: float
    jpeg_quality: tuple[int, int]
    """Both ends included."""


@dataclass(frozen=True)
class Preset:
    """Named rounds of degradation, and the filters from which each resize draws one."""

    name: str
    orders: tuple[Order, ...]
    filters: tuple[str, ...]
    kernel_size: tuple[int, int] = (7, 21)
    """Odd bounds of the blur kernel's side, below scale 8."""
    kernel_size_large: tuple[int, int] = (11, 41)
    """The same from scale 8 on."""


# Ranges of OMGSR, without its final sinc filter; the sigmas, resize probabilities, grey and Poisson shares are
# Real-ESRGAN's. Ours: anisotropic kernels have the share they have among Real-ESRGAN's Gaussian ones.
_OMGSR = Preset(
    name="omgsr",
    orders=(
        Order(
            blur_probability=1.0,
            blur_sigma=(0.2, 3.0),
            anisotropic_probability=0.25 / 0.70,
            resize_probabilities=(0.2, 0.7, 0.1),
            resize_factor=(0.3, 1.5),
            resize_from_lr=False,
            gaussian_probability=0.5,
            gaussian_sigma=(1.0, 15.0),
            poisson_scale=(0.05, 2.0),
            grey_probability=0.4,
            jpeg_quality=(60, 95),
        ),
        Order(
            blur_probability=0.5,
            blur_sigma=(0.2, 1.5),
            anisotropic_probability=0.25 / 0.70,
            resize_probabilities=(0.3, 0.4, 0.3),
            resize_factor=(0.6, 1.2),
            resize_from_lr=True,
            gaussian_probability=0.5,
            gaussian_sigma=(1.0, 12.0),
            poisson_scale=(0.05, 1.0),
            grey_probability=0.4,
            jpeg_quality=(60, 100),
        ),
    ),
    filters=FILTERS,
)
_BICUBIC = Preset(name="bicubic", orders=(), filters=("bicubic",))

PRESETS = {preset.name: preset for preset in (_OMGSR, _BICUBIC)}


class DegradationPipeline:
    """Degrade hr to lr by a preset, every sample from its own generator.

    hr (B, 3, H, W) in [0,1], on any device; one CPU generator per sample. Returns lr (B, 3, H / scale, W / scale),
    float32, whole grey levels / 255, on the same device. hr is not changed and the global generator is not used.
    ValueError for H or W that is not a multiple of scale, and for a number of generators other than B.
    Source: Real-ESRGAN (arXiv 2107.10833), second-order degradation.
    """

    def __init__(self, preset: Preset, scale: int) -> None:
        if scale < 1:
            raise ValueError(f"data.scale: found {scale}, expected an integer >= 1")
        self.preset = preset
        self.scale = scale
        self.kernel_size = preset.kernel_size if scale < 8 else preset.kernel_size_large

    @torch.no_grad()
    def __call__(self, hr: Tensor, generators: Sequence[Generator]) -> Tensor:
        height, width = hr.shape[-2:]
        if height % self.scale or width % self.scale:
            raise ValueError(
                f"found hr {height} x {width}, expected multiples of scale {self.scale}; change data.crop or data.scale"
            )
        if len(generators) != len(hr):
            raise ValueError(f"found {len(generators)} generators for {len(hr)} images, expected one per image")
        # Sample by sample: sizes differ after the first resize, so a shared canvas would cost up to four times the
        # pixels; and rounding and JPEG turn a last-bit difference into a grey level, so a sample's bits must not
        # depend on the batch. One-sample calls have the same shapes, hence the same bits, in any batch.
        with torch.autocast(hr.device.type, enabled=False):
            lr = torch.cat([self._degrade(image[None].float(), g) for image, g in zip(hr, generators, strict=True)])
        return (lr.clamp(0, 1) * 255).round() / 255

    def _degrade(self, image: Tensor, generator: Generator) -> Tensor:
        lr_size = (image.shape[-2] // self.scale, image.shape[-1] // self.scale)
        for index, order in enumerate(self.preset.orders):
            image = self._blur(image, order, generator)
            image = self._resize(image, order, lr_size, generator)
            image = add_noise(image, order, generator)
            # Real-ESRGAN swaps its last JPEG and the resize to lr in half of the cases.
            if index == len(self.preset.orders) - 1 and chance(generator, 0.5):
                image = resize(image, lr_size, choice(generator, self.preset.filters))
            quality = torch.tensor([integer(generator, *order.jpeg_quality)])
            image = jpeg(image, quality)
        return resize(image, lr_size, choice(generator, self.preset.filters))

    def _blur(self, image: Tensor, order: Order, generator: Generator) -> Tensor:
        if not chance(generator, order.blur_probability):
            return image
        kernel = draw_gaussian_kernel(generator, self.kernel_size, order.blur_sigma, order.anisotropic_probability)
        return blur(image, kernel[None].to(image.device, non_blocking=True))

    def _resize(self, image: Tensor, order: Order, lr_size: tuple[int, int], generator: Generator) -> Tensor:
        height, width = lr_size if order.resize_from_lr else image.shape[-2:]
        size = scaled((height, width), draw_factor(generator, order.resize_probabilities, order.resize_factor))
        return resize(image, size, choice(generator, self.preset.filters))


def add_noise(image: Tensor, order: Order, generator: Generator) -> Tensor:
    """Add the order's Gaussian or Poisson noise to one sample (1, 3, H, W) and clamp to [0,1]."""
    gaussian = chance(generator, order.gaussian_probability)
    strength = uniform(generator, *(order.gaussian_sigma if gaussian else order.poisson_scale))
    grey = chance(generator, order.grey_probability)
    noise = gaussian_noise if gaussian else poisson_noise
    return (image + noise(image, strength, grey, fork(generator, image.device))).clamp(0, 1)
