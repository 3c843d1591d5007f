import io
import struct
import time

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, ImageOps
from torchvision.io import ImageReadMode, decode_image

from datamodules.image_io import (
    ImageHeader,
    ImageReadError,
    decode,
    image_size,
    list_images,
    read_header,
    read_image,
    write_image,
)

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def picture(height=12, width=17, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def as_bytes(image):
    return (image.rgb * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".webp"])
def test_reads_lossless_files_exactly(tmp_path, suffix):
    pixels = picture()
    path = tmp_path / f"a{suffix}"
    Image.fromarray(pixels).save(path, lossless=True)
    loaded = read_image(path)
    assert np.array_equal(as_bytes(loaded), pixels)
    assert loaded.rgb.dtype == torch.float32
    assert loaded.bit_depth == 8
    assert loaded.alpha is None


def broken(folder, kind):
    path = folder / f"{kind}.jpg"
    buffer = io.BytesIO()
    Image.fromarray(picture(64, 64)).save(buffer, "JPEG" if kind.endswith("jpeg") else "PNG")
    content = {
        "truncated_png": buffer.getvalue()[:4000],
        "truncated_jpeg": buffer.getvalue()[:2000],
        "half_header": buffer.getvalue()[:20],
        "text": b"this is a text\nnamed .jpg\n",
        "empty": b"",
        "noise": bytes(picture(9, 9).tobytes()),
        "zero_width": buffer.getvalue()[:16] + struct.pack(">I", 0) + buffer.getvalue()[20:],
    }[kind]
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("kind", "found"),
    [
        ("truncated_png", "begins as a PNG but is truncated or damaged"),
        ("truncated_jpeg", "begins as a JPEG but is truncated or damaged"),
        ("half_header", "begins as a PNG but is truncated or damaged"),
        ("zero_width", "begins as a PNG but is truncated or damaged"),
        ("text", "holds text"),
        ("empty", "is an empty file"),
        ("noise", "is not an image of a known format"),
    ],
)
def test_a_broken_file_is_one_clear_sentence(tmp_path, kind, found):
    path = broken(tmp_path, kind)
    with pytest.raises(ImageReadError) as caught:
        read_image(path)
    message = str(caught.value)
    assert str(path) in message
    assert found in message
    assert "expected a" in message
    assert "\n" not in message


def test_a_truncated_16_bit_png_is_refused(tmp_path):
    path = tmp_path / "deep.png"
    write_image(path, torch.rand(3, 40, 40), bit_depth=16)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(ImageReadError, match="truncated or damaged"):
        read_image(path)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no image file at .*nothing\.png"):
        read_image(tmp_path / "nothing.png")
    with pytest.raises(ImageReadError, match="is a folder"):
        read_image(tmp_path)


def test_too_many_pixels_are_refused_before_decoding_and_pillow_keeps_its_limit(tmp_path):
    path = tmp_path / "wide.png"
    Image.new("L", (30000, 40)).save(path)
    before = Image.MAX_IMAGE_PIXELS
    with pytest.raises(ImageReadError, match=r"30000 x 40 = 1200000 pixels, more than max_pixels=1000000"):
        read_image(path, max_pixels=1_000_000)
    assert read_image(path).rgb.shape == (3, 40, 30000)
    assert before == Image.MAX_IMAGE_PIXELS


def test_one_pixel(tmp_path):
    Image.new("RGB", (1, 1), (255, 0, 51)).save(tmp_path / "dot.png")
    assert torch.allclose(read_image(tmp_path / "dot.png").rgb.flatten(), torch.tensor([1.0, 0.0, 0.2]))


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA"])
def test_modes_become_rgb_and_alpha(tmp_path, mode):
    has_alpha = mode.endswith("A")
    image = Image.fromarray(picture(channels=4 if has_alpha else 3)).convert(mode)
    image.save(tmp_path / "a.png")
    loaded = read_image(tmp_path / "a.png")
    assert np.array_equal(as_bytes(loaded), np.asarray(image.convert("RGB")))
    if has_alpha:
        alpha = (loaded.alpha[0] * 255).round().to(torch.uint8).numpy()
        assert np.array_equal(alpha, np.asarray(image.convert("RGBA"))[..., 3])
    else:
        assert loaded.alpha is None


