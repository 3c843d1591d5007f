"""Gaussian blur kernels and the blur itself."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from datamodules.degradations.draws import chance, integer, uniform


def gaussian_kernel(size: int, sigma_x: float, sigma_y: float, angle: float = 0.0) -> Tensor:
    """Return a normalised Gaussian kernel whose covariance is R diag(sigma_x^2, sigma_y^2) R^T.

    `size` is odd, the sigmas are in pixels, `angle` is in radians from the x axis towards the y axis (downwards).
    Returns (size, size) float32 on the CPU, summing to 1. ValueError for an even size or a sigma <= 0.
    Source: Real-ESRGAN (arXiv 2107.10833, section 3.1), with equal sigmas isotropic.
    """
    if size < 1 or size % 2 == 0 or sigma_x <= 0 or sigma_y <= 0:
        raise ValueError(f"blur kernel: found size {size}, sigmas {sigma_x}, {sigma_y}; expected odd size, sigmas > 0")
    axis = torch.arange(size, dtype=torch.float64) - size // 2
    y, x = axis[:, None], axis[None, :]
    along = x * math.cos(angle) + y * math.sin(angle)
    across = y * math.cos(angle) - x * math.sin(angle)
    kernel = torch.exp(-0.5 * ((along / sigma_x) ** 2 + (across / sigma_y) ** 2))
    return (kernel / kernel.sum()).float()


def draw_gaussian_kernel(
    generator: torch.Generator,
    size_range: tuple[int, int],
    sigma_range: tuple[float, float],
    anisotropic_probability: float,
) -> Tensor:
    """Draw a Gaussian kernel with a random odd size, random sigmas and, if anisotropic, a random rotation.

    The bounds of `size_range` are odd and included. Returns (size, size) float32 on the CPU.
    """
    size = 2 * integer(generator, size_range[0] // 2, size_range[1] // 2) + 1
    sigma = uniform(generator, *sigma_range)
    if not chance(generator, anisotropic_probability):
        return gaussian_kernel(size, sigma, sigma)
    return gaussian_kernel(size, sigma, uniform(generator, *sigma_range), uniform(generator, -math.pi, math.pi))


def blur(image: Tensor, kernels: Tensor) -> Tensor:
    """Convolve each image with its own kernel, borders reflected.

    image (B, C, H, W) float32 of any range; kernels (B, K, K), K odd. Returns (B, C, H, W).
    """
    height, width = image.shape[-2:]
    size = kernels.shape[-1]
    # FFT rather than a grouped convolution: on a CPU 5 to 20 times faster at K = 21 to 41, and free of the TF32 that
    # cuDNN uses by default. The padding keeps the wrap-around out of the part that is cut out; multiples of 16 are
    # fast lengths.
    padded = reflect_pad(image, size // 2)
    shape = [n + -n % 16 for n in padded.shape[-2:]]
    response = torch.fft.rfft2(kernels.to(image), s=shape)[:, None]
    full = torch.fft.irfft2(torch.fft.rfft2(padded, s=shape) * response, s=shape)
    return full[..., size - 1 : size - 1 + height, size - 1 : size - 1 + width]


def reflect_pad(image: Tensor, pad: int) -> Tensor:
    """Pad (..., H, W) by reflection without repeating the edge, also where `pad` is larger than the image."""
    if pad < min(image.shape[-2:]):
        return F.pad(image, (pad, pad, pad, pad), mode="reflect")
    for dim in (-2, -1):
        image = image.index_select(dim, _reflected(image.shape[dim], pad).to(image.device, non_blocking=True))
    return image


def _reflected(length: int, pad: int) -> Tensor:
    period = max(2 * (length - 1), 1)
    position = torch.arange(-pad, length + pad) % period
    return torch.minimum(position, period - position) if length > 1 else position
