import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from callbacks.spectrum import Spectrum, autocorrelation_picture, diverging, log_spectrum


def grid(side=256, pitch=32, rms=8 / 255, seed=0):
    """Mid-grey, a little noise, and one seeded random tile repeated every `pitch` pixels."""
    random = np.random.default_rng(seed)
    tile = np.tile(random.standard_normal((pitch, pitch)), (side // pitch, side // pitch))
    image = 0.5 + rms * tile + 1 / 255 * random.standard_normal((side, side))
    return torch.from_numpy(image.clip(0, 1)).float().expand(1, 3, -1, -1)


def test_log_spectrum_is_numpys():
    image = torch.rand(2, 3, 48, 40, generator=torch.Generator().manual_seed(0))
    luma = np.einsum("bchw,c->bhw", image.double().numpy(), [0.299, 0.587, 0.114])
    # numpy's hanning is symmetric; the periodic window is the symmetric one of n + 1 points without its last
    window = np.outer(np.hanning(49)[:-1], np.hanning(41)[:-1])
    decibel = 20 * np.log10(np.abs(np.fft.fftshift(np.fft.fft2(luma * window), axes=(1, 2))) / window.sum())
    expected = np.clip((decibel + 100) / 80, 0, 1)
    spectrum = log_spectrum(image).numpy()
    assert spectrum.shape == (2, 3, 48, 40)
    np.testing.assert_allclose(spectrum, np.repeat(expected[:, None], 3, axis=1), atol=1e-3)


def test_a_32_px_grid_peaks_at_multiples_of_a_32nd():
    spectrum = log_spectrum(grid())[0, 0].numpy()
    comb = spectrum[::8, ::8]  # zero frequency at 128, a 32nd cycle per pixel is 8 bins of 256
    between = spectrum[4::8, 4::8]
    assert np.median(comb) > np.median(between) + 0.2
    brightest = np.argwhere(spectrum >= np.sort(spectrum.ravel())[-50])
    nearest = np.abs((brightest + 4) % 8 - 4)
    assert nearest.max() <= 1  # the Hann window spreads a line over the bins beside it
    assert spectrum[128, 128] == spectrum.max()


def test_autocorrelation_picture_is_red_at_the_grid_and_white_elsewhere():
    picture = autocorrelation_picture(grid())[0].numpy()
    assert picture.shape == (3, 386, 386)
    lags = picture[:, ::2, ::2]
    np.testing.assert_array_equal(lags, picture[:, 1::2, 1::2])
    redness = lags[0] - lags[2]
    centre = 96
    dots = [redness[centre + y, centre + x] for y in range(-96, 97, 32) for x in range(-96, 97, 32)]
    assert min(dots) > 0.25
    assert abs(np.median(redness)) < 0.15
    np.testing.assert_allclose(lags, lags[:, ::-1, ::-1], atol=1e-3)


def test_no_grid_leaves_only_the_centre_red():
    noise = 0.5 + 0.02 * torch.randn(1, 3, 256, 256, generator=torch.Generator().manual_seed(1))
    lags = autocorrelation_picture(noise)[0, :, ::2, ::2].numpy()
    redness = (lags[0] - lags[2]).copy()
    assert redness[96, 96] > 0.25
    redness[96 - 2 : 96 + 3, 96 - 2 : 96 + 3] = 0
    assert redness.max() < 0.25


def test_small_and_flat_images_are_finite():
    for image in (torch.full((1, 3, 32, 48), 0.5), torch.full((1, 3, 32, 48), float("nan"))):
        for picture in (log_spectrum(image), autocorrelation_picture(image)):
            assert picture.isfinite().all()
            assert 0 <= picture.min() <= picture.max() <= 1


def test_colours_are_ordered_and_clipped():
    red, _, blue = diverging(torch.linspace(-2, 2, 41)[None, None])[0, :, 0]
    assert torch.equal(red[:10], red[:1].expand(10))
    assert (red[15] - blue[15]) < -0.2 < 0.2 < (red[25] - blue[25])


def test_logs_rows_beside_each_other(student, data, trainer_with, tmp_path):
    trainer_with(Spectrum(max_images=1)).fit(student, data)
    events = EventAccumulator(str(tmp_path / "run"), size_guidance={"images": 0}).Reload()
    assert set(events.Tags()["images"]) == {"spectrum/crop0", "autocorrelation/crop0"}
    assert events.Images("spectrum/crop0")[0].width == 3 * 32 + 2 * 2
    assert events.Images("autocorrelation/crop0")[0].width == 3 * 62 + 2 * 2


def test_of_a_larger_image_the_centre_is_drawn(student, data, trainer_with, tmp_path):
    trainer_with(Spectrum(max_images=1, largest=16)).fit(student, data)
    events = EventAccumulator(str(tmp_path / "run"), size_guidance={"images": 0}).Reload()
    spectrum = events.Images("spectrum/crop0")[0]
    assert (spectrum.height, spectrum.width) == (16, 3 * 16 + 2 * 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_any_float_dtype(dtype):
    image = grid(64).to(dtype)
    assert log_spectrum(image).dtype == autocorrelation_picture(image).dtype == torch.float32