def test_palette_with_transparent_entry(tmp_path):
    image = Image.fromarray(picture(channels=1)[..., 0] % 4, "P")
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.save(tmp_path / "a.png", transparency=2)
    alpha = read_image(tmp_path / "a.png").alpha
    assert np.array_equal(alpha[0].numpy() == 0, np.asarray(image) == 2)


def test_cmyk_jpeg_becomes_srgb_without_its_profile(tmp_path):
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=95)
    loaded = read_image(tmp_path / "a.jpg")
    red, green, blue = loaded.rgb.mean((1, 2))
    assert red > 0.9
    assert green < 0.1
    assert blue < 0.1
    assert loaded.icc is None


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_as_by_pillow(tmp_path, orientation):
    image = Image.fromarray(picture())
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as opened:
        expected = np.asarray(ImageOps.exif_transpose(opened))
    assert np.array_equal(as_bytes(read_image(tmp_path / "a.png")), expected)
    assert image_size(tmp_path / "a.png") == expected.shape[:2]


@pytest.mark.parametrize("channels", [3, 4])
def test_16_bit_png_round_trip_keeps_all_bits(tmp_path, channels):
    deep = np.random.default_rng(1).integers(0, 65536, (9, 11, channels), dtype=np.uint16)
    unit = torch.from_numpy(deep.astype(np.float32) / 65535).permute(2, 0, 1)
    path = tmp_path / "a.png"
    write_image(path, unit[:3], unit[3:] if channels == 4 else None, bit_depth=16, icc=SRGB)
    independent = decode_image(str(path), ImageReadMode.UNCHANGED)
    assert np.array_equal(independent.permute(1, 2, 0).numpy(), deep)
    loaded = read_image(path)
    assert loaded.bit_depth == 16
    assert torch.equal(loaded.rgb, unit[:3])
    assert loaded.icc == SRGB
    with Image.open(path) as opened:  # a second reader accepts all chunks
        opened.verify()


def test_16_bit_grey(tmp_path):
    deep = np.random.default_rng(2).integers(0, 65536, (9, 11), dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "a.png")
    loaded = read_image(tmp_path / "a.png")
    assert loaded.bit_depth == 16
    assert torch.equal(loaded.rgb[2], torch.from_numpy(deep.astype(np.float32)) / 65535)


@pytest.mark.parametrize(("name", "bit_depth"), [("a.png", 8), ("a.png", 16), ("a.jpg", 8), ("a.webp", 8)])
def test_metadata_is_kept_and_orientation_reset(tmp_path, name, bit_depth):
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Camera"
    exif.get_ifd(0x8769)[0x829A] = 0.5
    write_image(tmp_path / name, torch.rand(3, 8, 10), bit_depth=bit_depth, icc=SRGB, exif=exif.tobytes())
    loaded = read_image(tmp_path / name)
    again = Image.Exif()
    again.load(loaded.exif)
    assert loaded.icc == SRGB
    assert (again[0x0112], again[0x010F], float(again.get_ifd(0x8769)[0x829A])) == (1, "Camera", 0.5)
    assert loaded.rgb.shape == (3, 8, 10)


def test_png_and_webp_keep_alpha_and_jpeg_refuses_it(tmp_path):
    rgb, alpha = torch.rand(3, 8, 8), torch.randint(0, 256, (1, 8, 8)) / 255
    for name in ("a.png", "a.webp"):
        write_image(tmp_path / name, rgb, alpha)
        assert torch.equal(read_image(tmp_path / name).alpha, alpha)
    with pytest.raises(ValueError, match="JPEG holds no alpha"):
        write_image(tmp_path / "a.jpg", rgb, alpha)


