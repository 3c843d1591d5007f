"""DiffAugment per sample: the same augmentation of a sample whatever batch or rank it is in."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

TRANSLATION = 0.125
CUTOUT = 0.5


def diff_augment(images: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Colour, translation and cutout of images (B,3,H,W) in [0,1], one CPU generator per image, differentiable.

    Policy "color,translation,cutout" of Zhao et al. 2020 with the published constants, which are for images in [-1,1]:
    what is shifted in and what is cut out is mid-grey. Each image is changed by its own generator alone, so a batch
    that is split over ranks is augmented as the whole batch is. Raises ValueError where the counts differ.
    """
    if len(images) != len(generators):
        raise ValueError(f"found {len(generators)} generators for {len(images)} images; expected one per image")
    augmented = [_augment(2 * image - 1, generator) for image, generator in zip(images, generators, strict=True)]
    return torch.stack(augmented) / 2 + 0.5


def _augment(image: Tensor, generator: torch.Generator) -> Tensor:
    brightness, saturation, contrast = torch.rand(3, generator=generator).tolist()
    image = image + (brightness - 0.5)
    image = image.mean(dim=0, keepdim=True).lerp(image, 2 * saturation)
    image = image.mean().lerp(image, contrast + 0.5)
    return _cutout(_translate(image, generator), generator)


def _translate(image: Tensor, generator: torch.Generator) -> Tensor:
    height, width = image.shape[-2:]
    down, right = (_integer(-reach, reach + 1, generator) for reach in _parts(image, TRANSLATION))
    padded = F.pad(image, (max(right, 0), max(-right, 0), max(down, 0), max(-down, 0)))
    return padded[:, max(-down, 0) :, max(-right, 0) :][:, :height, :width]


def _cutout(image: Tensor, generator: torch.Generator) -> Tensor:
    mask = torch.ones_like(image[:1])
    ranges = []
    for side, part in zip(image.shape[-2:], _parts(image, CUTOUT), strict=True):
        centre = _integer(0, side + 1 - part % 2, generator)
        ranges.append((max(centre - part // 2, 0), min(centre - part // 2 + part, side)))
    (top, bottom), (left, right) = ranges
    mask[:, top:bottom, left:right] = 0
    return image * mask


def _parts(image: Tensor, share: float) -> list[int]:
    """A share of height and of width in whole pixels."""
    return [int(side * share + 0.5) for side in image.shape[-2:]]


def _integer(low: int, high: int, generator: torch.Generator) -> int:
    return int(torch.randint(low, high, (), generator=generator))
