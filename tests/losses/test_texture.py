import numpy as np
import pytest
import torch
from scipy.ndimage import uniform_filter
from torch import Tensor
from torch.nn import functional as F

from losses.texture import TextureLoss, texture_distances, texture_loss


def texture(seed: int = 0, batch: int = 1, side: int = 64) -> Tensor:
    return 0.5 + 0.1 * torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(seed))


def direct_texture(sr: Tensor, hr: Tensor, levels: int, window: int, epsilon: float) -> float:
    """Bands by convolution with the written-out kernels, energies by scipy, float64."""

    def log_rms(image: Tensor, level: int, signs: tuple[int, int]) -> np.ndarray:
        grey = (image.double() * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(dim=1, keepdim=True)
        for step in (2**i for i in range(level)):
            grey = F.conv2d(grey, torch.full((1, 1, 2, 2), 0.25, dtype=torch.float64), dilation=step)
        kernel = torch.outer(torch.tensor([1.0, signs[0]]), torch.tensor([1.0, signs[1]])).double() / 4
        band = F.conv2d(grey, kernel[None, None], dilation=2**level)[0, 0].numpy()
        half = window // 2
        return 0.5 * np.log(uniform_filter(band**2, window)[half:-half, half:-half] + epsilon**2)

    distances = [
        np.abs(log_rms(sr, level, signs) - log_rms(hr, level, signs)).mean(axis=(0, 1))
        for level in range(levels)
        for signs in ((1, -1), (-1, 1), (-1, -1))
    ]
    return float(np.mean(distances))


def test_equals_direct_convolution() -> None:
    sr, hr = 0.5 + 0.4 * (texture(1) - 0.5), texture(2)
    expected = direct_texture(sr, hr, levels=3, window=7, epsilon=0.02)
    assert texture_loss(sr, hr, levels=3, window=7, epsilon=0.02).item() == pytest.approx(expected, rel=1e-4)


def test_half_the_amplitude_is_log_two() -> None:
    hr = texture()
    sr = 0.5 + 0.5 * (hr - 0.5)
    assert texture_loss(sr, hr, epsilon=1e-5).item() == pytest.approx(np.log(2), rel=1e-3)
    assert texture_loss(hr + 0.1, hr).item() == pytest.approx(0.0, abs=1e-4)


def test_prefers_misplaced_detail_to_blur() -> None:
    hr = texture(side=96)
    blurred = F.avg_pool2d(F.pad(hr, (2,) * 4, mode="reflect"), 5, stride=1)
    misplaced = hr.roll((5, 9), (-2, -1))
    assert F.mse_loss(misplaced, hr) > F.mse_loss(blurred, hr)
    assert texture_loss(misplaced, hr) < 0.2 * texture_loss(blurred, hr)


def test_descent_restores_the_energy_of_a_blurred_image() -> None:
    hr = texture(side=64)
    sr = F.avg_pool2d(F.pad(hr, (1,) * 4, mode="reflect"), 3, stride=1)
    start, contrast = texture_loss(sr, hr), sr.std()
    for _ in range(20):
        sr = sr.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(texture_loss(sr, hr), sr)
        sr = sr - 0.004 * gradient / gradient.square().mean().sqrt()
    assert texture_loss(sr, hr) < 0.7 * start
    assert sr.std() > 1.1 * contrast


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_gradient_is_finite_on_flat_images(value: float) -> None:
    flat = torch.full((1, 3, 32, 32), value, requires_grad=True)
    texture_loss(flat, texture(side=32)).backward()
    assert flat.grad is not None
    assert flat.grad.isfinite().all()


def test_module_and_bfloat16() -> None:
    sr, hr = texture(1, batch=2).bfloat16(), texture(2, batch=2).bfloat16()
    expected = texture_distances(sr.float(), hr.float(), levels=2, window=5, epsilon=0.02)
    module = TextureLoss(levels=2, window=5, epsilon=0.02)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(module.per_image(sr, hr), expected)
        torch.testing.assert_close(module(sr, hr), expected.mean())


def test_errors_name_the_options() -> None:
    with pytest.raises(ValueError, match=r"17 x 40 px.*18.*losses\.texture\.levels"):
        texture_loss(torch.rand(1, 3, 17, 40), torch.rand(1, 3, 17, 40))
    with pytest.raises(ValueError, match="epsilon=0"):
        texture_loss(texture(), texture(), epsilon=0)
    with pytest.raises(ValueError, match="equal shapes"):
        texture_loss(texture(), texture(side=32))
