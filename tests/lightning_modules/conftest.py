"""A real, tiny codec and one-step student with random weights."""

from collections.abc import Callable

import pytest
import torch
from diffusers import FluxTransformer2DModel
from torch import nn

from lightning_modules.latent_flow import LatentFlow
from lightning_modules.latent_flux import fixed_prompt
from lightning_modules.networks.codec import Codec
from lightning_modules.networks.flux import build_flux
from lightning_modules.networks.lora import add_encoder_lora, add_transformer_lora
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


def randomise_trained(module: nn.Module, seed: int, scale: float = 0.1) -> None:
    """The same for what has requires_grad alone."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)


def build_codec(seed: int = 0, width: int = 8) -> SmallF16Codec:
    codec = SmallF16Codec(LATENT_CHANNELS, (width, width, width), 1)
    randomise(codec, seed)
    return codec


SCHEDULE = AdamWSchedule(1e-3, (0.9, 0.99), 0.0, warmup_steps=0, decay_share=0.0, final_factor=1.0, steps=10)


def build_transformer(trained: bool) -> FluxTransformer2DModel:
    """trained: random weights in the last projection too, which starts at zero."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        transformer = build_flux(LATENT_CHANNELS, double_blocks=1, single_blocks=1, heads=1, prompt_width=16)
    if trained:
        randomise(transformer.proj_out, 2)
    return transformer


def build_student(
    codec_seed: int = 0,
    trained: bool = True,
    sigma: float = 0.505,
    codec_width: int = 8,
    noise: float = 0.0,
    color_fix: str = "none",
    latent_weight: float = 0.0,
    lora_rank: int = 0,
) -> OneStepFlux:
    """lora_rank: adapters on encoder and transformer with random weights, as after some training; 0 is none."""
    codec = Codec(build_codec(codec_seed, codec_width)).requires_grad_(False)
    transformer = build_transformer(trained)
    if lora_rank:
        add_transformer_lora(transformer, lora_rank, lora_rank)
        add_encoder_lora(codec.encoder, lora_rank, lora_rank)
        for number, part in enumerate((transformer, codec.encoder)):
            randomise_trained(part, 5 + number)
    prompt, pooled = fixed_prompt(3, 16, 16, torch.Generator().manual_seed(3))
    features = RandomFeatureDistance(torch.Generator().manual_seed(4))
    return OneStepFlux(
        codec=codec,
        transformer=transformer,
        sigma=sigma,
        prompt=prompt,
        pooled_prompt=pooled,
        scale=4,
        losses=WeightedSum({"l1": (1.0, L1()), "features": (0.1, features)}),
        metrics={"psnr_y": PsnrY()},
        schedule=SCHEDULE,
        noise=noise,
        color_fix=color_fix,
        latent_weight=latent_weight,
    )


def build_flow(trained: bool = True, logit_mean: float = 0.0, logit_std: float = 1.0) -> LatentFlow:
    prompt, pooled = fixed_prompt(3, 16, 16, torch.Generator().manual_seed(3))
    return LatentFlow(
        codec=Codec(build_codec()),
        transformer=build_transformer(trained),
        sigma=0.4,
        logit_mean=logit_mean,
        logit_std=logit_std,
        prompt=prompt,
        pooled_prompt=pooled,
        metrics={"psnr_y": PsnrY()},
        schedule=SCHEDULE,
    )


@pytest.fixture
def codec() -> SmallF16Codec:
    return build_codec()


@pytest.fixture
def make_student() -> Callable[..., OneStepFlux]:
    return build_student


@pytest.fixture
def make_flow() -> Callable[..., LatentFlow]:
    return build_flow
