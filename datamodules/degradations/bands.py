"""Linear maps along one axis whose outputs each look at a few neighbouring inputs: separable blurs and resizes.

Such a map is a matrix with a narrow band. Cut into blocks of rows it becomes a few small matrix products, which on one
CPU thread take a half to a sixth of the time of torch's convolutions and interpolations.
"""

from typing import NamedTuple

import torch
from torch import Tensor

_BLOCK = 32
_FEW = 5
"""Up to so many taps, whole rows are added up faster than multiplied."""


class Taps(NamedTuple):
    """What each output sums: the inputs (length out, taps) int64 times weights (length out, taps), on the CPU."""

    inputs: Tensor
    weights: Tensor


def along_height(image: Tensor, taps: Taps) -> Tensor:
    """Map (..., H, W) to (..., length out, W), in the dtype of the weights, which must be the image's."""
    index, weight = taps
    if index.shape[1] <= _FEW:
        return _sum_of_rows(image, index.to(image.device), weight.to(image.device))
    planes = image.reshape(-1, *image.shape[-2:])
    starts, blocks = _blocks(index, weight, planes.shape[1])
    blocks, width = blocks.to(image.device), blocks.shape[2]
    result = planes.new_empty(len(planes), len(index), planes.shape[2])
    for plane, target in zip(planes, result, strict=True):
        for block, start, rows in zip(blocks, starts, target.split(_BLOCK), strict=True):
            torch.mm(block[: len(rows)], plane[start : start + width], out=rows)
    return result.view(*image.shape[:-2], *result.shape[1:])


def _sum_of_rows(image: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    result = image.index_select(-2, index[:, 0]).mul_(weight[:, :1])
    for tap in range(1, index.shape[1]):
        result.addcmul_(image.index_select(-2, index[:, tap]), weight[:, tap : tap + 1])
    return result


def along_width(image: Tensor, taps: Taps) -> Tensor:
    """Map (..., H, W) to (..., H, length out), in the dtype of the weights, which must be the image's."""
    index, weight = taps
    lines = image.reshape(-1, image.shape[-1])
    starts, blocks = _blocks(index, weight, lines.shape[1])
    blocks, width = blocks.to(image.device), blocks.shape[2]
    result = lines.new_empty(len(lines), len(index))
    for block, start, columns in zip(blocks, starts, result.split(_BLOCK, 1), strict=True):
        torch.mm(lines[:, start : start + width], block[: columns.shape[1]].T, out=columns)
    return result.view(*image.shape[:-1], len(index))


def _blocks(index: Tensor, weight: Tensor, length: int) -> tuple[list[int], Tensor]:
    """First input of each block of outputs, and the blocks (count, _BLOCK, inputs); `length` inputs in all."""
    missing = -len(index) % _BLOCK
    if missing:
        index = torch.cat([index, index[-1:].expand(missing, -1)])
        weight = torch.cat([weight, weight.new_zeros(missing, weight.shape[1])])
    index, weight = (t.view(-1, _BLOCK, t.shape[1]) for t in (index, weight))
    first = index.amin((1, 2))
    width = int((index.amax((1, 2)) - first).max()) + 1
    first = first.clamp(max=length - width)
    blocks = weight.new_zeros(len(index), _BLOCK, width)
    return first.tolist(), blocks.scatter_add_(2, index - first[:, None, None], weight)
