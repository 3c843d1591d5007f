import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from datamodules.degradations.resize import FILTERS, matlab_bicubic, resize, resize_by_bands, scaled


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
    x = abs(x)
    if x <= 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0


def shrunk(line, scale):
    """imresize of one line: pixel centres at whole numbers and a half, borders repeated in mirror image."""
    mirrored = np.pad(line, 3 * scale, mode="symmetric")
    result = []
    for output in range(len(line) // scale):
        centre = (output + 0.5) * scale
        weights = [cubic((i - 3 * scale + 0.5 - centre) / scale) for i in range(len(mirrored))]
        result.append(np.dot(weights, mirrored) / sum(weights))
    return np.floor(np.clip(np.array(result), 0, 255) + 0.5)


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_matlab_bicubic_is_its_formula(scale):
    levels = np.random.default_rng(0).integers(0, 256, (3 * scale, 5 * scale)).astype(float)
    height_done = np.stack([shrunk(column, scale) for column in levels.T], 1)
    expected = np.stack([shrunk(row, scale) for row in height_done])
    image = torch.from_numpy(levels).float() / 255
    np.testing.assert_allclose(matlab_bicubic(image, scale) * 255, expected, atol=1e-4)


def test_matlab_bicubic_keeps_an_image_of_scale_one():
    image = torch.arange(256.0).view(1, 1, 16, 16) / 255
    assert torch.equal(matlab_bicubic(image, 1), image)
