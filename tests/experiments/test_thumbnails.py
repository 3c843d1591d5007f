"""Thumbnails and parts against the images as the project's reader decodes them."""

import numpy as np
import pytest
from PIL import Image

from datamodules.image_io import decode
from experiments.thumbnails import place_of_part, thumbnail, thumbnail_and_part


def smooth(height, width):
    """Colours that differ in every corner, so that a flip or a turn is seen."""
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    return (np.stack([x, y, 1 - x * y], -1) * 255).round().astype(np.uint8)


def reference(path, size):
    pixels = decode(path).pixels.permute(1, 2, 0).numpy()
    pixels = (pixels / 257).round().astype(np.uint8) if pixels.dtype == np.uint16 else pixels
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BOX), float)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_jpeg_is_upright_and_small(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(smooth(600, 1600)).save(tmp_path / "a.jpg", quality=95, exif=exif)
    small = thumbnail(tmp_path / "a.jpg", 100)
    assert small.size == ((100, 38) if orientation < 5 else (38, 100))
    np.testing.assert_allclose(np.asarray(small, float), reference(tmp_path / "a.jpg", small.size), atol=6)


@pytest.mark.parametrize("kind", ["RGB", "RGBA", "L", "P", "CMYK", "16"])
def test_every_mode_looks_as_the_reader_decodes_it(tmp_path, kind):
    rgb = Image.fromarray(smooth(300, 400))
    path = tmp_path / ("a.jpg" if kind == "CMYK" else "a.png")
    image = Image.fromarray(smooth(300, 400)[..., 0].astype(np.uint16) * 257) if kind == "16" else rgb.convert(kind)
    if kind == "RGBA":
        image.putalpha(0)
    image.save(path)
    small = thumbnail(path, 80)
    assert small.mode == "RGB"
    np.testing.assert_allclose(np.asarray(small, float), reference(path, (80, 60)), atol=8)


def test_a_small_image_stays_as_it_is(tmp_path):
    Image.fromarray(smooth(20, 30)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(np.asarray(thumbnail(tmp_path / "a.png", 100)), smooth(20, 30))


def test_the_part_is_pixels_of_the_image(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (500, 700, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    small, part = thumbnail_and_part(tmp_path / "a.png", 70, (100, 150), "detailed")
    top, left = place_of_part(pixels, (100, 150), "detailed")
    assert small.size == (70, 50)
    np.testing.assert_array_equal(np.asarray(part), pixels[top : top + 100, left : left + 150])


def test_the_part_is_where_it_shows_something():
    pixels = np.full((400, 600, 3), 128, np.uint8)
    random = np.random.default_rng(0)
    pixels[100:200, 200:400] = random.integers(60, 200, (100, 200, 3))  # the detail
    pixels[300:400] = 255  # white shows nothing
    pixels[0:100, 0:200] += random.integers(0, 3, (100, 200, 3), dtype=np.uint8)
    assert place_of_part(pixels, (100, 200), "detailed") == (100, 200)
    top, left = place_of_part(pixels, (100, 200), "flat")
    assert pixels[top : top + 100, left : left + 200].std() == 0
    assert top < 300


@pytest.mark.parametrize("value", [0, 255])
def test_black_small_and_thin_images_have_a_part_too(value):
    assert place_of_part(np.full((50, 1, 3), value, np.uint8), (100, 200), "flat") == (0, 0)


def test_a_truncated_jpeg_is_refused(tmp_path):
    Image.fromarray(smooth(600, 800)).save(tmp_path / "a.jpg")
    data = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(data[: len(data) // 2])
    with pytest.raises(OSError, match="truncated"):
        thumbnail(tmp_path / "a.jpg", 100)
