import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torch import nn

from datamodules.curation.settings import PreliminaryBounds
from datamodules.curation.spectrum import high_band
from datamodules.image_io import decode

LEAST = PreliminaryBounds().high_band
FILTERS = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS)
SIDE = 1024


def score(image):
    return high_band(torch.from_numpy(np.array(image.convert("L"), np.float32)))


def natural(slope=1.0, side=SIDE):
    """Noise whose amplitude falls with the frequency as that of photographs, 8 bits."""
    rng = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None])
    frequency[0, 0] = 1
    field = np.fft.irfft2(np.fft.rfft2(rng.normal(size=(side, side))) / frequency**slope, s=(side, side))
    return Image.fromarray(np.clip(128 + 45 * field / field.std(), 0, 255).astype(np.uint8))


def enlarged(image, factor, kind):
    """The same size, holding what 1 / factor of it held."""
    small = image.resize((round(image.width / factor), round(image.height / factor)), Image.Resampling.LANCZOS)
    return small.resize(image.size, kind)


def as_jpeg(image, quality):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer)


@pytest.fixture(scope="module")
def photographs(shared):
    names = ("buddiesofbudgie__lake-sherburne", "buddiesofbudgie__tea-gardens")
    images = [decode(shared / f"photos4k/{name}.jpg").pixels for name in names]
    crops = [pixels[:, 600 : 600 + SIDE, 1200 : 1200 + SIDE].permute(1, 2, 0).numpy() for pixels in images]
    return [Image.fromarray(crop) for crop in crops]


def test_natural_falls_score_about_zero():
    assert score(natural()) == pytest.approx(0, abs=1.5)
    assert score(natural(slope=1.5)) == pytest.approx(-1.5, abs=2)


@pytest.mark.parametrize("factor", [1.4, 1.5, 2, 4])
@pytest.mark.parametrize("kind", FILTERS)
def test_enlarged_images_are_told_whatever_the_filter(factor, kind):
    assert score(enlarged(natural(), factor, kind)) < LEAST - 6


@pytest.mark.parametrize("mode", ["bilinear", "bicubic", "nearest"])
def test_enlarging_by_torch_is_told_too(mode):
    small = torch.from_numpy(np.array(natural(side=512), np.float32))[None, None]
    large = nn.functional.interpolate(small, scale_factor=2, mode=mode)[0, 0].round().clamp(0, 255)
    assert high_band(large) < LEAST - 6


def test_photographs_pass_as_they_are_and_as_jpeg(photographs):
    for image in photographs:
        assert score(image) > LEAST + 4
        assert score(as_jpeg(image, 75)) > LEAST + 4


@pytest.mark.parametrize("kind", FILTERS)
def test_enlarged_photographs_are_told_below_jpeg(kind, photographs):
    for image in photographs:
        for factor in (1.5, 2):
            large = enlarged(image, factor, kind)
            assert score(large) < LEAST - 6
            assert score(as_jpeg(large, 90)) < LEAST


def test_enlarged_photographs_are_told_below_noise(photographs):
    rng = np.random.default_rng(0)
    for image in photographs:
        large = np.array(enlarged(image, 2, Image.Resampling.BICUBIC), np.float32)
        noisy = np.clip(large + rng.normal(0, 2, large.shape), 0, 255).astype(np.uint8)
        assert score(Image.fromarray(noisy)) < LEAST


def test_a_part_out_of_focus_does_not_count():
    sharp = natural(side=2048)
    blurred = sharp.filter(ImageFilter.GaussianBlur(6))
    blurred.paste(sharp.crop((0, 0, 1400, 1400)), (0, 0))
    assert score(blurred) > LEAST + 8


def test_strong_blur_is_left_to_the_sharpness():
    found = score(natural().filter(ImageFilter.GaussianBlur(3)))
    assert np.isnan(found) or found > LEAST


def test_flat_and_small_images_have_no_score():
    ramp = torch.linspace(0, 255, 1024).expand(1024, -1).contiguous()
    for image in (torch.full((600, 700), 77.0), ramp.round(), ramp.T.contiguous(), torch.rand(511, 2000) * 255):
        assert np.isnan(high_band(image))
