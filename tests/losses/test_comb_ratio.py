import numpy as np
import pytest
import torch
from scipy.ndimage import uniform_filter
from scipy.signal.windows import hann
from torch import Tensor

from losses.periodicity import CombRatio, comb_ratio


def noise_with_tile(size: tuple[int, int], pitch: int, rms: float, seed: int = 0) -> Tensor:
    rng = np.random.default_rng(seed)
    tile = rng.standard_normal((pitch, pitch))
    tile = (tile - tile.mean()) / tile.std() * rms
    rows, columns = np.arange(size[0]) % pitch, np.arange(size[1]) % pitch
    image = 0.5 + 8 / 255 * rng.standard_normal((3, *size)) + tile[np.ix_(rows, columns)]
    return torch.from_numpy(image).float()[None]


def direct_comb_ratio(image: Tensor, pitch: int) -> float:
    """From the definition: a Fourier sum at each named frequency, in float64, without an FFT."""
    grey = np.tensordot([0.299, 0.587, 0.114], image[0].double().numpy(), axes=1)
    height, width = grey.shape
    y = grey - uniform_filter(grey, 17, mode="mirror")
    s = 1.5 * np.abs(y).mean() + 1e-6
    y = s * np.tanh(y / s) * np.outer(hann(height, sym=False), hann(width, sym=False))

    def power(frequencies: list[float]) -> float:
        rows = np.exp(-2j * np.pi * np.outer(frequencies, np.arange(height)))
        columns = np.exp(-2j * np.pi * np.outer(np.arange(width), frequencies))
        return float((np.abs(rows @ y @ columns) ** 2).mean())

    off = power([(k + 0.5) / 32 for k in range(32)])
    return power([k / pitch for k in range(1, pitch)]) / off


@pytest.mark.parametrize("size", [(64, 64), (128, 192)])
def test_equals_a_direct_fourier_sum(size: tuple[int, int]) -> None:
    image = noise_with_tile(size, 16, rms=4 / 255)
    expected = [direct_comb_ratio(image, pitch) for pitch in (32, 16, 8)]
    assert comb_ratio(image)[0].tolist() == pytest.approx(expected, rel=1e-3)


def test_noise_has_a_ratio_of_one_and_a_grid_its_own_pitch() -> None:
    torch.testing.assert_close(comb_ratio(noise_with_tile((512, 512), 32, 0.0)), torch.ones(1, 3), atol=0.35, rtol=0)
    fine = comb_ratio(noise_with_tile((256, 256), 8, 6 / 255))[0]
    assert fine[2] > fine[1] > fine[0] > 5
    # a pattern that repeats after 64 px only: its odd harmonics lie between the teeth
    assert comb_ratio(noise_with_tile((256, 256), 64, 6 / 255))[0, 0] < 2


def test_a_smooth_grid_of_any_pitch_shows() -> None:
    y, x = np.mgrid[:256, :256]
    for column, pitch in enumerate((32, 16, 8)):
        wave = np.sin(2 * np.pi * y / pitch) * np.sin(2 * np.pi * x / pitch)
        image = noise_with_tile((256, 256), 8, 0.0) + torch.from_numpy(8 / 255 * wave).float()
        assert comb_ratio(image)[0, column] > 3


def test_other_sizes_are_cropped_in_the_centre() -> None:
    image = noise_with_tile((200, 141), 32, rms=4 / 255)
    torch.testing.assert_close(comb_ratio(image), comb_ratio(image[..., 4:196, 6:134]))


def test_a_flat_image_has_no_comb() -> None:
    torch.testing.assert_close(comb_ratio(torch.full((1, 3, 128, 128), 0.3)), torch.ones(1, 3), atol=1e-3, rtol=0)


def test_bfloat16_is_computed_in_float32() -> None:
    image = noise_with_tile((128, 128), 32, rms=4 / 255).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(comb_ratio(image), comb_ratio(image.float()))


def test_errors_name_size_and_pitch() -> None:
    with pytest.raises(ValueError, match="63 x 100 px"):
        comb_ratio(torch.rand(1, 3, 63, 100))
    with pytest.raises(ValueError, match="pitch of 12"):
        comb_ratio(torch.rand(1, 3, 64, 64), pitches=(12,))


def test_metric_is_the_median_over_images() -> None:
    images = torch.cat([noise_with_tile((128, 128), 16, rms / 255, seed=rms) for rms in (0, 2, 4, 9)])
    metric = CombRatio(16)
    metric.update(images[:3])
    metric.update(images[3:])
    ratios = sorted(comb_ratio(images, (16,)).flatten().tolist())
    assert metric.compute().item() == pytest.approx((ratios[1] + ratios[2]) / 2)
