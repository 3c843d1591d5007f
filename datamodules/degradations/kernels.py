"""Blur kernels of Real-ESRGAN (arXiv 2107.10833, sections 3.1 and 3.3) as formulas; all (size, size), summing to 1."""

import math

import torch
from torch import Tensor


def gaussian_kernel(size: int, sigma_x: float, sigma_y: float, angle: float = 0.0, beta: float = 1.0) -> Tensor:
    """Return exp(-q^beta / 2), a generalised Gaussian; beta 1 is the Gaussian itself.

    q = v^T S^-1 v for the offset v = (x, y) from the middle and S = R diag(sigma_x^2, sigma_y^2) R^T. `size` is odd,
    the sigmas are in pixels, `angle` is in radians from the x axis towards the y axis (downwards). Equal sigmas are
    isotropic. Returns float32 on the CPU. ValueError for an even size, or a sigma or beta <= 0.
    """
    return _normalised(torch.exp(-0.5 * _quadratic_form(size, sigma_x, sigma_y, angle, beta)))


def plateau_kernel(size: int, sigma_x: float, sigma_y: float, angle: float = 0.0, beta: float = 1.0) -> Tensor:
    """Return 1 / (1 + q^beta), a kernel with a flat top and long tails; arguments as of `gaussian_kernel`."""
    return _normalised(1 / (1 + _quadratic_form(size, sigma_x, sigma_y, angle, beta)))


def sinc_kernel(size: int, cutoff: float) -> Tensor:
    """Return the circular low-pass c J1(c r) / (2 pi r), which rings at edges.

    `size` is odd; r is the distance from the middle in pixels, `cutoff` c in radians per pixel, above 0 and at most pi.
    Returns float32 on the CPU. ValueError for an even size or a cutoff out of range.
    """
    if size < 1 or size % 2 == 0 or not 0 < cutoff <= math.pi:
        raise ValueError(f"sinc kernel: found size {size}, cutoff {cutoff}; expected odd size, cutoff in (0, pi]")
    axis = _axis(size)
    radius = torch.hypot(axis[:, None], axis[None, :])
    kernel = cutoff * torch.special.bessel_j1(cutoff * radius) / (2 * math.pi * radius)
    kernel[size // 2, size // 2] = cutoff**2 / (4 * math.pi)  # the limit at r = 0
    return _normalised(kernel)


def _quadratic_form(size: int, sigma_x: float, sigma_y: float, angle: float, beta: float) -> Tensor:
    if size < 1 or size % 2 == 0 or min(sigma_x, sigma_y, beta) <= 0:
        raise ValueError(
            f"blur kernel: found size {size}, sigmas {sigma_x}, {sigma_y}, beta {beta}; "
            "expected odd size, sigmas > 0, beta > 0"
        )
    y, x = _axis(size)[:, None], _axis(size)[None, :]
    along = x * math.cos(angle) + y * math.sin(angle)
    across = y * math.cos(angle) - x * math.sin(angle)
    return ((along / sigma_x) ** 2 + (across / sigma_y) ** 2) ** beta


def _axis(size: int) -> Tensor:
    return torch.arange(size, dtype=torch.float64) - size // 2


def _normalised(kernel: Tensor) -> Tensor:
    return (kernel / kernel.sum()).float()
