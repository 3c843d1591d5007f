"""Reads and writes 8- and 16-bit images: EXIF orientation, ICC, alpha, metadata, size limits."""

import contextlib
import io
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageCms
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image

from datamodules.files import opened_beside
from datamodules.png16 import encode_png16, is_png16

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
FORMATS = "PNG, JPEG, WebP or BMP"
WRITABLE = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
LONGEST_SIDE = {"JPEG": 65500, "WEBP": 16383, "PNG": 2**31 - 1}
MAX_PIXELS = 300_000_000
ORIENTATION = 0x0112


class ImageReadError(ValueError):
    """A file that cannot be read as an image; the message is one sentence naming the file, found and expected."""


class TooManyPixelsError(ImageReadError):
    """An image of more pixels than is allowed, refused before any is decoded."""


@dataclass(frozen=True)
class LoadedImage:
    """A decoded image, upright.

    pixels is (3,H,W) RGB and alpha (1,H,W) or None, both uint8 or uint16 by bit_depth. icc and exif are the file's
    bytes, or None; icc is None too where the pixels were converted (CMYK to sRGB) or the profile was not one of RGB.
    """

    pixels: Tensor
    alpha_pixels: Tensor | None
    bit_depth: int
    icc: bytes | None
    exif: bytes | None

    @property
    def rgb(self) -> Tensor:
        """(3,H,W) float32 in [0,1]."""
        return to_unit(self.pixels)

    @property
    def alpha(self) -> Tensor | None:
        """(1,H,W) float32 in [0,1], 1 is opaque; None where the file has no alpha."""
        return None if self.alpha_pixels is None else to_unit(self.alpha_pixels)


def to_unit(pixels: Tensor) -> Tensor:
    """uint8 or uint16 pixels as float32 in [0,1]; float tensors pass unchanged."""
    if pixels.is_floating_point():
        return pixels
    return pixels.to(torch.float32) / (255.0 if pixels.dtype == torch.uint8 else 65535.0)


def list_images(folder: str | Path) -> list[Path]:
    """All images below a folder by suffix, hidden files left out, sorted by path relative to it; links are followed."""
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(
            f"expected a folder of images at {root}, found {'a file' if root.exists() else 'nothing'}"
        )
    found = [
        p for p in _files_below(root) if p.suffix.lower() in SUFFIXES and not p.name.startswith(".") and p.is_file()
    ]
    return sorted(found, key=lambda path: path.relative_to(root).as_posix())


def _files_below(root: Path) -> Iterator[Path]:
    seen: set[str] = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link to a folder above it
            folders.clear()
            continue
        seen.add(real)
        yield from (Path(folder, name) for name in files)


@dataclass(frozen=True)
class ImageHeader:
    """What a file says of itself before any pixel is decoded: upright size, Pillow's names of format and mode."""

    height: int
    width: int
    format: str
    mode: str


@contextlib.contextmanager
def _opened(source: Path | bytes, name: str, max_pixels: int) -> Iterator[Image.Image]:
    """The file opened by Pillow and checked for its size, any failure inside told as ImageReadError."""
    if isinstance(source, Path) and not source.exists():
        raise FileNotFoundError(f"no image file at {source}")
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # ours is checked below, with our own message
    try:
        empty = source.is_file() and source.stat().st_size == 0 if isinstance(source, Path) else not source
        if empty:
            raise ImageReadError(f"{name} is an empty file, expected a {FORMATS} image")
        with warnings.catch_warnings(), Image.open(source if isinstance(source, Path) else io.BytesIO(source)) as image:
            warnings.simplefilter("ignore")
            width, height = image.size
            if width * height > max_pixels:
                raise TooManyPixelsError(
                    f"{name} has {width} x {height} = {width * height} pixels, more than max_pixels={max_pixels}; "
                    "raise max_pixels if the file is to be trusted"
                )
            yield image
    except (ImageReadError, MemoryError):
        raise
    except Exception as error:  # Pillow's decoders raise a dozen kinds for broken files
        raise ImageReadError(
            f"{name} {_what_was_found(source)}, expected a whole PNG, JPEG, WebP or BMP image"
        ) from error
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _what_was_found(source: Path | bytes) -> str:
    if isinstance(source, Path) and source.is_dir():
        return "is a folder"
    head = source[:512] if isinstance(source, bytes) else source.read_bytes()[:512]
    starts = {b"\x89PNG": "PNG", b"\xff\xd8\xff": "JPEG", b"RIFF": "WebP", b"BM": "BMP"}
    for magic, kind in starts.items():
        if head.startswith(magic):
            return f"begins as a {kind} but is truncated or damaged"
    with contextlib.suppress(UnicodeDecodeError):
        if head.decode().isprintable() or "\n" in head.decode():
            return "holds text"
    return "is not an image of a known format"


