import numpy as np
import pytest
import torch
from torch import Tensor

from losses.adversarial import adaptive_weight, check_kind, discriminator_loss, generator_loss, gradient_at


def maps(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [3 * torch.randn(2, 1, side, side + 1, generator=generator) for side in (8, 3)]


def cross_entropy(logits: Tensor, label: float) -> float:
    probability = 1 / (1 + np.exp(-logits.double().numpy()))
    return float(-(label * np.log(probability) + (1 - label) * np.log(1 - probability)).mean())


@pytest.mark.parametrize("label", [0.8, 1.0])
def test_bce_equals_numpy_with_equal_scales(label: float) -> None:
    real, fake = maps(0), maps(1)
    on_real = np.mean([cross_entropy(level, label) for level in real])
    on_fake = np.mean([cross_entropy(level, 0) for level in fake])
    assert discriminator_loss(real, fake, "bce", label).item() == pytest.approx(on_real + on_fake, rel=1e-5)
    expected = np.mean([cross_entropy(level, label) for level in fake])
    assert generator_loss(fake, "bce", label).item() == pytest.approx(expected, rel=1e-5)


def test_hinge_equals_numpy_with_equal_scales() -> None:
    real, fake = maps(0), maps(1)
    on_real = np.mean([np.maximum(0, 1 - level.numpy()).mean() for level in real])
    on_fake = np.mean([np.maximum(0, 1 + level.numpy()).mean() for level in fake])
    assert discriminator_loss(real, fake, "hinge").item() == pytest.approx(on_real + on_fake, rel=1e-5)
    assert generator_loss(fake, "hinge").item() == pytest.approx(-np.mean([level.mean() for level in fake]), rel=1e-5)


def test_a_soft_label_stops_at_its_own_logit() -> None:
    """A real logit beyond log(0.8 / 0.2) is pulled back, a fake one never."""
    sure = torch.full((1, 1, 1, 1), 3.0, requires_grad=True)
    discriminator_loss([sure], [torch.zeros(1, 1, 1, 1)], "bce", 0.8).backward()
    assert sure.grad is not None
    assert sure.grad.item() > 0


@pytest.mark.parametrize("kind", ["hinge", "bce"])
def test_large_logits_and_half_precision_stay_finite(kind: str) -> None:
    large = [torch.tensor([[-1e4, 1e4]], dtype=torch.bfloat16)]
    for loss in (generator_loss(large, kind), discriminator_loss(large, large, kind, 0.8)):
        assert loss.dtype == torch.float32
        assert loss.isfinite()


def test_adaptive_weight_is_the_ratio_of_gradient_norms() -> None:
    layer = torch.randn(2, 3, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    reconstruction, adversarial = (3 * layer).sum(), (layer.square()).sum()
    gradients = [gradient_at(loss, layer) for loss in (reconstruction, adversarial)]
    expected = 3 * np.sqrt(6) / (2 * np.linalg.norm(layer.detach().numpy()) + 1e-4)
    assert adaptive_weight(*gradients).item() == pytest.approx(expected, rel=1e-5)
    assert adaptive_weight(gradients[0], torch.zeros(2, 3), limit=100).item() == 100
    # the graph is still there for the training's own backward pass
    (reconstruction + adversarial).backward()
    torch.testing.assert_close(layer.grad, gradients[0] + gradients[1])


def test_errors_name_kind_and_label() -> None:
    with pytest.raises(ValueError, match="kind='wgan'"):
        check_kind("wgan", 1.0)
    with pytest.raises(ValueError, match=r"real_label=1\.2"):
        check_kind("bce", 1.2)
