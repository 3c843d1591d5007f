"""The picture that a vision-language model judges: a whole photograph and pieces of it at full size."""

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

SIDE = 1536
CROP = 372
MARGIN = 8
LABEL = 24
GREY = (96, 96, 96)


def contact_sheet(pixels: Tensor, side: int = SIDE, crop: int = CROP) -> Image.Image:
    """The whole image scaled down, above four labelled crops at full size: most detail, median, flattest and centre.

    pixels (3,H,W) uint8 or uint16; the sheet is RGB of 8 bits, no larger than side x side px. crop: px of a crop's
    side, smaller where the image is, or where four do not fit. Deterministic. Ours.
    """
    image = to_8_bits(pixels)
    _, height, width = image.shape
    crop = min(crop, height, width, (side - 5 * MARGIN) // 4)
    places = crop_places(image, crop)
    whole = _scaled_down(image, side - 2 * MARGIN, side - crop - 2 * LABEL - 2 * MARGIN)
    sheet_width = max(whole.width + 2 * MARGIN, len(places) * (crop + MARGIN) + MARGIN)
    sheet = Image.new("RGB", (sheet_width, LABEL + whole.height + LABEL + crop + 2 * MARGIN), GREY)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(16)
    draw.text((MARGIN, 2), f"whole photograph, {width} x {height} px, scaled down", "white", font)
    sheet.paste(whole, ((sheet_width - whole.width) // 2, LABEL))
    top = LABEL + whole.height + MARGIN
    for number, (name, (y, x)) in enumerate(places.items()):
        left = MARGIN + number * (crop + MARGIN)
        draw.text((left, top), f"full size: {name}", "white", font)
        sheet.paste(_picture(image[:, y : y + crop, x : x + crop]), (left, top + LABEL))
    return sheet


def to_8_bits(pixels: Tensor) -> Tensor:
    """(3,H,W) uint8; of uint16 the nearest of 256 levels."""
    if pixels.dtype == torch.uint8:
        return pixels
    if pixels.dtype != torch.uint16:
        raise ValueError(f"expected uint8 or uint16 pixels, found {pixels.dtype}")
    wide = pixels.numpy().astype(np.uint32)
    return torch.from_numpy(((wide * 255 + 32767) // 65535).astype(np.uint8))


def crop_places(pixels: Tensor, crop: int) -> dict[str, tuple[int, int]]:
    """Upper left corners (y, x) of the crops: centre, and of a grid of tiles those of most, median and least detail.

    Detail is the mean absolute difference of neighbouring pixels, channels averaged. pixels (3,H,W) uint8.
    """
    _, height, width = pixels.shape
    corners = [(y, x) for y in range(0, height - crop + 1, crop) for x in range(0, width - crop + 1, crop)]
    ranked = sorted(corners, key=lambda at: _detail(pixels[:, at[0] : at[0] + crop, at[1] : at[1] + crop]))
    return {
        "most detail": ranked[-1],
        "median detail": ranked[len(ranked) // 2],
        "least detail": ranked[0],
        "centre": ((height - crop) // 2, (width - crop) // 2),
    }


def _detail(tile: Tensor) -> float:
    grey = tile.to(torch.float32).mean(0)
    return float(grey.diff(dim=0).abs().sum() + grey.diff(dim=1).abs().sum()) / grey.numel()


def _scaled_down(pixels: Tensor, width: int, height: int) -> Image.Image:
    image = _picture(pixels)
    factor = min(width / image.width, height / image.height, 1.0)
    size = (max(1, int(image.width * factor)), max(1, int(image.height * factor)))
    return image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0) if size != image.size else image


def _picture(pixels: Tensor) -> Image.Image:
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
