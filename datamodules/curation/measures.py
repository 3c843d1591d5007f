"""The scores of one image that need no trained model: what stages 1 and 2 of curation compare with their bounds."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from datamodules.curation.blocking import blockiness
from datamodules.curation.niqe import BLOCK as NIQE_BLOCK
from datamodules.curation.niqe import NiqeParameters, niqe
from datamodules.curation.spectrum import high_band
from datamodules.image_io import to_unit

BLOCK = 32
"""Px per side of the blocks whose texture and noise are measured."""
_TILE, _TILES = 512, (4, 6)
"""Stage 2 looks at so many rows and columns of tiles, spread over the image."""
_STRIDE = 4
"""Shares of pixels are taken over every fourth pixel of every fourth row."""
_TEXTURE = 1.5
_EDGE, _EDGES = 24, 50
"""Edges rise within 24 px; tiles of fewer than 50 are passed over."""
_CONTRASTS = (40.0, 12.0)
"""They rise by 40 of 255 levels, so that noise is no slope; only where no tile has such edges, by 12."""


def preliminary_scores(pixels: Tensor) -> dict[str, float]:
    """The scores of stage 1 of (3,H,W) uint8 or uint16; NaN for what the image is too small for.

    chroma: mean distance of the channels from their mean, 0-1. high_band: dB, see `spectrum.high_band`. flat_share:
    share of the 32 px blocks whose luma deviates by less than 1.5 of 255 levels.
    """
    luma = luma_255(pixels)
    return {"chroma": _chroma(pixels), "high_band": high_band(luma), "flat_share": _flat_share(luma)}


def quality_scores(pixels: Tensor, parameters: NiqeParameters | None) -> dict[str, float]:
    """The scores of stage 2 of (3,H,W) uint8 or uint16, NIQE where parameters are given; NaN as in stage 1.

    sharpness, noise, blockiness: see these functions. dark_share and bright_share: shares of pixels of luma below 1/8
    and above 0.97. saturated_share: share of pixels of 98 % saturation (HSV) or more and a value above 0.3.
    """
    luma, few = luma_255(pixels), to_unit(pixels[:, ::_STRIDE, ::_STRIDE].contiguous())
    tiles, few_luma = _tiles(luma), luma[::_STRIDE, ::_STRIDE] / 255
    highest, lowest = few.amax(0), few.amin(0)
    scores = {
        "sharpness": sharpness(tiles),
        "noise": noise(_tiles(_to_255(pixels[1]))),
        "blockiness": blockiness(tiles),
        "dark_share": float((few_luma < 1 / 8).float().mean()),
        "bright_share": float((few_luma > 0.97).float().mean()),
        "saturated_share": float(((lowest <= 0.02 * highest) & (highest > 0.3)).float().mean()),
    }
    if parameters is not None:
        enough = math.prod(side // NIQE_BLOCK for side in luma.shape) >= 2
        scores["niqe"] = niqe(matlab_y(pixels), parameters) if enough else math.nan
    return scores


def luma_255(pixels: Tensor) -> Tensor:
    """Luma of BT.601 of (3,H,W) uint8 or uint16 as (H,W) float32, 0-255."""
    red, green, blue = pixels
    return _to_255(green).mul_(0.587).add_(_to_255(red), alpha=0.299).add_(_to_255(blue), alpha=0.114)


def matlab_y(pixels: Tensor) -> np.ndarray:
    """Y of MATLAB's `rgb2ycbcr` of (3,H,W) uint8 or uint16 as (H,W) float32, 16-235, rounded: what NIQE is made of."""
    red, green, blue = pixels
    luma = _to_255(green).mul_(128.553 / 255).add_(_to_255(red), alpha=65.481 / 255)
    return luma.add_(_to_255(blue), alpha=24.966 / 255).add_(16).round_().numpy()


def _to_255(channel: Tensor) -> Tensor:
    return channel.float() if channel.dtype == torch.uint8 else channel.float().div_(257)


def _chroma(pixels: Tensor) -> float:
    # means over 8 px leave out the colour noise of grey photographs
    side = min(8, *pixels.shape[1:])
    small = torch.stack([F.avg_pool2d(_to_255(channel)[None], side)[0] for channel in pixels]) / 255
    return float((small - small.mean(0)).abs().mean())


def _flat_share(luma: Tensor) -> float:
    if min(luma.shape) < BLOCK:
        return math.nan
    return float((_blocks(luma).std(-1, correction=0) < _TEXTURE).float().mean())


def _blocks(image: Tensor) -> Tensor:
    """(...,H,W) to (..., blocks, BLOCK**2), what exceeds whole blocks left out."""
    rows, columns = (side // BLOCK for side in image.shape[-2:])
    whole = image[..., : rows * BLOCK, : columns * BLOCK].unflatten(-2, (rows, BLOCK)).unflatten(-1, (columns, BLOCK))
    return whole.transpose(-3, -2).flatten(-2).flatten(-3, -2)


def _tiles(image: Tensor) -> Tensor:
    """(n,h,w) tiles of at most _TILE px that begin at multiples of 8, so that all see the same grid of JPEG."""
    height, width = (min(side, _TILE) for side in image.shape)
    tops, lefts = (
        sorted({*(np.linspace(0, length - side, count).astype(int) // 8 * 8).tolist()})
        for length, side, count in zip(image.shape, (height, width), _TILES, strict=True)
    )
    return torch.stack([image[top : top + height, left : left + width] for top in tops for left in lefts])


def sharpness(tiles: Tensor) -> float:
    """Share of their height that the sharpest edges rise by in one px, 0-1, in the blurrier of both axes.

    tiles is (n,H,W), 0-255. A Gaussian blur of deviation s px gives 1 / (s sqrt(2 pi)): 0.2 for 2 px; no edges at all
    give 0. The upper quartile of each tile's edges counts, and of the tiles the one below the sharpest tenth (ours).
    NaN where a side is below 25 px.
    """
    if min(tiles.shape[1:]) <= _EDGE:
        return math.nan
    return min(_steepness(tiles), _steepness(tiles.transpose(1, 2)))


def _steepness(tiles: Tensor) -> float:
    lines = tiles[:, ::2]
    steepest = F.max_pool1d(lines.diff(dim=-1).abs(), _EDGE, _EDGE // 2)
    height = F.max_pool1d(lines, _EDGE + 1, _EDGE // 2) + F.max_pool1d(-lines, _EDGE + 1, _EDGE // 2)
    for contrast in _CONTRASTS:
        found = [
            float(torch.quantile(slope[edge] / rise[edge], 0.75))
            for slope, rise, edge in zip(steepest, height, height >= contrast, strict=True)
            if int(edge.sum()) >= _EDGES
        ]
        if found:
            return float(np.percentile(found, 90))
    return 0.0


def noise(tiles: Tensor) -> float:
    """Deviation of the noise in the flattest tenth of the blocks that are neither black nor white, in units of [0,1].

    tiles is (n,H,W), 0-255. Source: Immerkaer, "Fast noise variance estimation", CVIU 1996, here by blocks (ours).
    """
    second = torch.tensor([1.0, -2.0, 1.0])
    if min(tiles.shape[1:]) < BLOCK + 2:
        return math.nan
    response = F.conv2d(tiles[:, None], torch.outer(second, second)[None, None])[:, 0].abs()
    deviation = _blocks(response).mean(-1) * math.sqrt(math.pi / 2) / 6
    level = _blocks(tiles[:, 1:-1, 1:-1]).mean(-1)
    counted = deviation[(level > 10) & (level < 245)]
    return float(torch.quantile(counted, 0.1)) / 255 if len(counted) else math.nan
