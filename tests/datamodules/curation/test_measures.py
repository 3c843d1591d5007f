import io
import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageFilter
from scipy.ndimage import gaussian_filter1d
from skimage.color import rgb2hsv, rgb2ycbcr
from skimage.restoration import estimate_sigma

from datamodules.curation.measures import luma_255, noise, preliminary_scores, quality_scores, sharpness
from datamodules.curation.niqe import read_niqe_parameters
from datamodules.curation.settings import PreliminaryBounds, QualityBounds
from datamodules.image_io import decode
from datamodules.synthetic import bundled_path

QUALITY, PRELIMINARY = QualityBounds(), PreliminaryBounds()


def pixels_of(image):
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def as_jpeg(image, quality, left=0, top=0):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).crop((left, top, image.width, image.height))


def with_noise(image, deviation):
    values = np.asarray(image, np.float32)
    noisy = values + np.random.default_rng(0).normal(0, deviation, values.shape)
    return Image.fromarray(np.clip(np.rint(noisy), 0, 255).astype(np.uint8))


def moved(image, length):
    """Motion blur along the rows."""
    values = np.asarray(image, np.float32)
    mean = np.mean([np.roll(values, shift, axis=1) for shift in range(length)], axis=0)
    return Image.fromarray(mean[:, length:].round().astype(np.uint8))


