"""JPEG compression and decompression as libjpeg does it with its default settings, bit for bit.

libjpeg works in integers: 16-bit fixed-point colour conversion and the "islow" DCT, whose passes are integer matrices
followed by a rounding shift. These numbers, and their quotients by powers of two, are exact in float64, so matrix
products give libjpeg's own result whatever their summation order, on any device and for any batch, and TF32 cannot
touch them.
"""

import io

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

# ITU-T T.81, tables K.1 and K.2.
_LUMA_TABLE = torch.tensor([
    [16, 11, 10, 16, 24, 40, 51, 61], [12, 12, 14, 19, 26, 58, 60, 55],
    [14, 13, 16, 24, 40, 57, 69, 56], [14, 17, 22, 29, 51, 87, 80, 62],
    [18, 22, 37, 56, 68, 109, 103, 77], [24, 35, 55, 64, 81, 104, 113, 92],
    [49, 64, 78, 87, 103, 121, 120, 101], [72, 92, 95, 98, 112, 100, 103, 99],
])  # fmt: skip
_CHROMA_TABLE = torch.full((8, 8), 99)
_CHROMA_TABLE[:4, :4] = torch.tensor([[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]])

# jccolor.c and jdcolor.c: 16-bit fixed point. The inverse acts on (Y, Cb - 128, Cr - 128).
_TO_YCC = torch.tensor([[19595, 38470, 7471], [-11059, -21709, 32768], [32768, -27439, -5329]]).double() / 2**16
_YCC_OFFSET = torch.tensor([2**15, 2**23 + 2**15 - 1, 2**23 + 2**15 - 1]).double() / 2**16
_TO_RGB = torch.tensor([[65536, 0, 91881], [65536, -22554, -46802], [65536, 116130, 0]]).double() / 2**16


def compress(image: Tensor, quality: int) -> Tensor:
    """Compress and decompress one image by the fastest way on its device, to the same bits.

    image (1, 3, H, W) in [0,1], values outside are clamped; quality from 1 to 100. Returns what `jpeg` returns: on the
    CPU from libjpeg itself through Pillow, in a tenth of the time. ValueError for a bad quality.
    """
    # Up to four columns libjpeg upsamples chroma without the triangle filter, `jpeg` with it.
    if image.device.type != "cpu" or image.shape[-1] <= 4:
        return jpeg(image, torch.tensor([quality]))
    if not 1 <= quality <= 100:
        raise ValueError(f"jpeg quality: found {quality}, expected integers from 1 to 100")
    # NumPy converts to 8 bits in a seventh of torch's time.
    levels = image[0].mul(255).add_(0.5).clamp_(0, 255).numpy().astype(np.uint8)
    code = io.BytesIO()
    Image.merge("RGB", [Image.fromarray(plane) for plane in levels]).save(code, "JPEG", quality=quality, subsampling=2)
    planes = Image.open(code).split()
    return torch.from_numpy(np.stack([np.asarray(plane) for plane in planes])).float().div_(255)[None]


