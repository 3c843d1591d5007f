import numpy as np
import pytest
import torch
from torch import Tensor

from losses.latent import latent_loss


def latents() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    lr_latent, hr_latent, noise = (torch.randn(2, 4, 5, 6, generator=generator) for _ in range(3))
    return lr_latent, hr_latent, noise


@pytest.mark.parametrize("sigma", [0.0, 0.505, 1.0])
def test_equals_numpy(sigma: float) -> None:
    z_l, z_h, noise = (latent.double().numpy() for latent in latents())
    expected = np.mean((z_l - (1 - sigma) * z_h - sigma * noise) ** 2)
    lr_latent, hr_latent, eps = latents()
    assert latent_loss(lr_latent, hr_latent, sigma, eps).item() == pytest.approx(expected, rel=1e-5)


def test_a_latent_on_the_path_of_the_flow_costs_nothing() -> None:
    _, hr_latent, noise = latents()
    assert latent_loss(0.7 * hr_latent + 0.3 * noise, hr_latent, 0.3, noise).item() == pytest.approx(0, abs=1e-12)


def test_only_the_lr_latent_learns_and_half_precision_is_summed_in_float32() -> None:
    lr_latent, hr_latent, noise = (latent.bfloat16().requires_grad_(True) for latent in latents())
    loss = latent_loss(lr_latent, hr_latent, 0.5, noise.detach())
    assert loss.dtype == torch.float32
    loss.backward()
    assert lr_latent.grad is not None
    assert hr_latent.grad is None


def test_unequal_shapes_are_named() -> None:
    lr_latent, hr_latent, noise = latents()
    with pytest.raises(ValueError, match=r"\(2, 4, 5, 5\)"):
        latent_loss(lr_latent, hr_latent, 0.5, noise[..., 1:])