def with_exposure(image, stops):
    """Exposure changed in linear light, sRGB in and out."""
    values = np.asarray(image, np.float64) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4) * 2.0**stops
    linear = linear.clip(0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return Image.fromarray((encoded * 255).round().astype(np.uint8))


@pytest.fixture(scope="module")
def astronaut():
    return Image.open(bundled_path("astronaut.png")).convert("RGB")


@pytest.fixture(scope="module")
def rocket():
    return Image.open(bundled_path("rocket.jpg")).convert("RGB")


def quality(image):
    return quality_scores(pixels_of(image), None)


def test_luma_is_that_of_bt601(astronaut):
    pixels = pixels_of(astronaut)
    expected = (rgb2ycbcr(np.asarray(astronaut))[..., 0] - 16) * 255 / 219
    assert np.abs(luma_255(pixels).numpy() - expected).max() < 0.01
    assert torch.equal(luma_255(pixels.to(torch.uint16) * 257), luma_255(pixels))


def test_a_good_photograph_passes_all_bounds(astronaut):
    found = quality(astronaut)
    assert set(found) == {"sharpness", "noise", "blockiness", "dark_share", "bright_share", "saturated_share"}
    assert found["sharpness"] > QUALITY.sharpness
    assert found["noise"] < QUALITY.noise
    assert found["blockiness"] < QUALITY.blockiness
    assert found["saturated_share"] < QUALITY.saturated_share
    assert found["bright_share"] < QUALITY.bright_share


@pytest.mark.parametrize("deviation", [1, 2, 3])
def test_sharpness_of_a_blurred_edge_is_its_steepest_slope(deviation):
    edge = gaussian_filter1d(np.repeat([40.0, 40.0, 200.0], 64), deviation)
    tile = torch.from_numpy(np.maximum.outer(edge, edge)[None]).float()
    assert sharpness(tile) == pytest.approx(1 / (deviation * math.sqrt(2 * math.pi)), rel=0.1)


def test_blurred_photographs_fail_and_sharp_ones_with_blurred_ground_do_not(astronaut):
    for blurred in (
        astronaut.filter(ImageFilter.GaussianBlur(3)),
        astronaut.filter(ImageFilter.BoxBlur(5)),
        moved(astronaut, 21),
        moved(astronaut.transpose(Image.Transpose.TRANSPOSE), 21).transpose(Image.Transpose.TRANSPOSE),
    ):
        assert quality(blurred)["sharpness"] < QUALITY.sharpness
    large = Image.new("RGB", (1536, 1024))
    large.paste(astronaut.resize((1536, 1536)).filter(ImageFilter.GaussianBlur(8)))
    for left in (0, 512, 1024):
        large.paste(astronaut, (left, 512))
    assert quality(large)["sharpness"] > QUALITY.sharpness


@pytest.mark.parametrize("deviation", [2, 5, 15])
def test_noise_is_the_deviation_that_was_added(deviation, rocket):
    plain = np.full((512, 512), 120.0) + np.random.default_rng(1).normal(0, deviation, (512, 512))
    assert noise(torch.from_numpy(plain[None]).float()) * 255 == pytest.approx(deviation, rel=0.1)
    noisy = with_noise(rocket, deviation)
    expected = estimate_sigma(np.asarray(noisy)[..., 1].astype(float))
    assert quality(noisy)["noise"] * 255 == pytest.approx(expected, rel=0.3)


def test_noise_of_15_levels_fails(astronaut):
    assert quality(with_noise(astronaut, 15))["noise"] > QUALITY.noise


def table_step(image):
    """The five frequencies' median step in the luma table of the JPEG file that Pillow would write."""
    table = np.array(image.quantization[0]).reshape(8, 8)
    return float(np.median([table[0, 1], table[1, 0], table[1, 1], table[0, 2], table[2, 0]]))


@pytest.mark.parametrize("kept", [75, 50, 30, 20])
@pytest.mark.parametrize("corner", [(0, 0), (3, 5)])
def test_blockiness_is_the_step_of_the_jpeg_table_at_any_phase(kept, corner, astronaut):
    buffer = io.BytesIO()
    astronaut.save(buffer, "JPEG", quality=kept)
    found = quality(as_jpeg(astronaut, kept, *corner))["blockiness"]
    assert found == pytest.approx(table_step(Image.open(buffer)), abs=1)
    assert (found > QUALITY.blockiness) == (kept <= 30)


def test_blockiness_outlives_a_better_jpeg_and_is_nil_without_one(astronaut):
    assert quality(as_jpeg(as_jpeg(astronaut, 30), 92))["blockiness"] > QUALITY.blockiness
    assert quality(with_noise(astronaut, 2))["blockiness"] == 0


def test_exposure_and_saturation(astronaut):
    assert quality(with_exposure(astronaut, -5))["dark_share"] > QUALITY.dark_share
    assert quality(with_exposure(astronaut, 3))["bright_share"] > QUALITY.bright_share
    vivid = ImageEnhance.Color(astronaut).enhance(6)
    _, saturation, value = np.moveaxis(rgb2hsv(np.asarray(vivid)[::4, ::4]), -1, 0)
    found = quality(vivid)["saturated_share"]
    assert found == pytest.approx(np.mean((saturation >= 0.98) & (value > 0.3)), abs=1e-3)
    assert found > quality(astronaut)["saturated_share"] + 0.1


def test_grey_and_flat_images_fail(astronaut):
    grey = astronaut.convert("L").convert("RGB")
    noisy = Image.fromarray(np.stack([np.asarray(with_noise(grey, 1))[..., 0]] * 3, axis=2))
    for image in (grey, as_jpeg(grey, 80), noisy):
        assert preliminary_scores(pixels_of(image))["chroma"] < PRELIMINARY.chroma
    assert preliminary_scores(pixels_of(astronaut))["chroma"] > 10 * PRELIMINARY.chroma
    ramp = np.broadcast_to(np.linspace(20, 235, 1600)[None, :, None], (700, 1600, 3))
    for flat in (Image.new("RGB", (700, 600), (200, 30, 30)), Image.fromarray(ramp.round().astype(np.uint8))):
        assert preliminary_scores(pixels_of(flat))["flat_share"] > PRELIMINARY.flat_share
    assert preliminary_scores(pixels_of(astronaut))["flat_share"] < 0.5


def test_flat_share_counts_blocks():
    image = np.full((3, 64, 128), 90, np.uint8)
    image[:, :32, :32] = np.random.default_rng(0).integers(0, 256, (32, 32))
    assert preliminary_scores(torch.from_numpy(image))["flat_share"] == pytest.approx(7 / 8)


@pytest.mark.parametrize("size", [(1, 1), (1, 4000), (9, 20), (40, 40), (300, 8)])
def test_scores_of_any_size_are_numbers_or_nan(size, shared):
    parameters = read_niqe_parameters(shared / "weights/niqe/niqe_pris_params.npz")
    pixels = torch.full((3, *size), 99, dtype=torch.uint16)
    scores = preliminary_scores(pixels) | quality_scores(pixels, parameters)
    assert all(isinstance(score, float) for score in scores.values())
    assert math.isnan(scores["niqe"])


def test_16_bits_score_as_8_bits(rocket):
    pixels = pixels_of(rocket)
    wide = pixels.to(torch.uint16) * 257
    assert quality_scores(wide, None) == pytest.approx(quality_scores(pixels, None))
    assert preliminary_scores(wide) == pytest.approx(preliminary_scores(pixels), nan_ok=True)


def test_photographs_of_4k_pass_every_bound(shared):
    parameters = read_niqe_parameters(shared / "weights/niqe/niqe_pris_params.npz")
    # the softest, the most compressed and the greyest of them
    for name in ("immich-app__craft-beer", "buddiesofbudgie__tea-gardens", "pop-os__samuel-zeller-337041"):
        pixels = decode(shared / f"photos4k/{name}.jpg").pixels[:, :1536, :2048]
        scores = preliminary_scores(pixels) | quality_scores(pixels, parameters)
        for key in ("chroma", "high_band"):
            assert scores[key] > getattr(PRELIMINARY, key), (name, key)
        assert scores["flat_share"] < PRELIMINARY.flat_share
        assert scores["sharpness"] > QUALITY.sharpness
        for key in ("noise", "blockiness", "dark_share", "bright_share", "saturated_share", "niqe"):
            assert scores[key] < getattr(QUALITY, key), (name, key)
