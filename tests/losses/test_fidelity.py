import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import structural_similarity
from torch import Tensor
from torchmetrics import Metric

from losses.color import color_error, rgb_to_y
from losses.fidelity import (
    L1,
    L2,
    ColorError,
    PsnrRgb,
    PsnrY,
    SsimRgb,
    SsimY,
    l1,
    l2,
    psnr,
    psnr_rgb,
    ssim,
    ssim_rgb,
)


def pair(seed: int = 0, size: tuple[int, int] = (40, 33), batch: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hr = torch.rand(batch, 3, *size, generator=generator)
    return (hr + 0.1 * torch.randn(hr.shape, generator=generator)).clamp(0, 1), hr


def numpy_y(image: Tensor) -> np.ndarray:
    """MATLAB's rgb2ycbcr for doubles in [0, 1], first channel."""
    return (16 + np.tensordot(image.double().numpy(), [65.481, 128.553, 24.966], axes=([-3], [0]))) / 255


def read(path: Path) -> Tensor:
    return torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)[None].float() / 255


def test_y_spans_studio_swing() -> None:
    ends = rgb_to_y(torch.stack([torch.zeros(3, 1, 1), torch.ones(3, 1, 1)]))
    assert ends.flatten().tolist() == pytest.approx([16 / 255, 235 / 255])
    green = rgb_to_y(torch.tensor([0.0, 1.0, 0.0]).view(1, 3, 1, 1))
    assert green.item() == pytest.approx((16 + 128.553) / 255)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_l1_and_l2_are_means_in_float32(dtype: torch.dtype) -> None:
    sr, hr = (image.to(dtype) for image in pair())
    difference = sr.double().numpy() - hr.double().numpy()
    assert L1()(sr, hr).item() == pytest.approx(np.abs(difference).mean(), rel=1e-5)
    assert L2()(sr, hr).item() == pytest.approx((difference**2).mean(), rel=1e-5)
    assert l1(sr, hr).dtype == l2(sr, hr).dtype == torch.float32


@pytest.mark.parametrize("border", [0, 3])
def test_psnr_equals_numpy(border: int) -> None:
    sr, hr = pair()
    difference = (numpy_y(sr) - numpy_y(hr))[:, border : 40 - border, border : 33 - border]
    expected = -10 * np.log10((difference**2).mean(axis=(1, 2)))
    assert psnr(sr, hr, crop_border=border).tolist() == pytest.approx(expected.tolist(), abs=1e-3)


@pytest.mark.parametrize("border", [0, 3])
def test_psnr_of_rgb_equals_numpy(border: int) -> None:
    sr, hr = pair()
    difference = (sr.double() - hr.double()).numpy()[..., border : 40 - border, border : 33 - border]
    expected = -10 * np.log10((difference**2).mean(axis=(1, 2, 3)))
    assert psnr_rgb(sr, hr, crop_border=border).tolist() == pytest.approx(expected.tolist(), abs=1e-3)


def scikit_ssim(sr: np.ndarray, hr: np.ndarray) -> float:
    """Of one plane, the valid region alone."""
    options = {"data_range": 1.0, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return structural_similarity(sr, hr, full=True, **options)[1][5:-5, 5:-5].mean()


def test_ssim_equals_scikit_image() -> None:
    sr, hr = pair()
    expected = [scikit_ssim(one, other) for one, other in zip(numpy_y(sr), numpy_y(hr), strict=True)]
    assert ssim(sr, hr).tolist() == pytest.approx(expected, abs=1e-4)


def test_ssim_of_rgb_is_the_mean_of_scikit_images_channels() -> None:
    sr, hr = pair()
    sr[:, 2] = hr[:, 2]
    planes = [(one.double().numpy(), other.double().numpy()) for one, other in zip(sr, hr, strict=True)]
    expected = [np.mean([scikit_ssim(one[c], other[c]) for c in range(3)]) for one, other in planes]
    assert ssim_rgb(sr, hr).tolist() == pytest.approx(expected, abs=1e-4)
    inside = [
        np.mean([scikit_ssim(one[c, 3:-3, 3:-3], other[c, 3:-3, 3:-3]) for c in range(3)]) for one, other in planes
    ]
    assert ssim_rgb(sr, hr, crop_border=3).tolist() == pytest.approx(inside, abs=1e-4)


@pytest.mark.parametrize("measure", [psnr, psnr_rgb])
def test_rounding_is_that_of_written_images(measure: Callable[..., Tensor]) -> None:
    hr = torch.full((1, 3, 16, 16), 100 / 255)
    sr = torch.full((1, 3, 16, 16), 100.4 / 255)
    assert measure(sr, hr, round_to_8bit=True).item() == float("inf")
    assert measure(sr, hr).item() < 80
    over = torch.full((1, 3, 16, 16), 1.2)
    assert measure(over, torch.ones_like(over), round_to_8bit=True).item() == float("inf")


def test_autocast_does_not_change_ssim() -> None:
    sr, hr = pair()
    expected = ssim(sr, hr)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ssim(sr, hr), expected)


