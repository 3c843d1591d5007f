"""Convolution of one sample with its blur kernel, borders reflected."""

import torch
import torch.nn.functional as F
from torch import Tensor

from datamodules.degradations.bands import Taps, along_height, along_width

_TILE = 256  # pixels; transforms of much larger planes fall out of a CPU's caches


def blur(image: Tensor, kernel: Tensor) -> Tensor:
    """Convolve every plane with one kernel, borders reflected without repeating the edge.

    image (..., H, W) float32 of any range, on any device; kernel (K, K) float32 on the CPU, K odd. Returns (..., H, W).
    """
    if image.device.type == "cpu" and (factors := separate(kernel)):
        return blur_separable(image, *factors)
    return blur_fft(image, kernel, _TILE if image.device.type == "cpu" else max(image.shape[-2:]))


def separate(kernel: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return the column and the row (K,) of which a kernel is the outer product, or None where it is of none.

    For images in [0,1] the outer product may change the blur by 1e-6 at most.
    """
    weights = kernel.double()
    rows, columns = weights.sum(1), weights.sum(0) / weights.sum()
    if (torch.outer(rows, columns) - weights).abs().sum() > 1e-6:
        return None
    return rows.to(kernel.dtype), columns.to(kernel.dtype)


def blur_separable(image: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """Convolve with outer(down, across), both (K,), in two passes of matrix products."""
    image = along_height(image, _taps(image.shape[-2], down))
    return along_width(image, _taps(image.shape[-1], across))


def blur_fft(image: Tensor, kernel: Tensor, tile: int) -> Tensor:
    """Convolve by FFT, in equal tiles of at most `tile` pixels a side.

    Faster than a convolution from K = 11 on, and free of the TF32 that cuDNN uses by default.
    """
    size, sides = kernel.shape[-1], image.shape[-2:]
    counts = [-(-n // tile) for n in sides]
    steps = [-(-n // count) for n, count in zip(sides, counts, strict=True)]
    shape = [_fast_length(step + size - 1) for step in steps]
    # Of the kernel's rows all but `size` are zeros: transform the others only.
    kernel = kernel.to(image.device, non_blocking=True)
    response = torch.fft.fft(torch.fft.rfft(kernel, n=shape[1]), n=shape[0], dim=0)
    # Pixels up to the transform's length spare it a slow padding of its own.
    bottom, right = (s + st * (c - 1) - n - size // 2 for s, st, c, n in zip(shape, steps, counts, sides, strict=True))
    padded = reflect_pad(image, (size // 2, bottom), (size // 2, right))
    result = torch.empty_like(image)
    for top in range(0, sides[0], steps[0]):
        for left in range(0, sides[1], steps[1]):
            target = result[..., top : top + steps[0], left : left + steps[1]]
            piece = padded[..., top : top + shape[0], left : left + shape[1]]
            full = torch.fft.irfft2(torch.fft.rfft2(piece).mul_(response), s=shape)
            # The wrap-around spoils the first size - 1 rows and columns only.
            target.copy_(full[..., size - 1 :, size - 1 :][..., : target.shape[-2], : target.shape[-1]])
    return result


def reflect_pad(image: Tensor, height: tuple[int, int], width: tuple[int, int]) -> Tensor:
    """Pad (..., H, W) by reflection without repeating the edge: before and after, by any number of pixels."""
    if max(height) < image.shape[-2] and max(width) < image.shape[-1]:
        return F.pad(image, (*width, *height), mode="reflect")
    for dim, (before, after) in ((-2, height), (-1, width)):
        length = image.shape[dim]
        positions = _reflected(torch.arange(-before, length + after), length)
        image = image.index_select(dim, positions.to(image.device, non_blocking=True))
    return image


def _taps(length: int, factor: Tensor) -> Taps:
    # A narrow Gaussian in a wide kernel has tails that no float32 image can feel.
    felt = (factor.abs() > 1e-8).nonzero()
    idle = min(int(felt[0]), len(factor) - 1 - int(felt[-1]))
    factor = factor[idle : len(factor) - idle]
    size = len(factor)
    positions = torch.arange(length)[:, None] + (size // 2 - torch.arange(size))
    return Taps(_reflected(positions, length), factor.expand(length, -1))


def _reflected(position: Tensor, length: int) -> Tensor:
    period = max(2 * (length - 1), 1)
    position = position % period
    return torch.minimum(position, period - position) if length > 1 else position


def _fast_length(least: int) -> int:
    """The next multiple of 8 without a prime factor above 7."""
    length = least + -least % 8
    while 2**20 * 3**10 * 5**6 * 7**5 % length:
        length += 8
    return length
