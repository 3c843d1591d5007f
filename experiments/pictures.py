"""Sheets of labelled images: the same crop by every method, as it is, as spectrum and as autocorrelation map."""

from collections.abc import Mapping, Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

from callbacks.image_panel import to_uint8
from callbacks.spectrum import autocorrelation_picture, log_spectrum

GAP = 6
LABEL = 20
MARGIN = 130


def raise_contrast(image: Tensor, factor: float) -> Tensor:
    """Deviations from the mean colour times `factor`, about mid-grey, (3,H,W) in [0,1]: faint grids become visible."""
    return ((image - image.mean(dim=(-2, -1), keepdim=True)) * factor + 0.5).clamp(0, 1)


def crop_rows(crops: Mapping[str, Tensor], title: str, contrast: float) -> dict[str, list[Tensor]]:
    """Rows of one crop (3,S,S) by several methods: as it is, or (contrast > 1) with contrast raised and both maps."""
    images = [image.clamp(0, 1) for image in crops.values()]
    if contrast == 1:
        return {title: images}
    stack = torch.stack(images)
    maps = F.interpolate(autocorrelation_picture(stack), size=stack.shape[-2:], mode="area")
    return {
        f"{title}\ncontrast x {contrast:g}": [raise_contrast(image, contrast) for image in images],
        f"{title}\nspectrum": list(log_spectrum(stack)),
        f"{title}\nautocorrelation": list(maps),
    }


def sheet(rows: Mapping[str, Sequence[Tensor]], columns: Sequence[str]) -> Image.Image:
    """Images (3,S,S) in [0,1] in a labelled grid: `rows` by their title, `columns` in order."""
    side = next(iter(rows.values()))[0].shape[-1]
    size = (MARGIN + len(columns) * (side + GAP), LABEL + len(rows) * (side + GAP))
    page = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(13)
    for column, title in enumerate(columns):
        draw.text((MARGIN + column * (side + GAP) + 2, 2), title, fill="black", font=font)
    for row, (title, images) in enumerate(rows.items()):
        top = LABEL + row * (side + GAP)
        draw.multiline_text((4, top + 4), title, fill="black", font=font)
        for column, image in enumerate(images):
            pixels = to_uint8(image).permute(1, 2, 0).cpu().numpy()
            page.paste(Image.fromarray(pixels), (MARGIN + column * (side + GAP), top))
    return page
