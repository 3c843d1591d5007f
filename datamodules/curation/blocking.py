"""How coarsely an image was once rounded by JPEG, read off its pixels, whatever file they come in now."""

import math

import torch
from torch import Tensor

_COEFFICIENTS = ((0, 1), (1, 0), (1, 1), (0, 2), (2, 0))
"""The low frequencies (down, across) whose rounding is looked at: those that blocks are seen by."""
_STEPS = torch.arange(3.0, 100.0)
_ENOUGH = 100
"""Values that must not be zero before a step is believed."""
_AGREEMENT = 0.5
_EDGE = 8.0
"""Steps between pixels of more levels are edges of the picture and count as this much."""


def blockiness(tiles: Tensor) -> float:
    """The step in which JPEG rounded the low frequencies of its 8 px blocks; 0 where no rounding is seen.

    tiles is (n,H,W), 0-255, beginning at multiples of 8 of the image; the blocks may lie at any phase. The step is in
    units of JPEG's tables, the median of five frequencies: about 6 at Pillow's quality 75, 12 at 50, 21 at 30, 32 at
    20. NaN where a side is below 16 px. Source: the values of a rounded frequency lie on multiples of its step: Fan, de
    Queiroz, "Identification of bitmap compression history", IEEE TIP 2003, here by the largest step whose periodic mean
    is high (ours).
    """
    if min(tiles.shape[1:]) < 16:
        return math.nan
    top, left = _phase(tiles.transpose(1, 2)), _phase(tiles)
    blocks = tiles[:, top:, left:].unfold(1, 8, 8).unfold(2, 8, 8).reshape(-1, 64)
    steps = [_step(blocks @ _wave(*frequency)) for frequency in _COEFFICIENTS]
    return float(torch.tensor(steps).median())


def _phase(tiles: Tensor) -> int:
    """The column, 0-7, at which blocks begin: where steps between columns are largest on average."""
    steps = tiles.diff(dim=-1).abs().clamp(max=_EDGE).mean((0, 1))
    return (int(steps[: len(steps) // 8 * 8].view(-1, 8).mean(0).argmax()) + 1) % 8


def _wave(down: int, across: int) -> Tensor:
    """One function of the orthonormal 8 x 8 DCT, (64,)."""
    position = (torch.arange(8) + 0.5) * math.pi / 8
    rows, columns = (torch.cos(position * k) * (0.5 if k else math.sqrt(1 / 8)) for k in (down, across))
    return torch.outer(rows, columns).flatten()


def _step(values: Tensor) -> float:
    """The largest step on whose multiples the values lie, 0 if there is none."""
    values = values.abs()
    for step in _STEPS.flip(0).tolist():
        rounded_up = values[values >= step / 2]
        if len(rounded_up) >= _ENOUGH and float(torch.cos(rounded_up * (2 * math.pi / step)).mean()) > _AGREEMENT:
            return step
    return 0.0
