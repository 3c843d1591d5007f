import numpy as np
import pytest
import torch
from scipy.ndimage import correlate
from torch import Tensor
from torch.nn import functional as F

from lightning_modules.color_fix import color_fix

SIZES = [(40, 57), (5, 3), (1, 1)]


def pair(height: int = 64, width: int = 64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    sr, reference = (torch.rand(2, 3, height, width, generator=generator) for _ in range(2))
    return sr, reference


@pytest.mark.parametrize("size", SIZES)
def test_wavelet_equals_a_decomposition_level_by_level(size: tuple[int, int]) -> None:
    """StableSR's: details of five levels, of holes 1 to 16, are kept; what remains is the reference's."""
    kernel = np.outer([1, 2, 1], [1, 2, 1]) / 16

    def decomposed(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        details = np.zeros_like(image)
        for level in range(5):
            holes = 2**level
            spread = np.zeros((2 * holes + 1, 2 * holes + 1))
            spread[::holes, ::holes] = kernel
            low = correlate(image, spread[None, None], mode="nearest")
            details += image - low
            image = low
        return details, image

    sr, reference = pair(*size)
    expected = decomposed(sr.double().numpy())[0] + decomposed(reference.double().numpy())[1]
    np.testing.assert_allclose(color_fix(sr, reference, "wavelet").numpy(), expected, atol=1e-5)


def test_adain_gives_the_moments_of_the_reference() -> None:
    sr, reference = pair(40, 57)
    fixed = color_fix(0.2 * sr, reference, "adain").double().numpy()
    np.testing.assert_allclose(fixed.mean(axis=(2, 3)), reference.double().numpy().mean(axis=(2, 3)), atol=1e-5)
    np.testing.assert_allclose(fixed.std(axis=(2, 3)), reference.double().numpy().std(axis=(2, 3)), rtol=1e-3)


@pytest.mark.parametrize("method", ["none", "adain", "wavelet"])
def test_any_size_flat_images_and_the_image_itself(method: str) -> None:
    for size in SIZES:
        sr, _ = pair(*size)
        torch.testing.assert_close(color_fix(sr, sr, method), sr)
        flat = torch.full_like(sr, 0.25)
        assert color_fix(flat, sr, method).isfinite().all()


@pytest.mark.parametrize("method", ["adain", "wavelet"])
def test_a_tint_goes_and_the_detail_stays(method: str) -> None:
    rows = torch.linspace(0.2, 0.8, 96).view(1, 1, 96, 1)
    hr = rows.expand(1, 3, 96, 96) + 0.1 * (pair(96, 96)[0][:1] - 0.5)
    reference = F.avg_pool2d(F.pad(hr, (2,) * 4, mode="replicate"), 5, stride=1)
    tinted = hr + torch.tensor([0.1, -0.05, 0.15]).view(1, 3, 1, 1)
    fixed = color_fix(tinted, reference, method)
    assert (fixed - hr).abs().mean() < 0.2 * (tinted - hr).abs().mean()
    detail = [image - F.avg_pool2d(image, 5, stride=1, padding=2) for image in (fixed, hr)]
    assert torch.corrcoef(torch.stack([image[..., 8:-8, 8:-8].flatten() for image in detail]))[0, 1] > 0.99


def test_none_is_the_identity_and_errors_name_method_and_shapes() -> None:
    sr, reference = pair()
    assert torch.equal(color_fix(sr, reference, "none"), sr)
    with pytest.raises(ValueError, match=r"color_fix='histogram'.*wavelet"):
        color_fix(sr, reference, "histogram")
    with pytest.raises(ValueError, match=r"\(2, 3, 32, 64\)"):
        color_fix(sr, reference[..., :32, :], "wavelet")