def test_jpeg_is_written_without_chroma_subsampling(tmp_path):
    write_image(tmp_path / "a.jpg", torch.rand(3, 16, 16))
    with Image.open(tmp_path / "a.jpg") as image:
        assert {component[1:3] for component in image.layer} == {(1, 1)}


@pytest.mark.parametrize(
    ("name", "rgb", "bit_depth", "message"),
    [
        ("a.tga", torch.zeros(3, 4, 4), 8, "suffix '.tga'"),
        ("a.jpg", torch.zeros(3, 4, 4), 16, "16 only .png"),
        ("a.png", torch.zeros(1, 4, 4), 8, r"\(3,H,W\)"),
        ("a.png", torch.zeros(3, 0, 4), 8, "non-empty"),
        ("a.png", torch.full((3, 4, 4), float("nan")), 8, "non-finite"),
        ("a.webp", torch.zeros(3, 1, 16384), 8, "limit of 16383"),
        ("a.jpg", torch.zeros(3, 1, 120000), 8, "limit of 65500"),
    ],
)
def test_what_cannot_be_written_is_said_and_leaves_nothing(tmp_path, name, rgb, bit_depth, message):
    with pytest.raises(ValueError, match=message):
        write_image(tmp_path / name, rgb, bit_depth=bit_depth)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "a.jpg"
    write_image(path, torch.zeros(3, 4, 4))
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"(?i)exif"):
        write_image(path, torch.ones(3, 4, 4), icc=None, exif=b"Exif\0\0" + oversized_exif())
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.jpg"]


def oversized_exif():
    exif = Image.Exif()
    exif[0x010F] = "x" * 70000  # a JPEG segment holds 65533 bytes
    return exif.tobytes()[6:]


def test_list_images_is_recursive_sorted_and_skips_hidden_files(tmp_path):
    for name in ("b.PNG", "a/c.jpeg", "a.webp", "notes.txt", "._b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    names = [path.relative_to(tmp_path).as_posix() for path in list_images(tmp_path)]
    assert names == ["a.webp", "a/c.jpeg", "b.PNG"]
    with pytest.raises(FileNotFoundError, match="nowhere"):
        list_images(tmp_path / "nowhere")


def test_real_files_of_many_kinds(shared):
    deep = read_image(shared / "low_quality" / "tree_alpha_16bit.png")
    assert deep.bit_depth == 16
    assert deep.alpha is not None
    grey = read_image(shared / "low_quality" / "wolf_gray.jpg")
    assert torch.equal(grey.rgb[0], grey.rgb[1])
    mpo = read_image(shared / "photos4k" / "pierotofy__DJI_0030.jpg")
    assert mpo.rgb.shape[1:] == image_size(shared / "photos4k" / "pierotofy__DJI_0030.jpg")


def test_a_damaged_png_is_not_taken_for_one_with_black_rows(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    data = bytearray((tmp_path / "a.png").read_bytes())
    data[len(data) // 2] ^= 1
    with pytest.raises(ImageReadError, match="truncated or damaged"):
        decode(bytes(data), "a.png")


def test_a_header_is_read_without_decoding(tmp_path):
    Image.new("L", (9000, 9000)).save(tmp_path / "a.png")
    before = time.process_time()
    assert read_header(tmp_path / "a.png") == ImageHeader(9000, 9000, "PNG", "L")
    assert time.process_time() - before < 0.1


def test_bytes_decode_as_their_file(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    found = decode((tmp_path / "a.png").read_bytes())
    assert torch.equal(found.pixels, read_image(tmp_path / "a.png").pixels)
    assert found.pixels.shape == (3, 40, 24)
    assert read_header((tmp_path / "a.png").read_bytes()) == ImageHeader(40, 24, "PNG", "RGB")