def jpeg(image: Tensor, quality: Tensor) -> Tensor:
    """Compress and decompress images as libjpeg does: 4:2:0, islow DCT, triangle chroma upsampling.

    image (B, 3, H, W) in [0,1], values outside are clamped; quality (B,) integers from 1 to 100. Returns float32
    (B, 3, H, W) holding whole grey levels / 255, equal to Pillow's `save(quality=q, subsampling=2)` for W > 4
    (narrower images get no triangle filter in libjpeg). ValueError for a bad shape or quality.
    """
    if image.ndim != 4 or image.shape[1] != 3 or quality.shape != image.shape[:1]:
        raise ValueError(
            f"jpeg: found image {tuple(image.shape)}, quality {tuple(quality.shape)}; expected (B, 3, H, W), (B,)"
        )
    height, width = image.shape[-2:]
    rgb = torch.floor((image * 255 + 0.5).clamp(0, 255)).double()
    luma, chroma = _subsample(_rgb_to_ycc(rgb))
    luma_table, chroma_table = (t.to(image.device, non_blocking=True) for t in quantisation_tables(quality.cpu()))
    luma = _code(luma, luma_table)[..., :height, :width] + 128
    chroma = _code(chroma, chroma_table)[..., : (height + 1) // 2, : (width + 1) // 2]
    chroma = _triangle_upsample(chroma)[..., :height, :width]
    rgb = _ycc_to_rgb(torch.cat([luma, chroma], 1))
    return (rgb.float() / 255).clamp(0, 1)


def quantisation_tables(quality: Tensor) -> tuple[Tensor, Tensor]:
    """Return the luma and chroma tables (B, 8, 8) float64 of libjpeg's `jpeg_set_quality`, quality (B,)."""
    if quality.is_floating_point() or not bool(((quality >= 1) & (quality <= 100)).all()):
        raise ValueError(f"jpeg quality: found {quality.tolist()}, expected integers from 1 to 100")
    quality = quality.long()
    percent = torch.where(quality < 50, 5000 // quality, 200 - 2 * quality)[:, None, None]
    luma, chroma = (((table * percent + 50) // 100).clamp(1, 255) for table in (_LUMA_TABLE, _CHROMA_TABLE))
    return luma.double(), chroma.double()


def _rgb_to_ycc(rgb: Tensor) -> Tensor:
    matrix, offset = (t.to(rgb.device, non_blocking=True) for t in (_TO_YCC, _YCC_OFFSET))
    return torch.floor(matrix @ rgb.flatten(2) + offset[:, None]).unflatten(2, rgb.shape[2:])


def _ycc_to_rgb(ycc: Tensor) -> Tensor:
    """Y in 0..255 and chroma centred on 0, to RGB in 0..255."""
    matrix = _TO_RGB.to(ycc.device, non_blocking=True)
    return torch.floor(matrix @ ycc.flatten(2) + 0.5).unflatten(2, ycc.shape[2:]).clamp(0, 255)


def _subsample(ycc: Tensor) -> tuple[Tensor, Tensor]:
    """Level-shifted luma (B, 1, ...) and halved chroma (B, 2, ...), both edge-replicated to whole blocks."""
    height, width = ycc.shape[-2:]
    luma = F.pad(ycc[:, :1], (0, -width % 8, 0, -height % 8), mode="replicate")
    # jcprepct.c and jcsample.c: columns are replicated before the averaging, rows beyond an even height after it.
    chroma = F.pad(ycc[:, 1:], (0, -width % 16, 0, height % 2), mode="replicate")
    total = chroma[..., 0::2, 0::2] + chroma[..., 0::2, 1::2] + chroma[..., 1::2, 0::2] + chroma[..., 1::2, 1::2]
    # The rounding bias alternates 1, 2 along a row.
    bias = torch.arange(total.shape[-1], device=total.device) % 2 + 1
    chroma = torch.floor((total + bias) / 4)
    chroma = F.pad(chroma, (0, 0, 0, -chroma.shape[-2] % 8), mode="replicate")
    return luma - 128, chroma - 128


def _islow_matrix() -> Tensor:
    """The 8-point DCT of jfdctint.c as one matrix, sqrt(8) times orthonormal, in whole multiples of 2^-13.

    Its transpose is the inverse of jidctint.c.
    """
    x = torch.eye(8, dtype=torch.float64)
    s, d = x[:4] + x[4:].flip(0), (x[:4] - x[4:].flip(0)).flip(0)  # d is tmp4..tmp7
    even, odd = s[:2] + s[2:].flip(0), (s[:2] - s[2:].flip(0)).flip(0)  # tmp10, tmp11 and tmp12, tmp13
    z1 = 4433 * (odd[0] + odd[1])
    a, b, c, e = -7373 * (d[0] + d[3]), -20995 * (d[1] + d[2]), -16069 * (d[0] + d[2]), -3196 * (d[1] + d[3])
    z5 = 9633 * d.sum(0)
    rows = [
        8192 * (even[0] + even[1]), 12299 * d[3] + a + e + z5, z1 + 6270 * odd[1], 25172 * d[2] + b + c + z5,
        8192 * (even[0] - even[1]), 16819 * d[1] + b + e + z5, z1 - 15137 * odd[0], 2446 * d[0] + a + c + z5,
    ]  # fmt: skip
    return torch.stack(rows) / 2**13


_ISLOW = _islow_matrix()


def _code(plane: Tensor, table: Tensor) -> Tensor:
    """Transform, quantise and restore planes of whole blocks, in and out within -128..127."""
    batch, channels, height, width = plane.shape
    dct = _ISLOW.to(plane.device, non_blocking=True)
    rows, columns = (batch, channels, height, width // 8, 8), (batch, channels, height // 8, 8, width)
    # The first pass keeps 2 fractional bits, the second leaves coefficients 8 times too large.
    x = torch.floor(plane.view(rows) @ (4 * dct).T + 0.5)
    x = torch.floor((dct / 4) @ x.view(columns) + 0.5)
    x = x.view(batch, channels, height // 8, 8, width // 8, 8)
    step = table[:, None, None, :, None, :]
    # libjpeg rounds halves away from zero here; stretching by 2^-40 moves them there, and nothing else over a half.
    x = torch.floor(x / (step * (8 / (1 + 2**-40))) + 0.5) * step
    x = torch.floor((4 * dct).T @ x.view(columns) + 0.5)
    return torch.floor(x.view(rows) @ (dct / 32) + 0.5).view(plane.shape).clamp(-128, 127)


def _triangle_upsample(chroma: Tensor) -> Tensor:
    """Double both sides with weights 3/4 and 1/4 (`h2v2_fancy_upsample` of jdsample.c)."""
    near = F.pad(chroma, (0, 0, 1, 1), mode="replicate")
    middle = 3 * near[..., 1:-1, :]
    rows = torch.stack([middle + near[..., :-2, :], middle + near[..., 2:, :]], -2).flatten(-3, -2)
    near = F.pad(rows, (1, 1, 0, 0), mode="replicate")
    middle = 3 * near[..., 1:-1]
    return torch.floor(torch.stack([middle + near[..., :-2] + 8, middle + near[..., 2:] + 7], -1).flatten(-2) / 16)
