import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from losses.backbone import FrozenBackbone
from losses.dists import BackboneDistance
from losses.perceptual import PerceptualDistance


def images(seed: int, batch: int = 2) -> Tensor:
    return torch.rand(batch, 3, 64, 64, generator=torch.Generator().manual_seed(seed))


def blur(image: Tensor, radius: int) -> Tensor:
    return F.avg_pool2d(F.pad(image, (radius,) * 4, mode="reflect"), 2 * radius + 1, stride=1)


@pytest.fixture(scope="module", params=["test_convnext", "test_vit"])
def distance(request: pytest.FixtureRequest) -> BackboneDistance:
    generator = torch.Generator().manual_seed(0)
    return BackboneDistance(FrozenBackbone(request.param, (0, 1, 2), None, generator, "perceptual"))


def test_equals_the_formula_over_image_and_stages(distance: BackboneDistance) -> None:
    sr, hr = images(1), images(2)
    pairs = [(sr, hr), *zip(distance.backbone(sr), distance.backbone(hr), strict=True)]
    for index, found in enumerate(distance.per_image(sr, hr)):
        layers = []
        for first, second in pairs:
            x, y = (maps[index].flatten(1).double().numpy() for maps in (first, second))
            mean_x, mean_y = x.mean(axis=1), y.mean(axis=1)
            covariance = ((x - mean_x[:, None]) * (y - mean_y[:, None])).mean(axis=1)
            structure = (2 * covariance + 1e-6) / (x.var(axis=1) + y.var(axis=1) + 1e-6)
            texture = (2 * mean_x * mean_y + 1e-6) / (mean_x**2 + mean_y**2 + 1e-6)
            layers.append(np.mean(structure + texture) / 2)
        assert found.item() == pytest.approx(1 - np.mean(layers), abs=1e-4)


def test_orders_blurs_and_has_a_gradient(distance: BackboneDistance) -> None:
    hr = images(3)
    assert abs(distance(hr, hr).item()) < 1e-5
    assert 0 < distance(blur(hr, 1), hr) < distance(blur(hr, 3), hr)
    flat = torch.full((1, 3, 33, 40), 0.5, requires_grad=True)
    distance(flat, images(4, 1)[..., :33, :40]).backward()
    assert flat.grad is not None
    assert flat.grad.isfinite().all()
    assert flat.grad.abs().sum() > 0


def test_is_a_metric_too_and_precise_under_autocast(distance: BackboneDistance) -> None:
    sr, hr = images(1), images(2)
    metric = PerceptualDistance(distance)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        metric.update(sr, hr)
        assert distance(sr, hr).dtype == torch.float32
    assert metric.compute().item() == pytest.approx(distance(sr, hr).item(), rel=1e-5)
