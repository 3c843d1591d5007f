from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from datamodules.randomness import generator_for
from lightning_modules.adversary import Adversary
from lightning_modules.networks.discriminator import Discriminator
from losses.adversarial import discriminator_loss, generator_loss
from losses.backbone import FrozenBackbone


def images(seed: int = 0, batch: int = 2, side: int = 48) -> Tensor:
    return torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(seed))


def generators(count: int = 2, start: int = 0) -> list[torch.Generator]:
    return [generator_for((0, 0, sample, 0), "augmentation") for sample in range(start, start + count)]


def discriminator(name: str = "test_convnext") -> Discriminator:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = FrozenBackbone(name, (0, 1, 2), None, torch.Generator().manual_seed(0), "adversary")
        return Discriminator(backbone, channels=8)


def adversary(kind: str = "bce", augment: bool = True) -> Adversary:
    return Adversary(discriminator(), kind=kind, augment=augment)


@pytest.mark.parametrize("name", ["test_convnext", "test_vit"])
def test_one_map_of_logits_per_stage(name: str) -> None:
    model = discriminator(name)
    sides = [
        [level.shape[-2:] for level in model.backbone(images())],
        [logits.shape[-2:] for logits in model(images())],
    ]
    assert sides[0] == sides[1]
    assert [logits.shape[:2] for logits in model(images())] == [(2, 1)] * 3


def test_only_the_heads_are_trained_and_saved() -> None:
    model = adversary()
    assert all(name.startswith("discriminator.heads.") for name, _ in model.named_parameters())
    saved = set(model.state_dict())
    assert {name for name, _ in model.named_parameters()} < saved
    assert all(name.startswith("discriminator.heads.") for name in saved)
    assert sum(name.endswith(("._u", "._v")) for name in saved) == 2 * 3 * 3


def test_heads_have_spectral_norm_one() -> None:
    model = discriminator()
    for _ in range(60):
        model(images(batch=1, side=32))
    for head in model.eval().heads:
        for layer in (head[1], head[3], head[5]):
            assert np.linalg.norm(layer.weight.detach().flatten(1).numpy(), 2) == pytest.approx(1, abs=0.02)


def test_power_iteration_does_not_depend_on_the_images() -> None:
    first, second = discriminator(), discriminator()
    first(images(1))
    second(images(2, batch=1, side=64))
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])


def test_logits_do_not_depend_on_the_rest_of_the_batch() -> None:
    model = discriminator().eval()
    for whole, alone in zip(model(images()), model(images()[1:]), strict=True):
        torch.testing.assert_close(whole[1:], alone, atol=1e-5, rtol=1e-4)


def test_autocast_leaves_the_heads_in_full_precision() -> None:
    model = discriminator()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(logits.dtype == torch.float32 for logits in model(images()))
    assert all(value.dtype == torch.float32 for value in model.state_dict().values())


@pytest.mark.parametrize("kind", ["hinge", "bce"])
def test_losses_are_those_of_the_logits(kind: str) -> None:
    model, sr, hr = adversary(kind, augment=False).eval(), images(1), images(2)
    fake, real = model.discriminator(sr), model.discriminator(hr)
    torch.testing.assert_close(model.generator_loss(sr), generator_loss(fake, kind, 0.8))
    torch.testing.assert_close(model.discriminator_loss(sr, hr), discriminator_loss(real, fake, kind, 0.8))


def test_generator_and_discriminator_phases_in_sequence() -> None:
    """As a training does it, twice: forward and backward of the one, then of the other, then the heads' step."""
    model = adversary()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(2):
        sr = images(1).requires_grad_(True)
        model.requires_grad_(False)
        model.generator_loss(sr, generators(start=4 * step)).backward()
        assert sr.grad is not None
        assert sr.grad.abs().sum() > 0
        assert all(parameter.grad is None for parameter in model.parameters())
        model.requires_grad_(True)
        generator_gradient = sr.grad.clone()
        model.discriminator_loss(sr, images(2), generators(start=4 * step + 2)).backward()
        assert torch.equal(sr.grad, generator_gradient)
        assert all(parameter.grad is not None for parameter in model.parameters())
        optimizer.step()
        optimizer.zero_grad()


def test_two_forwards_before_one_backward_do_not_collide() -> None:
    model, sr = adversary(), images(1).requires_grad_(True)
    losses = model.generator_loss(sr, generators()), model.discriminator_loss(sr, images(2), generators())
    sum(losses).backward()
    assert sr.grad is not None


@pytest.mark.parametrize("loss", [Adversary.generator_loss, Adversary.discriminator_loss])
def test_loss_of_a_batch_is_the_mean_over_two_ranks(loss: Callable[..., Tensor]) -> None:
    count = 2 if loss is Adversary.discriminator_loss else 1
    pair = [images(1), images(2)][:count]
    whole = loss(adversary(), *pair, generators())
    halves = [
        loss(adversary(), *(batch[rank : rank + 1] for batch in pair), generators(1, start=rank)) for rank in (0, 1)
    ]
    torch.testing.assert_close(whole, sum(halves) / 2)


@pytest.mark.parametrize("kind", ["hinge", "bce"])
def test_heads_learn_to_tell_blurred_images(kind: str) -> None:
    model = adversary(kind, augment=False)
    hr = images(1, batch=4)
    sr = F.avg_pool2d(F.pad(hr, (1,) * 4, mode="reflect"), 3, stride=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    values = []
    for _ in range(40):
        loss = model.discriminator_loss(sr, hr)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert np.mean(values[-5:]) < 0.8 * values[0]
    assert model.generator_loss(hr) < model.generator_loss(sr)


def test_errors_name_what_is_missing() -> None:
    backbone = FrozenBackbone("test_vit", (0,), None, torch.Generator(), "adversary")
    with pytest.raises(ValueError, match="no generators"):
        adversary().generator_loss(images())
    with pytest.raises(ValueError, match="kind='wgan'"):
        adversary("wgan")
    with pytest.raises(ValueError, match=r"adversary\.channels=0"):
        Discriminator(backbone, channels=0)
