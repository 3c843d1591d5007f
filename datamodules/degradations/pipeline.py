"""From a high-resolution batch to its degraded low-resolution batch."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

import torch
from torch import Generator, Tensor

from datamodules.degradations.blur import blur
from datamodules.degradations.jpeg import compress
from datamodules.degradations.noise import gaussian_noise, poisson_noise
from datamodules.degradations.parameters import (
    Kernel,
    Noise,
    OrderParameters,
    SampleParameters,
    draw_parameters,
)
from datamodules.degradations.presets import PRESETS, Preset
from datamodules.degradations.resize import matlab_bicubic, resize, scaled

__all__ = ["PRESETS", "DegradationPipeline", "Operations", "stages", "stages_of"]

Image = TypeVar("Image")
Setting = TypeVar("Setting")


class DegradationPipeline:
    """Degrade hr to lr by a preset, every sample from its own generator.

    hr (B, 3, H, W) in [0,1], on any device; one CPU generator per sample. Returns lr (B, 3, H / scale, W / scale),
    float32, whole grey levels / 255, on the same device; with preset none it is hr. hr is not changed and the global
    generator is not used. ValueError for a scale that is impossible or, with none, not 1; for H or W that is not a
    multiple of scale; and for a number of generators other than B.
    Source: Real-ESRGAN (arXiv 2107.10833), second-order degradation.
    """

    def __init__(self, preset: Preset, scale: int) -> None:
        if scale < 1:
            raise ValueError(f"data.scale: found {scale}, expected an integer >= 1")
        if preset.rule == "none" and scale != 1:
            others = ", ".join(sorted(name for name in PRESETS if name != preset.name))
            raise ValueError(
                f"data.degradation={preset.name!r}: expected one of {others} at data.scale={scale}; "
                "without degradation lr is hr itself, which needs data.scale=1"
            )
        self.preset = preset
        self.scale = scale

    @torch.no_grad()
    def __call__(self, hr: Tensor, generators: Sequence[Generator]) -> Tensor:
        height, width = hr.shape[-2:]
        if height % self.scale or width % self.scale:
            raise ValueError(
                f"found hr {height} x {width}, expected multiples of scale {self.scale}; change data.crop or data.scale"
            )
        if len(generators) != len(hr):
            raise ValueError(f"found {len(generators)} generators for {len(hr)} images, expected one per image")
        if self.preset.rule == "none":
            return hr.float()
        # Sample by sample: sizes differ after the first resize, so a shared canvas would cost up to four times the
        # pixels; and rounding and JPEG turn a last-bit difference into a grey level, so a sample's bits must not
        # depend on the batch. One-sample calls have the same shapes, hence the same bits, in any batch.
        with torch.autocast(hr.device.type, enabled=False):
            return torch.cat([self._degrade(image[None].float(), g) for image, g in zip(hr, generators, strict=True)])

    def _degrade(self, image: Tensor, generator: Generator) -> Tensor:
        if self.preset.rule == "bicubic":
            lr = matlab_bicubic(image, self.scale)
            return lr if self.preset.jpeg_quality is None else compress(lr, self.preset.jpeg_quality)
        lr_size = (image.shape[-2] // self.scale, image.shape[-1] // self.scale)
        for _, stage in stages(draw_parameters(self.preset, self.scale, generator), lr_size):
            image = stage(image)
        return (image * 255).round_().clamp_(0, 255) / 255


def stages(parameters: SampleParameters, lr_size: tuple[int, int]) -> Iterator[tuple[str, Callable[[Tensor], Tensor]]]:
    """Yield a sample's steps in their order: (name, step).

    Names are blur, resize, gaussian noise, poisson noise, jpeg and sinc. A step takes and returns an image
    (1, 3, H, W); `lr_size` is rows, columns at the end.
    """
    return stages_of(_TORCH, parameters, lr_size)


@dataclass(frozen=True)
class Operations(Generic[Image]):
    """What the steps are made of, for one kind of image."""

    size: Callable[[Image], tuple[int, int]]
    """Rows, columns."""
    blur: Callable[[Image, Kernel], Image]
    resize: Callable[[Image, tuple[int, int], str], Image]
    """To rows, columns, by one of FILTERS."""
    add_noise: Callable[[Image, Noise], Image]
    jpeg: Callable[[Image, int], Image]
    """Compress at a quality from 1 to 100 and decompress."""


def stages_of(
    operations: Operations[Image], parameters: SampleParameters, lr_size: tuple[int, int]
) -> Iterator[tuple[str, Callable[[Image], Image]]]:
    """Yield the steps of `stages` made of other operations, such as OpenCV's in the benchmark."""
    for order in parameters.orders:
        if order.kernel:
            yield "blur", _given(operations.blur, order.kernel)
        yield "resize", partial(_resize_order, operations, order, lr_size)
        yield "gaussian noise" if order.noise.gaussian else "poisson noise", _given(operations.add_noise, order.noise)
        if order is not parameters.orders[-1]:
            yield "jpeg", _given(operations.jpeg, order.quality)
    last_jpeg = ("jpeg", _given(operations.jpeg, parameters.orders[-1].quality))
    if not parameters.jpeg_last:
        yield last_jpeg
    yield "resize", lambda image: operations.resize(image, lr_size, parameters.final_filter)
    if parameters.final_sinc:
        yield "sinc", _given(operations.blur, parameters.final_sinc)
    if parameters.jpeg_last:
        yield last_jpeg


def _given(operation: Callable[[Image, Setting], Image], setting: Setting) -> Callable[[Image], Image]:
    return lambda image: operation(image, setting)


def _resize_order(
    operations: Operations[Image], order: OrderParameters, lr_size: tuple[int, int], image: Image
) -> Image:
    start = lr_size if order.resize_from_lr else operations.size(image)
    return operations.resize(image, scaled(start, order.factor), order.filter_name)


def add_noise(image: Tensor, noise: Noise) -> Tensor:
    """Add the noise to one sample (1, 3, H, W) and clamp to [0,1]."""
    generator = torch.Generator(device=image.device).manual_seed(noise.seed)
    field = gaussian_noise if noise.gaussian else poisson_noise
    return (image + field(image, noise.strength, noise.grey, generator)).clamp_(0, 1)


def _size(image: Tensor) -> tuple[int, int]:
    return image.shape[-2], image.shape[-1]


def _blur(image: Tensor, kernel: Kernel) -> Tensor:
    return blur(image, kernel.tensor())


_TORCH = Operations(_size, _blur, resize, add_noise, compress)
