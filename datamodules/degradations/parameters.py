"""What one sample's degradation draws, apart from its application: every number, before a pixel is touched."""

import math
from dataclasses import dataclass

from torch import Generator, Tensor

from datamodules.degradations.draws import chance, choice, integer, seed, uniform, weighted
from datamodules.degradations.kernels import gaussian_kernel, plateau_kernel, sinc_kernel
from datamodules.degradations.presets import (
    GENERALISED_BETA,
    KERNEL_WEIGHTS,
    PLATEAU_BETA,
    SINC_PROBABILITY,
    KernelSizes,
    Order,
    Preset,
)
from datamodules.degradations.resize import FILTERS


@dataclass(frozen=True)
class Kernel:
    """A blur kernel's kind, one of KERNEL_WEIGHTS or "sinc", and what its formula takes."""

    kind: str
    size: int
    sigma_x: float = 1.0
    sigma_y: float = 1.0
    angle: float = 0.0
    beta: float = 1.0
    cutoff: float = math.pi

    def tensor(self) -> Tensor:
        """The kernel itself: (size, size) float32 on the CPU, summing to 1."""
        if self.kind == "sinc":
            return sinc_kernel(self.size, self.cutoff)
        formula = plateau_kernel if self.kind.endswith("plateau") else gaussian_kernel
        return formula(self.size, self.sigma_x, self.sigma_y, self.angle, self.beta)


@dataclass(frozen=True)
class Noise:
    """A noise field: its kind, its strength as `noise.py` takes it, and the seed of its random numbers."""

    gaussian: bool
    strength: float
    grey: bool
    seed: int


@dataclass(frozen=True)
class OrderParameters:
    """One round."""

    kernel: Kernel | None
    factor: float
    resize_from_lr: bool
    filter_name: str
    noise: Noise
    quality: int


@dataclass(frozen=True)
class SampleParameters:
    """All rounds, and how they end: resize to the lr size, sinc filter and last JPEG, or that JPEG before both."""

    orders: tuple[OrderParameters, ...]
    final_filter: str
    final_sinc: Kernel | None
    jpeg_last: bool


def draw_parameters(preset: Preset, scale: int, generator: Generator) -> SampleParameters:
    """Draw one sample's parameters for a preset of random rounds, from the sample's CPU generator.

    Source: Real-ESRGAN (arXiv 2107.10833) and its public training settings.
    """
    sizes = preset.sizes if scale < 8 else preset.large_sizes
    orders = tuple(_draw_order(order, sizes, generator) for order in preset.orders)
    return SampleParameters(
        orders=orders,
        final_filter=choice(generator, FILTERS),
        final_sinc=_draw_final_sinc(sizes, generator) if chance(generator, preset.final_sinc_probability) else None,
        jpeg_last=chance(generator, 0.5),
    )


def draw_kernel(sizes: KernelSizes, sigma_range: tuple[float, float], generator: Generator) -> Kernel:
    """Draw a blur kernel of a round: a sinc, or one of KERNEL_WEIGHTS with sigmas from the range."""
    size = _draw_size(sizes, generator)
    if chance(generator, SINC_PROBABILITY):
        lowest = math.pi / 3 if size < sizes.wide else math.pi / 5
        return Kernel("sinc", size, cutoff=uniform(generator, lowest, math.pi))
    kind = weighted(generator, list(KERNEL_WEIGHTS), list(KERNEL_WEIGHTS.values()))
    sigma_x = sigma_y = uniform(generator, *sigma_range)
    angle = 0.0
    if kind.startswith("anisotropic"):
        sigma_y, angle = uniform(generator, *sigma_range), uniform(generator, -math.pi, math.pi)
    return Kernel(kind, size, sigma_x, sigma_y, angle, _draw_beta(kind, generator))


def draw_factor(
    generator: Generator, probabilities: tuple[float, float, float], factor_range: tuple[float, float]
) -> float:
    """Draw a resize factor: up, down or keep with the given probabilities.

    Returns a factor in [1, high] for up, [low, 1] for down and exactly 1 for keep.
    """
    low, high = weighted(generator, [(1.0, factor_range[1]), (factor_range[0], 1.0), (1.0, 1.0)], probabilities)
    return uniform(generator, low, high)


def _draw_order(order: Order, sizes: KernelSizes, generator: Generator) -> OrderParameters:
    blurred = chance(generator, order.blur_probability)
    return OrderParameters(
        kernel=draw_kernel(sizes, order.blur_sigma, generator) if blurred else None,
        factor=draw_factor(generator, order.resize_probabilities, order.resize_factor),
        resize_from_lr=order.resize_from_lr,
        filter_name=choice(generator, FILTERS),
        noise=_draw_noise(order, generator),
        quality=integer(generator, *order.jpeg_quality),
    )


def _draw_noise(order: Order, generator: Generator) -> Noise:
    gaussian = chance(generator, order.gaussian_probability)
    strength = uniform(generator, *(order.gaussian_sigma if gaussian else order.poisson_scale))
    return Noise(gaussian, strength, chance(generator, order.grey_probability), seed(generator))


def _draw_beta(kind: str, generator: Generator) -> float:
    """Below 1 in half of the cases and above in the other: a plateau's range starts at 1, so half of them have 1."""
    if kind.endswith("gaussian"):
        return 1.0
    low, high = PLATEAU_BETA if kind.endswith("plateau") else GENERALISED_BETA
    return uniform(generator, low, 1.0) if chance(generator, 0.5) else uniform(generator, 1.0, high)


def _draw_final_sinc(sizes: KernelSizes, generator: Generator) -> Kernel:
    return Kernel("sinc", _draw_size(sizes, generator), cutoff=uniform(generator, math.pi / 3, math.pi))


def _draw_size(sizes: KernelSizes, generator: Generator) -> int:
    return 2 * integer(generator, sizes.least // 2, sizes.most // 2) + 1
