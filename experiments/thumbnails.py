"""Small views of large images, quickly: a thumbnail, and a part at full size that shows what a thumbnail hides."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor

from datamodules.image_io import MAX_PIXELS, TooManyPixelsError, decode

RANKS = {"flat": 0.1, "middling": 0.5, "detailed": 0.95}
"""What a part may be asked to be: its rank by fine detail among the parts of the image, 1 for the most detailed."""
DARKEST, BRIGHTEST = 24, 231
"""Parts of a mean outside of this show little."""


@contextmanager
def any_size() -> Iterator[None]:
    """Lift Pillow's own limit of pixels for all threads; every file is checked for `MAX_PIXELS` here."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def thumbnail(path: Path, side: int) -> Image.Image:
    """The upright RGB image, its longer side at most `side` px; a JPEG is decoded at the next larger eighth alone.

    Raises what `decode` raises, or Pillow's errors.
    """
    return _shrunk(_upright(path, draft=side), side)


def thumbnail_and_part(path: Path, side: int, size: tuple[int, int], kind: str) -> tuple[Image.Image, Image.Image]:
    """The thumbnail, and a part of (height, width) px at full size of one of the kinds in RANKS; errors as above."""
    image = _upright(path)
    pixels = np.asarray(image)
    top, left = place_of_part(pixels, size, kind)
    return _shrunk(image, side), Image.fromarray(pixels[top : top + size[0], left : left + size[1]])


def _upright(path: Path, draft: int = 0) -> Image.Image:
    with Image.open(path) as image:
        if image.format in ("JPEG", "MPO"):
            if image.width * image.height > MAX_PIXELS:
                raise TooManyPixelsError(f"{path} has {image.width} x {image.height} pixels")
            if draft:
                image.draft("RGB", (draft, draft))
            ImageOps.exif_transpose(image, in_place=True)
            return image.convert("RGB")
    return Image.fromarray(_to_8_bits(decode(path).pixels))  # Pillow would cut 16 bits off and lose pixels below alpha


def _shrunk(image: Image.Image, side: int) -> Image.Image:
    factor = min(side / max(image.size), 1.0)
    width, height = (max(round(length * factor), 1) for length in image.size)
    return image.resize((width, height), reducing_gap=2.0)


def place_of_part(pixels: np.ndarray, size: tuple[int, int], kind: str) -> tuple[int, int]:
    """Top and left of the part of (H,W,3) uint8 whose fine detail has the kind's rank (ours).

    The image is divided into parts of (height, width) px, of which those neither nearly black nor nearly white compete;
    detail is the mean difference of green between neighbours in a row.
    """
    rows, columns = (max(length // part, 1) for length, part in zip(pixels.shape, size, strict=False))
    places = [(row * size[0], column * size[1]) for row in range(rows) for column in range(columns)]
    means, details = np.zeros(len(places)), np.zeros(len(places))
    for number, (top, left) in enumerate(places):  # part by part: no second copy of a large image
        green = pixels[top : top + size[0], left : left + size[1], 1]
        means[number] = green.mean()
        details[number] = np.abs(np.diff(green.astype(np.int16), axis=1)).mean() if green.shape[1] > 1 else 0
    fit = np.flatnonzero((means >= DARKEST) & (means <= BRIGHTEST))
    fit = fit if fit.size else np.arange(len(places))
    order = fit[np.argsort(details[fit], kind="stable")]
    return places[int(order[round(RANKS[kind] * (len(order) - 1))])]


def _to_8_bits(pixels: Tensor) -> np.ndarray:
    values = pixels.permute(1, 2, 0).numpy()
    return np.ascontiguousarray(values if values.dtype == np.uint8 else (values >> 8).astype(np.uint8))
