"""A real, tiny codec and one-step student with random weights."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from lightning_modules.latent_flux import fixed_prompt
from lightning_modules.networks.codec import Codec
from lightning_modules.networks.flux import build_flux
from lightning_modules.networks.small_codec import SmallF16Codec
from lightning_modules.one_step_flux import OneStepFlux
from lightning_modules.super_resolution import AdamWSchedule
from losses.fidelity import L1, PsnrY
from losses.perceptual import RandomFeatureDistance
from losses.weighted_sum import WeightedSum

LATENT_CHANNELS = 4


def randomise(module: nn.Module, seed: int, scale: float = 0.1) -> None:
    """Normal weights everywhere, also where the module starts at zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)


def build_codec(seed: int = 0, width: int = 8) -> SmallF16Codec:
    codec = SmallF16Codec(LATENT_CHANNELS, (width, width, width), 1)
    randomise(codec, seed)
    return codec


def build_student(codec_seed: int = 0, trained: bool = True, sigma: float = 0.505, codec_width: int = 8) -> OneStepFlux:
    """trained: random weights in the transformer's last projection too, which starts at zero."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        transformer = build_flux(LATENT_CHANNELS, double_blocks=1, single_blocks=1, heads=1, prompt_width=16)
    if trained:
        randomise(transformer.proj_out, 2)
    prompt, pooled = fixed_prompt(3, 16, 16, torch.Generator().manual_seed(3))
    features = RandomFeatureDistance(torch.Generator().manual_seed(4))
    schedule = AdamWSchedule(1e-3, (0.9, 0.99), 0.0, warmup_steps=0, decay_share=0.0, final_factor=1.0, steps=10)
    return OneStepFlux(
        codec=Codec(build_codec(codec_seed, codec_width)).requires_grad_(False),
        transformer=transformer,
        sigma=sigma,
        prompt=prompt,
        pooled_prompt=pooled,
        scale=4,
        losses=WeightedSum({"l1": (1.0, L1()), "features": (0.1, features)}),
        metrics={"psnr_y": PsnrY()},
        schedule=schedule,
    )


@pytest.fixture
def codec() -> SmallF16Codec:
    return build_codec()


@pytest.fixture
def make_student() -> Callable[..., OneStepFlux]:
    return build_student
