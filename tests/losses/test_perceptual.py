from pathlib import Path

import lpips
import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from losses.perceptual import Lpips, PerceptualDistance, RandomFeatureDistance, structure_texture_distance


def images(seed: int = 0, batch: int = 2, side: int = 64) -> Tensor:
    return torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(seed))


def blur(image: Tensor, radius: int) -> Tensor:
    return F.avg_pool2d(F.pad(image, (radius,) * 4, mode="reflect"), 2 * radius + 1, stride=1)


@pytest.fixture(scope="module")
def untrained_backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SqueezeNet 1.1 state dict in torchvision's own naming (`features.0.weight`, ...)."""
    path = tmp_path_factory.mktemp("weights") / "squeezenet1_1.pth"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save(torchvision.models.squeezenet1_1(weights=None).state_dict(), path)
    return path


def reference_lpips(backbone: Path) -> nn.Module:
    """The package's own LPIPS with its own linear layers, filled slice by slice from torchvision's network."""
    network = torchvision.models.squeezenet1_1(weights=None)
    weights = torch.load(backbone, map_location="cpu", weights_only=True)
    prefixed = {name if name.startswith("features.") else f"features.{name}": value for name, value in weights.items()}
    network.load_state_dict(prefixed, strict=False)
    reference = lpips.LPIPS(net="squeeze", pnet_rand=True, verbose=False)
    for index in range(1, 8):
        for name, layer in getattr(reference.net, f"slice{index}").named_children():
            layer.load_state_dict(network.features[int(name)].state_dict())
    return reference


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_equals_the_package_with_torchvision_names(untrained_backbone: Path) -> None:
    sr, hr = images(1), images(2)
    expected = reference_lpips(untrained_backbone)(sr, hr, normalize=True).flatten()
    torch.testing.assert_close(Lpips(untrained_backbone).per_image(sr, hr), expected, atol=1e-6, rtol=1e-4)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_real_weights_equal_the_package_and_order_blurs(shared: Path) -> None:
    folder = shared / "weights" / "lpips_squeeze"
    distance = Lpips(folder / "squeeze.backbone.pth", folder / "squeeze.pth")
    hr = images(3)
    slight, strong = blur(hr, 1), blur(hr, 3)
    expected = reference_lpips(folder / "squeeze.backbone.pth")(slight, hr, normalize=True).flatten()
    torch.testing.assert_close(distance.per_image(slight, hr), expected, atol=1e-6, rtol=1e-4)
    assert 0.01 < distance(slight, hr) < distance(strong, hr)
    assert distance(hr, hr).item() == pytest.approx(0.0, abs=1e-7)


def test_lpips_is_frozen_and_in_no_checkpoint(untrained_backbone: Path) -> None:
    model = nn.ModuleDict({"lpips": Lpips(untrained_backbone)})
    assert list(model.parameters()) == []
    assert model.state_dict() == {}
    model.load_state_dict({})
    model.train()
    assert not any(module.training for module in model["lpips"].modules())
    sr, hr = images(1).requires_grad_(True), images(2)
    model["lpips"](sr, hr).backward()
    assert sr.grad is not None
    assert sr.grad.abs().sum() > 0


def test_building_lpips_leaves_the_global_generator_alone(untrained_backbone: Path) -> None:
    before = torch.random.get_rng_state()
    Lpips(untrained_backbone)
    assert torch.equal(before, torch.random.get_rng_state())


def test_missing_or_foreign_weights_are_named(tmp_path: Path, untrained_backbone: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth.*perceptual\.backbone.*download\.pytorch\.org"):
        Lpips(tmp_path / "nowhere.pth")
    with pytest.raises(FileNotFoundError, match=r"linear\.pth.*perceptual\.linear"):
        Lpips(untrained_backbone, tmp_path / "linear.pth")
    with pytest.raises(ValueError, match=r"perceptual\.net='resnet'"):
        Lpips(untrained_backbone, net="resnet")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"0\.weight.*other\.pth.*perceptual\.backbone"):
        Lpips(tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth.*perceptual\.linear"):
        Lpips(untrained_backbone, tmp_path / "other.pth")


def test_structure_texture_distance_equals_the_formula() -> None:
    sr, hr = images(4), images(5)
    layers = [(sr, hr), (sr[..., ::2, ::2], hr[..., ::2, ::2])]
    expected = []
    for image in range(len(sr)):
        similarities = []
        for a, b in layers:
            for x, y in zip(a[image].double().numpy(), b[image].double().numpy(), strict=True):
                structure = 2 * np.cov(x.ravel(), y.ravel(), ddof=0)[0, 1] / (x.var() + y.var())
                similarities.append((structure + 2 * x.mean() * y.mean() / (x.mean() ** 2 + y.mean() ** 2)) / 2)
        expected.append(1 - np.mean(similarities))
    value = structure_texture_distance(*([pair[side] for pair in layers] for side in (0, 1)))
    torch.testing.assert_close(value.double(), torch.tensor(expected), atol=1e-4, rtol=1e-4)


def test_shifted_texture_loses_structure_alone() -> None:
    noise = images(6)
    means = structure_texture_distance([noise.roll(5, -1)], [noise])
    assert (means < 0.6).all()  # structure is lost, the texture term is not
    assert structure_texture_distance([noise], [noise]).abs().max() < 1e-6


def random_distance(seed: int = 0) -> RandomFeatureDistance:
    return RandomFeatureDistance(torch.Generator().manual_seed(seed), channels=(8, 16))


def test_random_features_come_from_the_generator_alone() -> None:
    before = torch.random.get_rng_state()
    sr, hr = images(1), images(2)
    assert torch.equal(random_distance(7)(sr, hr), random_distance(7)(sr, hr))
    assert not torch.equal(random_distance(7)(sr, hr), random_distance(8)(sr, hr))
    assert torch.equal(before, torch.random.get_rng_state())
    assert random_distance().state_dict() == {}
    assert list(random_distance().parameters()) == []


def test_random_features_order_blurs_and_have_finite_gradients() -> None:
    distance, hr = random_distance(), images(3)
    assert abs(distance(hr, hr).item()) < 1e-6
    assert 0 < distance(blur(hr, 1), hr) < distance(blur(hr, 3), hr)
    for value in (0.0, 0.5, 1.0):
        flat = torch.full((1, 3, 33, 32), value, requires_grad=True)
        distance(flat, images(4, 1)[..., :33, :32]).backward()
        assert flat.grad is not None
        assert flat.grad.isfinite().all()


def test_metric_is_the_mean_over_images_also_under_autocast() -> None:
    distance = random_distance()
    sr, hr = images(1, batch=3), images(2, batch=3)
    metric = PerceptualDistance(distance)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        metric.update(sr[:1], hr[:1])
        metric.update(sr[1:], hr[1:])
    assert metric.compute().item() == pytest.approx(distance.per_image(sr, hr).mean().item(), rel=1e-5)
