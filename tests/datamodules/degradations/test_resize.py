import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.degradations.resize import FILTERS, draw_factor, resize, scaled


@pytest.mark.parametrize("size", [(13, 17), (30, 20), (61, 75)])
@pytest.mark.parametrize(
    ("name", "pillow"), [("bilinear", Image.Resampling.BILINEAR), ("bicubic", Image.Resampling.BICUBIC)]
)
def test_antialiased_filters_are_pillows(name, pillow, size):
    image = np.random.default_rng(0).random((40, 50), dtype=np.float32)
    expected = np.asarray(Image.fromarray(image).resize(size[::-1], pillow))
    result = resize(torch.from_numpy(image)[None, None], size, name)[0, 0]
    np.testing.assert_allclose(result, expected, atol=1e-5)


def test_area_is_the_mean_of_the_covered_pixels():
    image = torch.rand(2, 3, 24, 36, generator=torch.Generator().manual_seed(0))
    expected = image.numpy().reshape(2, 3, 8, 3, 9, 4).mean((3, 5))
    np.testing.assert_allclose(resize(image, (8, 9), "area"), expected, atol=1e-6)


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("size", [(7, 90), (19, 23)])
def test_a_constant_stays_constant_up_to_the_border(name, size):
    result = resize(torch.full((1, 3, 31, 41), 0.37), size, name)
    torch.testing.assert_close(result, torch.full((1, 3, *size), 0.37), atol=1e-6, rtol=0)


def test_unknown_filter_is_refused():
    with pytest.raises(ValueError, match="'lanczos', expected one of area, bilinear, bicubic"):
        resize(torch.zeros(1, 3, 8, 8), (4, 4), "lanczos")


def test_factors_follow_their_probabilities():
    generator = torch.Generator().manual_seed(0)
    factors = np.array([draw_factor(generator, (0.2, 0.7, 0.1), (0.3, 1.5)) for _ in range(3000)])
    assert factors.min() >= 0.3
    assert factors.max() <= 1.5
    assert abs((factors > 1).mean() - 0.2) < 0.03
    assert abs((factors < 1).mean() - 0.7) < 0.03
    # Uniform inside each branch.
    assert abs(factors[factors > 1].mean() - 1.25) < 0.02
    assert abs(factors[factors < 1].mean() - 0.65) < 0.02


def test_scaled_never_vanishes():
    assert scaled((10, 1), 0.3) == (3, 1)
