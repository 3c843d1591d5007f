"""Resizing one sample: the filters of Real-ESRGAN, and MATLAB's bicubic `imresize` in both directions."""

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from datamodules.degradations.bands import Taps, along_height, along_width

FILTERS = ("area", "bilinear", "bicubic")

_FEW_PIXELS = 160 * 160


def resize(image: Tensor, size: tuple[int, int], filter_name: str) -> Tensor:
    """Resize (..., C, H, W) to `size` (rows, columns) as `torch.nn.functional.interpolate` does without antialiasing.

    Shrinking with bilinear or bicubic (a = -0.75) therefore aliases, as in Real-ESRGAN's own pipeline; bicubic
    overshoots the range of its input. ValueError for a filter that is not one of FILTERS.
    """
    if filter_name not in FILTERS:
        raise ValueError(f"resize filter: found {filter_name!r}, expected one of {', '.join(FILTERS)}")
    if image.shape[-2:] == size:
        return image
    if image.device.type == "cpu" and _suits_bands(image.shape[-2] * image.shape[-1], size[0] * size[1], filter_name):
        return resize_by_bands(image, size, filter_name)
    return F.interpolate(image, size, mode=filter_name)


def _suits_bands(before: int, after: int, filter_name: str) -> bool:
    """Whether torch takes longer on a CPU, up to four times as long; by the number of pixels."""
    return after >= max(_FEW_PIXELS, before if filter_name == "bilinear" else before // 4)


def resize_by_bands(image: Tensor, size: tuple[int, int], filter_name: str) -> Tensor:
    """The same as `resize`, by matrix products along one axis after the other."""
    taps = {"area": area_taps, "bilinear": bilinear_taps, "bicubic": bicubic_taps}[filter_name]
    rows, columns = taps(image.shape[-2], size[0]), taps(image.shape[-1], size[1])
    if size[0] < image.shape[-2]:  # the pass that leaves the other less to do comes first
        return along_width(along_height(image, rows), columns)
    return along_height(along_width(image, columns), rows)


def bilinear_taps(before: int, after: int) -> Taps:
    """Return which of `before` pixels each of `after` pixels sums, with float32 weights: linear between neighbours."""
    centre = _centres(before, after)
    position = centre.floor() + torch.arange(2)
    return Taps(position.long().clamp_(0, before - 1), (1 - (position - centre).abs()).float())


def bicubic_taps(before: int, after: int) -> Taps:
    """The same for a cubic with a = -0.75."""
    centre = _centres(before, after)
    position = centre.floor() + torch.arange(-1, 3)
    return Taps(position.long().clamp_(0, before - 1), _cubic((position - centre).abs(), -0.75).float())


def area_taps(before: int, after: int) -> Taps:
    """The same for the plain mean of all pixels that an output pixel touches."""
    output = torch.arange(after)
    first, last = output * before // after, ((output + 1) * before + after - 1) // after - 1
    position = first[:, None] + torch.arange(int((last - first).max()) + 1)
    weight = (position <= last[:, None]) / (last - first + 1)[:, None]
    return Taps(torch.minimum(position, last[:, None]), weight)


def _centres(before: int, after: int) -> Tensor:
    return (torch.arange(after, dtype=torch.float64)[:, None] + 0.5) * before / after - 0.5


def matlab_bicubic(image: Tensor, scale: int) -> Tensor:
    """Shrink (..., H, W) in [0,1] by a whole factor as MATLAB's `imresize(uint8 image, 1 / scale)` does.

    Antialiased cubic with a = -0.5, symmetric borders, height before width, rounded to 8 bits after each pass. H and W
    are multiples of `scale`. Returns float32 (..., H / scale, W / scale), whole grey levels / 255: MATLAB's own bits
    for images of 8 bits. Images of 16 bits keep them up to the first pass.
    """
    # On this grid 8- and 16-bit values are exact again, so that ties round as in MATLAB.
    levels = (image.double() * 65535).round() / 257
    height, width = image.shape[-2:]
    levels = _to_8_bits(along_height(levels, _matlab_taps(height, height // scale, scale)))
    levels = _to_8_bits(along_width(levels, _matlab_taps(width, width // scale, scale)))
    return levels.float() / 255


def matlab_bicubic_up(image: Tensor, scale: int) -> Tensor:
    """Enlarge (..., H, W) by a whole factor as MATLAB's `imresize(floating-point image, scale)` does.

    The "bicubic" of the papers' tables: a = -0.5 and symmetric borders as in `matlab_bicubic`, but no antialiasing and
    no rounding. Returns float32 (..., H scale, W scale), which overshoots the range of its input.
    """
    height, width = image.shape[-2:]
    taller = along_height(image.double(), _matlab_taps(height, height * scale, 1))
    return along_width(taller, _matlab_taps(width, width * scale, 1)).float()


@lru_cache(maxsize=8)  # a training asks for the same ones for every crop
def _matlab_taps(before: int, after: int, stretch: int) -> Taps:
    """Taps of the cubic, widened to `stretch` pixels per unit for antialiasing; not to be changed in place."""
    centre = _centres(before, after)
    position = (centre - 2 * stretch).floor() + torch.arange(4 * stretch + 2)
    weight = _cubic((position - centre).abs() / stretch, -0.5)
    mirrored = position.long() % (2 * before)
    index = torch.minimum(mirrored, 2 * before - 1 - mirrored)
    return Taps(index, weight / weight.sum(1, keepdim=True))


def _to_8_bits(levels: Tensor) -> Tensor:
    return (levels + 0.5).floor_().clamp_(0, 255)


def _cubic(distance: Tensor, a: float) -> Tensor:
    """Keys' cubic convolution kernel; a = -0.5 in MATLAB, -0.75 in torch and OpenCV."""
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return torch.where(distance <= 1, near, torch.where(distance < 2, far, 0.0))


def scaled(size: tuple[int, int], factor: float) -> tuple[int, int]:
    """Return `size` times `factor`, rounded down, at least one pixel."""
    return max(1, math.floor(size[0] * factor)), max(1, math.floor(size[1] * factor))