@pytest.mark.parametrize(
    ("metric", "measure"), [(PsnrY, psnr), (SsimY, ssim), (PsnrRgb, psnr_rgb), (SsimRgb, ssim_rgb)]
)
def test_metrics_average_images_not_errors(metric: type[Metric], measure: Callable[..., Tensor]) -> None:
    sr, hr = pair(batch=3)
    sr[0] = hr[0] + 0.01
    mean = metric(crop_border=2, round_to_8bit=True)
    for part in (slice(0, 1), slice(1, 3)):
        mean.update(sr[part], hr[part])
    expected = measure(sr, hr, crop_border=2, round_to_8bit=True).mean()
    assert mean.compute().item() == pytest.approx(expected.item())


PUBLISHED = [(2, 36.142, 0.9518, None, None), (0, 36.099, 0.9519, 33.928, 0.9317)]
"""Border, PSNR-Y, SSIM-Y, PSNR and SSIM of the released RT4KSR x2 on Set5."""


@pytest.mark.parametrize(("form", "key"), [("train_form", "net"), ("rep", "rep")])
@pytest.mark.parametrize("published", PUBLISHED, ids=["border 2", "border 0"])
def test_published_outputs_give_the_published_figures(
    shared: Path, published: tuple[int, ...], form: str, key: str
) -> None:
    """The released RT4KSR x2 on Set5; per image, BasicSR's figures lie beside its outputs."""
    border, *means = published
    folder = shared / "rt4ksr_ref"
    records = json.loads((folder / "metrics_Set5_x2.json").read_text())
    reference = {record["image"]: record[key] for record in records if "image" in record}
    outputs = sorted((folder / "Set5_x2" / form).glob("*.png"))
    assert len(outputs) == 5
    measures = {"psnr_y": psnr, "ssim_y": ssim, "psnr_rgb": psnr_rgb, "ssim_rgb": ssim_rgb}
    found: dict[str, list[float]] = {name: [] for name in measures}
    for path in outputs:
        sr, hr = read(path), read(shared / "set5" / "HR" / path.name)
        for name, measure in measures.items():
            value = measure(sr, hr, crop_border=border).item()
            close = 1e-3 if name.startswith("psnr") else 2e-5
            assert value == pytest.approx(reference[path.name][f"{name}_c{border}"], abs=close), (path.name, name)
            found[name].append(value)
    for values, mean, close in zip(found.values(), means, (6e-4, 6e-5, 6e-4, 6e-5), strict=True):
        assert mean is None or np.mean(values) == pytest.approx(mean, abs=close)


def test_errors_name_shapes() -> None:
    sr, hr = pair()
    with pytest.raises(ValueError, match=r"\(2, 3, 40, 32\)"):
        l1(sr[..., :-1], hr)
    with pytest.raises(ValueError, match="crop_border=17"):
        psnr(sr, hr, crop_border=17)
    with pytest.raises(ValueError, match="10 x 33 px"):
        ssim(sr[..., :10, :], hr[..., :10, :])
    with pytest.raises(ValueError, match=r"\(2, 1, 40, 33\); expected RGB"):
        psnr_rgb(sr[:, :1], hr[:, :1])


def test_color_error_is_the_cast_in_grey_levels():
    generator = torch.Generator().manual_seed(0)
    hr = torch.rand(2, 3, 20, 24, generator=generator) * 0.5 + 0.2
    cast = torch.tensor([0.02, -0.01, 0.06]).view(3, 1, 1)
    sr = torch.stack([hr[0] + cast, hr[1].flip(-1)])
    expected = np.abs(sr.numpy().mean((2, 3)) - hr.numpy().mean((2, 3))).mean(1) * 255
    np.testing.assert_allclose(color_error(sr, hr), expected, atol=1e-4)
    np.testing.assert_allclose(color_error(sr, hr), [0.03 * 255, 0], atol=1e-3)
    metric = ColorError()
    metric.update(sr, hr)
    assert float(metric.compute()) == pytest.approx(0.015 * 255, abs=1e-3)
