"""Photographs and unfit files at any size, each with the reason for which curation drops it."""

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

Writer = Callable[[Path, Image.Image, Image.Image], dict[str, str]]


@pytest.fixture(scope="session")
def write_unfit() -> Writer:
    """write_unfit(folder, photo, other) fills a folder and gives the reason of each file, "" for those to be kept."""
    return write_all


@pytest.fixture(scope="session")
def write_broken() -> Callable[[Path, Image.Image], dict[str, str]]:
    """As write_unfit, for files that are no whole images."""
    return write_no_images


def write_all(folder: Path, photo: Image.Image, other: Image.Image) -> dict[str, str]:
    folder.mkdir(parents=True, exist_ok=True)
    return {
        **write_no_images(folder, photo),
        **_misshapen(folder, photo),
        **_copied(folder, photo),
        **_degraded(folder, photo, other),
    }


def jpeg(image: Image.Image, quality: int = 95, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality, subsampling=0, **options)
    return file.getvalue()


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()


def bomb(side: int) -> bytes:
    """A PNG of less than 100 bytes whose header claims side x side pixels."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(64))), (b"IEND", b"")]
    parts = [struct.pack(">I", len(d)) + name + d + struct.pack(">I", zlib.crc32(name + d)) for name, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def write_no_images(folder: Path, photo: Image.Image) -> dict[str, str]:
    whole = bytearray(png(photo))
    whole[len(whole) // 2] ^= 1
    files = {
        "truncated.jpg": jpeg(photo)[: len(jpeg(photo)) // 2],
        "empty.jpg": b"",
        "text.jpg": b"<html><body>404 Not Found</body></html>\n",
        "noise.webp": np.random.default_rng(0).bytes(4096),
        "flipped_bit.png": bytes(whole),
        "bomb.png": bomb(60_000),
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    (folder / "dangling.jpg").symlink_to(folder / "nowhere.jpg")
    os.mkfifo(folder / "pipe.jpg")
    files |= {"dangling.jpg": b"", "pipe.jpg": b""}
    return {name: "too_many_pixels" if name == "bomb.png" else "unreadable" for name in files}


def _misshapen(folder: Path, photo: Image.Image) -> dict[str, str]:
    width, height = photo.size
    pixels = np.asarray(photo)
    wide = Image.fromarray(np.concatenate([pixels, pixels[:, ::-1]] * 2, 1)[: height * 9 // 10])
    half = photo.resize((width * 2 // 5, height * 2 // 5), Image.Resampling.LANCZOS)
    images = {
        "small.png": (photo.resize((width // 3, height // 3), Image.Resampling.LANCZOS), "short_side"),
        "panorama.jpg": (wide, "aspect"),
        "grey.png": (photo.convert("L"), "grey"),
        "grey_rgb.png": (photo.convert("L").convert("RGB"), "grey"),
        "palette.png": (photo.quantize(256), "palette"),
        "upscaled.png": (half.resize(photo.size, Image.Resampling.BICUBIC), "upscaled"),
        "flat.png": (Image.new("RGB", photo.size, (120, 160, 220)), "flat"),
    }
    for name, (image, _) in images.items():
        (folder / name).write_bytes(png(image) if name.endswith("png") else jpeg(image))
    return {name: reason for name, (_, reason) in images.items()}


def _copied(folder: Path, photo: Image.Image) -> dict[str, str]:
    width, height = photo.size
    cropped = photo.crop((width // 50, height // 50, width - width // 100, height - height // 100))
    (folder / "photo.jpg").write_bytes(jpeg(photo))
    (folder / "photo_copy.jpg").write_bytes(jpeg(photo))
    (folder / "photo_cropped.jpg").write_bytes(jpeg(cropped, quality=90))
    return {"photo.jpg": "", "photo_copy.jpg": "exact_duplicate", "photo_cropped.jpg": "near_duplicate"}


def _degraded(folder: Path, photo: Image.Image, other: Image.Image) -> dict[str, str]:
    pixels = np.asarray(photo).astype(np.float32)
    noise = np.random.default_rng(0).normal(0, 30, pixels.shape)
    files = {
        "blurred.jpg": (jpeg(photo.filter(ImageFilter.BoxBlur(max(photo.size) // 500 + 2))), "blurred"),
        "noisy.png": (png(_image(pixels + noise)), "noisy"),
        "blocky.jpg": (jpeg(photo, quality=30), "blocky"),
        "overexposed.jpg": (jpeg(_image(pixels * 3 + 60)), "bright"),
        "underexposed.jpg": (jpeg(_image(pixels - 160)), "dark"),
        "cmyk.jpg": (jpeg(other.convert("CMYK")), ""),  # decoded to sRGB, as in training
    }
    for name, (data, _) in files.items():
        (folder / name).write_bytes(data)
    return {name: reason for name, (_, reason) in files.items()}


def _image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels.clip(0, 255).round().astype(np.uint8))
