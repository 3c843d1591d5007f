"""Resizing one sample with a given or a random filter and factor."""

import torch
import torch.nn.functional as F
from torch import Tensor

from datamodules.degradations.draws import uniform

FILTERS = ("area", "bilinear", "bicubic")


def resize(image: Tensor, size: tuple[int, int], filter_name: str) -> Tensor:
    """Resize (B, C, H, W) to `size` (rows, columns); bilinear and bicubic are antialiased.

    Bicubic overshoots the range of its input. ValueError for a filter that is not one of FILTERS.
    """
    if filter_name not in FILTERS:
        raise ValueError(f"resize filter: found {filter_name!r}, expected one of {', '.join(FILTERS)}")
    if image.shape[-2:] == size:
        return image
    if filter_name == "area":
        return F.interpolate(image, size, mode="area")
    return F.interpolate(image, size, mode=filter_name, antialias=True)


def draw_factor(
    generator: torch.Generator, probabilities: tuple[float, float, float], factor_range: tuple[float, float]
) -> float:
    """Draw a resize factor: up, down or keep with the given probabilities (Real-ESRGAN, arXiv 2107.10833).

    Returns a factor in [1, high] for up, [low, 1] for down and exactly 1 for keep.
    """
    up, down, _ = probabilities
    which = uniform(generator, 0.0, sum(probabilities))
    if which < up:
        return uniform(generator, 1.0, factor_range[1])
    return uniform(generator, factor_range[0], 1.0) if which < up + down else 1.0


def scaled(size: tuple[int, int], factor: float) -> tuple[int, int]:
    """Return `size` times `factor`, rounded down, at least one pixel."""
    return max(1, int(size[0] * factor)), max(1, int(size[1] * factor))
