"""The planes of a video frame to RGB and back, by its colour tags (ITU-T H.273; BT.601, BT.709, BT.2020)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

UNSPECIFIED = 2
RGB, BT709, BT601 = 0, 1, 6
LIMITED, FULL = 1, 2

LUMA_WEIGHTS = {
    BT709: (0.2126, 0.0722),
    4: (0.30, 0.11),
    5: (0.299, 0.114),
    BT601: (0.299, 0.114),
    7: (0.212, 0.087),
    9: (0.2627, 0.0593),
}
"""Shares of red and blue in luma by H.273's number of the matrix; its others are no plain matrix."""

_SD_WIDTH, _SD_HEIGHT = 1280, 576


@dataclass(frozen=True)
class Colour:
    """The tags of a video: matrix, primaries and transfer by H.273's numbers (2: unspecified), range 0, 1 or 2.

    range: 1 is limited (16-235 in 8 bits, "tv"), 2 is full ("pc"), 0 is untold and read as limited.
    """

    matrix: int = UNSPECIFIED
    primaries: int = UNSPECIFIED
    transfer: int = UNSPECIFIED
    range: int = 0

    def resolved(self, size: tuple[int, int]) -> "Colour":
        """The same with the matrix that players take where none is told: BT.709 from HD on, BT.601 below."""
        if self.matrix != UNSPECIFIED:
            return self
        height, width = size
        return replace(self, matrix=BT601 if width < _SD_WIDTH and height <= _SD_HEIGHT else BT709)

    def at(self, small: tuple[int, int], large: tuple[int, int]) -> "Colour":
        """The tags of the upscaled video: these, unless a player would take another matrix at its size."""
        if self.matrix == RGB:  # encoders for video take YUV
            return replace(self, matrix=BT709, range=LIMITED)
        return self if self.resolved(large) == self.resolved(small) else self.resolved(small)


def to_rgb(planes: Sequence[Tensor], bits: int, matrix: int, full: bool) -> Tensor:
    """Integer planes of `bits` bits to (3,H,W) float32 in [0,1], clamped; nothing in between is rounded.

    planes: Y (H,W) with U and V of its size or half of it (rounded up) per side; G, B and R for matrix 0; or Y alone.
    Halved chroma lies at the left luma sample of a pair and between two rows (H.273 type 0, what H.264 assumes).
    ValueError: a matrix that is none of LUMA_WEIGHTS.
    """
    size = planes[0].shape
    if matrix == RGB and len(planes) == 3:
        green, blue, red = (plane.float() / (2**bits - 1) for plane in planes)
        return torch.stack([red, green, blue])
    forward, zero = _transform(matrix if len(planes) == 3 else BT709, bits, full)
    backward = torch.linalg.inv(forward)
    if len(planes) == 1:
        return ((planes[0].float() - zero[0]) / forward[0].sum()).clamp_(0, 1).expand(3, -1, -1)
    yuv = torch.stack([_enlarge(plane.float(), size) for plane in planes]).flatten(1)
    return _affine(backward, -backward @ zero, yuv).clamp_(0, 1).unflatten(1, size)


def from_rgb(
    rgb: Tensor, bits: int, matrix: int, full: bool, halved: tuple[bool, bool] = (True, True)
) -> tuple[Tensor, Tensor, Tensor]:
    """(3,H,W) in [0,1] (clamped) to Y, U and V: uint8 for 8 bits, else int32, rounded once.

    halved: U and V have half the rows, half the columns (then H, W must be even). Sited and refused as in `to_rgb`.
    """
    yuv = _affine(*_transform(matrix, bits, full), rgb.float().clamp(0, 1).flatten(1)).unflatten(1, rgb.shape[1:])
    chroma = yuv[1:]
    if halved[0]:
        chroma = (chroma[:, 0::2] + chroma[:, 1::2]) / 2
    if halved[1]:
        even, odd = chroma[..., 0::2], chroma[..., 1::2]
        before = torch.cat([even[..., :1], odd[..., :-1]], -1)
        chroma = (before + 2 * even + odd) / 4
    return _integer(yuv[0], bits), _integer(chroma[0], bits), _integer(chroma[1], bits)


def luma_weights(matrix: int) -> tuple[float, float]:
    """Shares of red and blue in luma; ValueError lists the matrices that have such."""
    if matrix not in LUMA_WEIGHTS:
        raise ValueError(f"colour matrix {matrix} (H.273) is not supported, expected one of {sorted(LUMA_WEIGHTS)}")
    return LUMA_WEIGHTS[matrix]


def _transform(matrix: int, bits: int, full: bool) -> tuple[Tensor, Tensor]:
    """RGB in [0,1] to levels of Y, U and V: a matrix (3,3) and an offset (3,), float64."""
    kr, kb = luma_weights(matrix)
    luma = torch.tensor([kr, 1 - kr - kb, kb], dtype=torch.float64)
    red, _, blue = torch.eye(3, dtype=torch.float64)
    rows = torch.stack([luma, (blue - luma) / (2 * (1 - kb)), (red - luma) / (2 * (1 - kr))])
    step = 2 ** (bits - 8)
    spans = torch.tensor([2**bits - 1] * 3 if full else [219 * step, 224 * step, 224 * step])
    zero = torch.tensor([0 if full else 16 * step, 128 * step, 128 * step], dtype=torch.float64)
    return rows * spans[:, None], zero


def _affine(matrix: Tensor, offset: Tensor, values: Tensor) -> Tensor:
    """matrix @ values + offset on values' device, in float32."""
    return torch.addmm(offset[:, None].to(values), matrix.to(values), values)


def _enlarge(plane: Tensor, size: Sequence[int]) -> Tensor:
    """A chroma plane (h,w) linearly at luma's size (H,W)."""
    height, width = size
    if plane.shape[1] < width:  # samples lie on the even columns
        following = torch.cat([plane[:, 1:], plane[:, -1:]], 1)
        plane = torch.stack([plane, (plane + following) / 2], -1).flatten(1)[:, :width]
    if plane.shape[0] < height:
        rows = (2 * plane.shape[0], plane.shape[1])
        plane = F.interpolate(plane[None, None], rows, mode="bilinear", align_corners=False)[0, 0, :height]
    return plane


def _integer(plane: Tensor, bits: int) -> Tensor:
    return plane.round().clamp_(0, 2**bits - 1).to(torch.uint8 if bits == 8 else torch.int32)
