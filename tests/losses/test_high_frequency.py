import numpy as np
import pytest
import torch
from scipy.ndimage import correlate
from torch import Tensor

from losses.high_frequency import HighFrequencyLoss, high_frequencies, high_frequency_loss


def pair(height: int = 17, width: int = 23) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    sr, hr = (torch.rand(2, 3, height, width, generator=generator) for _ in range(2))
    return sr, hr


def scipy_high_frequencies(image: Tensor) -> np.ndarray:
    rows, columns = np.mgrid[-2:3, -2:3]
    kernel = np.exp(-(rows**2 + columns**2) / 2)
    kernel = (kernel / kernel.sum())[None, None]
    values = image.double().numpy()
    return values - correlate(values, kernel, mode="mirror")


@pytest.mark.parametrize("size", [(17, 23), (3, 4)])
def test_equals_equation_1_with_scipys_blur(size: tuple[int, int]) -> None:
    sr, hr = pair(*size)
    expected = np.abs(scipy_high_frequencies(sr) - scipy_high_frequencies(hr))
    np.testing.assert_allclose(high_frequencies(sr).numpy(), scipy_high_frequencies(sr), atol=1e-6)
    assert high_frequency_loss(sr, hr).item() == pytest.approx(expected.mean(), rel=1e-5)
    assert HighFrequencyLoss().per_image(sr, hr).tolist() == pytest.approx(expected.mean(axis=(1, 2, 3)), rel=1e-5)


def test_brightness_costs_nothing_and_detail_does() -> None:
    _, hr = pair(64, 64)
    assert HighFrequencyLoss()(hr + 0.2, hr).item() == pytest.approx(0, abs=1e-6)
    noise = 0.05 * torch.randn(hr.shape, generator=torch.Generator().manual_seed(1))
    assert HighFrequencyLoss()(hr + noise, hr) > 0.02


def test_autocast_changes_nothing_and_errors_name_sizes() -> None:
    sr, hr = pair()
    expected = high_frequency_loss(sr, hr)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(high_frequency_loss(sr, hr), expected)
    with pytest.raises(ValueError, match=r"\(2, 3, 17, 22\)"):
        high_frequency_loss(sr[..., 1:], hr)
    with pytest.raises(ValueError, match="2 x 23 px"):
        high_frequencies(sr[..., :2, :])