def read_header(source: str | Path | bytes, name: str = "", max_pixels: int = MAX_PIXELS) -> ImageHeader:
    """A file's header, from its path or its bytes; errors as `decode`."""
    source = Path(source) if isinstance(source, str) else source
    with _opened(source, name or _name_of(source), max_pixels) as image:
        width, height = image.size
        upright = (width, height) if _orientation(image) >= 5 else (height, width)
        return ImageHeader(*upright, format=image.format or "", mode=image.mode)


def image_size(path: str | Path, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """(height, width) of the upright image, from the header alone; errors as `read_image`."""
    header = read_header(Path(path), max_pixels=max_pixels)
    return header.height, header.width


def read_image(path: str | Path, max_pixels: int = MAX_PIXELS) -> LoadedImage:
    """Decode a file as `decode` does; FileNotFoundError where there is none."""
    return decode(Path(path), max_pixels=max_pixels)


def decode(source: Path | bytes, name: str = "", max_pixels: int = MAX_PIXELS) -> LoadedImage:
    """Decode an image of any mode to upright RGB, from its path or its bytes; of several frames (MPO) the first.

    name stands for the file in messages. Raises ImageReadError where it is no whole image, TooManyPixelsError where it
    has more than max_pixels. 16-bit PNG is decoded by torchvision, because Pillow reduces 16-bit colour to 8 bits.
    """
    with _opened(source, name or _name_of(source), max_pixels) as image:
        deep = is_png16(_head(source))
        if not deep:
            image.load()  # before its EXIF is asked for: that would load a damaged PNG and hide the failure
        icc, exif, orientation = image.info.get("icc_profile"), image.info.get("exif"), _orientation(image)
        if deep:
            data = source if isinstance(source, bytes) else source.read_bytes()
            pixels = decode_image(torch.from_numpy(np.frombuffer(bytearray(data), np.uint8)), ImageReadMode.UNCHANGED)
        else:
            pixels = torch.from_numpy(np.array(_to_rgb(image))).permute(2, 0, 1)
            icc = None if image.mode == "CMYK" else icc
    # a profile of grey or CMYK cannot describe the RGB pixels handed on
    icc = icc if icc and icc[16:20] == b"RGB " else None
    pixels = _upright(pixels, orientation).contiguous()
    alpha = pixels[-1:] if pixels.shape[0] in (2, 4) else None
    colour = pixels[: 3 if pixels.shape[0] >= 3 else 1]
    return LoadedImage(colour.expand(3, -1, -1), alpha, 16 if pixels.dtype == torch.uint16 else 8, icc, exif)


def _name_of(source: Path | bytes) -> str:
    return str(source) if isinstance(source, Path) else "the image"


def _head(source: Path | bytes) -> bytes:
    if isinstance(source, bytes):
        return source[:26]
    with source.open("rb") as file:
        return file.read(26)


def _orientation(image: Image.Image) -> int:
    if image.format == "PNG" and "exif" not in image.info:
        return 1  # Pillow would decode all pixels to look behind them
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except Exception:  # damaged EXIF is no reason to refuse the pixels
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.has_transparency_data:
        return image.convert("RGBA")
    profile = image.info.get("icc_profile")
    if image.mode == "CMYK" and profile:
        image.load()  # a truncated file must not be taken for a bad profile
        with contextlib.suppress(ImageCms.PyCMSError, OSError):
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
            if converted is not None:
                return converted
    return image.convert("RGB")


def _upright(pixels: Tensor, orientation: int) -> Tensor:
    """Undo an EXIF orientation (1-8, TIFF 6.0 tag 274) on (C,H,W)."""
    if orientation in (2, 3, 7, 8):  # columns run backwards (7 and 8: before the transposition below, rows)
        pixels = pixels.flip(-1)
    if orientation in (3, 4, 6, 7):
        pixels = pixels.flip(-2)
    return pixels.transpose(-1, -2) if orientation >= 5 else pixels


def write_image(
    path: str | Path,
    rgb: Tensor,
    alpha: Tensor | None = None,
    bit_depth: int = 8,
    icc: bytes | None = None,
    exif: bytes | None = None,
    compression: int = 6,
) -> None:
    """Write (3,H,W) floats in [0,1] (clamped, rounded) as PNG, JPEG (quality 95, 4:4:4) or WebP, by suffix.

    alpha is (1,H,W) in [0,1]; bit_depth 16 needs PNG. compression: zlib's level for PNG of 8 bits, 0 to 9. EXIF
    orientation is reset to 1, as pixels are upright. The file appears whole or not at all. Raises ValueError for what
    the format cannot hold (alpha in JPEG: say which background is wanted by compositing before) and for non-finite
    pixels.
    """
    path = Path(path)
    kind = _checked_kind(path, rgb, alpha, bit_depth)
    pixels = (rgb if alpha is None else torch.cat([rgb, alpha.to(rgb)])).detach().float().cpu()
    if not bool(torch.isfinite(pixels).all()):
        raise ValueError(f"{path} was not written: the image holds non-finite values")
    scaled = (pixels.clamp(0, 1) * (2**bit_depth - 1)).round_().permute(1, 2, 0).numpy()
    tags = _exif_upright(exif)
    path.parent.mkdir(parents=True, exist_ok=True)
    with opened_beside(path) as file:
        if bit_depth == 16:
            tiff = tags[6:] if tags and tags.startswith(b"Exif\0\0") else tags
            file.write(encode_png16(scaled.astype(np.uint16), icc, tiff))
            return
        options: dict[str, Any] = {
            "JPEG": {"quality": 95, "subsampling": 0},
            "WEBP": {"quality": 95},
            "PNG": {"compress_level": compression},
        }[kind]
        options |= {"icc_profile": icc} if icc else {}
        options |= {"exif": tags} if tags else {}
        Image.fromarray(scaled.astype(np.uint8)).save(file, kind, **options)


def _checked_kind(path: Path, rgb: Tensor, alpha: Tensor | None, bit_depth: int) -> str:
    kind = WRITABLE.get(path.suffix.lower())
    if kind is None:
        raise ValueError(f"cannot write {path}: found suffix {path.suffix!r}, expected one of {', '.join(WRITABLE)}")
    if rgb.dim() != 3 or rgb.shape[0] != 3 or 0 in rgb.shape:
        raise ValueError(f"cannot write {path}: expected a non-empty (3,H,W) image, found {tuple(rgb.shape)}")
    if alpha is not None and alpha.shape != (1, *rgb.shape[1:]):
        raise ValueError(f"cannot write {path}: expected alpha {(1, *rgb.shape[1:])}, found {tuple(alpha.shape)}")
    if alpha is not None and kind == "JPEG":
        raise ValueError(f"cannot write {path}: JPEG holds no alpha; use .png or .webp, or drop the alpha")
    if bit_depth not in (8, 16) or (bit_depth == 16 and kind != "PNG"):
        raise ValueError(f"cannot write {path} with {bit_depth} bits: 8 fit every format, 16 only .png")
    if max(rgb.shape) > LONGEST_SIDE[kind]:
        found = f"{rgb.shape[2]} x {rgb.shape[1]} exceeds {kind}'s limit of {LONGEST_SIDE[kind]} px"
        raise ValueError(f"cannot write {path}: {found}; use .png")
    return kind


def _exif_upright(exif: bytes | None) -> bytes | None:
    tags = Image.Exif()
    try:
        tags.load(exif or b"")
        if ORIENTATION in tags:
            tags[ORIENTATION] = 1
        return tags.tobytes() if exif else None
    except Exception:  # EXIF that cannot be parsed might still say "rotate": it is left out
        return None
