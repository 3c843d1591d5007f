import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from datamodules.degradations.resize import (
    FILTERS,
    matlab_bicubic,
    matlab_bicubic_up,
    resize,
    resize_by_bands,
    scaled,
)
from losses.color import rgb_to_y


@pytest.mark.parametrize("size", [(50, 40), (133, 200), (99, 134), (15, 20), (100, 133), (1, 1)])
@pytest.mark.parametrize("name", FILTERS)
def test_bands_are_torchs_interpolation(name, size):
    image = torch.rand(1, 3, 100, 133, generator=torch.Generator().manual_seed(0))
    # torch computes positions in float32.
    torch.testing.assert_close(
        resize_by_bands(image, size, name), F.interpolate(image, size, mode=name), atol=5e-5, rtol=0
    )


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("size", [(70, 75), (200, 210), (300, 170)])
def test_either_way_of_resizing_is_torchs_interpolation(name, size):
    image = torch.rand(1, 3, 180, 190, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(resize(image, size, name), F.interpolate(image, size, mode=name), atol=5e-5, rtol=0)


def test_area_is_the_mean_of_the_covered_pixels():
    image = torch.rand(2, 3, 24, 36, generator=torch.Generator().manual_seed(0))
    expected = image.numpy().reshape(2, 3, 8, 3, 9, 4).mean((3, 5))
    np.testing.assert_allclose(resize(image, (8, 9), "area"), expected, atol=1e-6)
    np.testing.assert_allclose(resize_by_bands(image, (8, 9), "area"), expected, atol=1e-6)


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("size", [(7, 90), (19, 23), (190, 200)])
def test_a_constant_stays_constant_up_to_the_border(name, size):
    result = resize(torch.full((1, 3, 31, 41), 0.37), size, name)
    torch.testing.assert_close(result, torch.full((1, 3, *size), 0.37), atol=1e-6, rtol=0)


def test_unknown_filter_is_refused():
    with pytest.raises(ValueError, match="'lanczos', expected one of area, bilinear, bicubic"):
        resize(torch.zeros(1, 3, 8, 8), (4, 4), "lanczos")


def test_scaled_never_vanishes():
    assert scaled((10, 1), 0.3) == (3, 1)


@pytest.mark.parametrize("scale", [2, 4])
def test_matlab_bicubic_gives_set5_bit_for_bit(shared, scale):
    files = sorted((shared / "set5/HR").glob("*.png"))
    if not files:
        pytest.skip(f"no images in {shared / 'set5/HR'}")
    for file in files:
        (small,) = (shared / f"set5/LR_bicubic/X{scale}").glob(f"{file.stem}*.png")
        expected = np.array(Image.open(small).convert("RGB"))
        height, width = (scale * side for side in expected.shape[:2])
        hr = np.array(Image.open(file).convert("RGB"))[:height, :width]
        result = matlab_bicubic(torch.from_numpy(hr).permute(2, 0, 1)[None] / 255, scale)
        np.testing.assert_array_equal((result[0] * 255).round().byte().permute(1, 2, 0), expected)
        torch.testing.assert_close(result * 255, (result * 255).round(), atol=1e-4, rtol=0)


def cubic(x):
    x = np.abs(x)
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    return np.where(x <= 1, near, np.where(x < 2, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2, 0.0))


def imresize_matrix(before, after, width):
    """imresize of one line: pixel centres at whole numbers and a half, borders repeated in mirror image."""
    edge = 3 * width
    mirrored = np.pad(np.eye(before), ((edge, edge), (0, 0)), mode="symmetric")
    centres = (np.arange(after)[:, None] + 0.5) * before / after
    weights = cubic((np.arange(len(mirrored)) - edge + 0.5 - centres) / width)
    return weights / weights.sum(1, keepdims=True) @ mirrored


def eight_bits(levels):
    return np.floor(np.clip(levels, 0, 255) + 0.5)


def as_it_is(levels):
    return levels


def imresize(levels, size, width, finish=eight_bits):
    rows, columns = (imresize_matrix(*sides, width) for sides in zip(levels.shape, size, strict=True))
    return finish(finish(rows @ levels) @ columns.T)


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_matlab_bicubic_is_its_formula(scale):
    levels = np.random.default_rng(0).integers(0, 256, (3 * scale, 5 * scale)).astype(float)
    image = torch.from_numpy(levels).float() / 255
    expected = imresize(levels, (3, 5), scale)
    np.testing.assert_allclose(matlab_bicubic(image, scale) * 255, expected, atol=1e-4)


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("size", [(7, 11), (2, 1)])
def test_matlab_bicubic_up_is_its_formula(scale, size):
    image = torch.from_numpy(np.random.default_rng(0).random((3, *size), dtype=np.float32))
    result = matlab_bicubic_up(image, scale)
    assert result.dtype == torch.float32
    for plane, found in zip(image.double().numpy(), result, strict=True):
        expected = imresize(plane, (size[0] * scale, size[1] * scale), 1, finish=as_it_is)
        np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("resized", [matlab_bicubic, matlab_bicubic_up])
def test_matlab_bicubic_keeps_an_image_of_scale_one(resized):
    image = torch.arange(256.0).view(1, 1, 16, 16) / 255
    assert torch.equal(resized(image, 1), image)


def pixels(path):
    return torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)[None].float() / 255


def psnr_of_levels(one, other, border):
    inside = (slice(border, -border), slice(border, -border))
    return 10 * np.log10(255**2 / ((one - other)[inside] ** 2).mean())


SRCNN_TABLE = {"baby": 37.07, "bird": 36.81, "butterfly": 27.43, "head": 34.86, "woman": 32.14}
"""PSNR in dB of bicubic at x2 on each image of Set5 (Dong et al., ECCV 2014, table 1); their mean is 33.66."""


def test_set5_gives_the_literatures_bicubic(shared):
    found = {}
    for name in SRCNN_TABLE:
        hr = pixels(shared / f"set5/HR/{name}.png")
        hr = hr[..., : hr.shape[-2] // 2 * 2, : hr.shape[-1] // 2 * 2]
        y = eight_bits(rgb_to_y(hr)[0, 0].double().numpy() * 255)
        lr = imresize(y, (y.shape[0] // 2, y.shape[1] // 2), 2, finish=as_it_is)
        sr = eight_bits(matlab_bicubic_up(torch.from_numpy(lr), 2).double().numpy())
        found[name] = psnr_of_levels(sr, y, border=2)
    assert found == pytest.approx(SRCNN_TABLE, abs=0.006)
    assert np.mean(list(found.values())) == pytest.approx(33.66, abs=0.005)
