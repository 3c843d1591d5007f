"""What systems on Flux share: a frozen or adapted codec, the transformer, a fixed prompt, and a velocity on latents."""

from collections.abc import Iterable, Mapping

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn
from torchmetrics import Metric

from lightning_modules.adversarial_training import Manual
from lightning_modules.adversary import Adversary
from lightning_modules.networks.codec import Codec
from lightning_modules.networks.flux import TOKEN_CELLS, image_ids, pack, unpack
from lightning_modules.super_resolution import AdamWSchedule, SuperResolution
from losses.weighted_sum import WeightedSum


class LatentFlux(SuperResolution):
    """Base of the systems that run Flux on a codec's latents.

    codec: gives and takes normalised latents; who trains it or its adapters says so, it is frozen otherwise.
    transformer: its parameters with requires_grad are trained. prompt (T,D) and pooled_prompt (D,): fixed embeddings.
    Images are [0,1]. The size unit is `token_pitch` px. ValueError where the widths do not fit together.
    """

    prompt: Tensor
    pooled_prompt: Tensor

    def __init__(
        self,
        codec: Codec,
        transformer: FluxTransformer2DModel,
        prompt: Tensor,
        pooled_prompt: Tensor,
        losses: WeightedSum | None,
        metrics: Mapping[str, Metric],
        schedule: AdamWSchedule,
        adversary: Adversary | None = None,
        optimisation: Manual | None = None,
    ) -> None:
        check_widths(transformer, codec, prompt, pooled_prompt)
        super().__init__(losses, metrics, schedule, adversary, optimisation)
        self.codec = codec
        self.transformer = transformer
        self.register_buffer("prompt", prompt, persistent=False)
        self.register_buffer("pooled_prompt", pooled_prompt, persistent=False)

    @property
    def token_pitch(self) -> int:
        """Pixels that a token covers along each side: the size unit and the period of the student's artifact."""
        return self.codec.cell * TOKEN_CELLS

    def velocity(self, latent: Tensor, sigma: Tensor, ids: Tensor | None = None) -> Tensor:
        """The transformer's velocity for latents (B,C,h,w) of even sides at noise levels sigma (B,) in [0,1].

        ids: positions of the image tokens, those of the latent's grid unless given (the id-shuffle cost).
        """
        batch, _, height, width = latent.shape
        if ids is None:
            ids = image_ids(height // TOKEN_CELLS, width // TOKEN_CELLS, latent.device)
        (tokens,) = self.transformer(
            hidden_states=pack(latent),
            encoder_hidden_states=self.prompt.expand(batch, -1, -1),
            pooled_projections=self.pooled_prompt.expand(batch, -1),
            timestep=sigma,
            guidance=latent.new_ones(batch) if self.transformer.config["guidance_embeds"] else None,
            img_ids=ids,
            txt_ids=ids.new_zeros(self.prompt.shape[0], ids.shape[-1]),
            return_dict=False,
        )
        return unpack(tokens, height, width)

    def frozen_modules(self) -> Iterable[nn.Module]:
        return [self.codec, self.transformer]

    def fixed_tensors(self) -> Mapping[str, Tensor]:
        return {"prompt": self.prompt, "pooled_prompt": self.pooled_prompt}


def shuffled_ids(latent: Tensor, generator: torch.Generator) -> Tensor:
    """The position ids of a latent's tokens permuted at random; what they cost is what a model knows of positions."""
    ids = image_ids(latent.shape[-2] // TOKEN_CELLS, latent.shape[-1] // TOKEN_CELLS)
    return ids[torch.randperm(len(ids), generator=generator)].to(latent.device)


def noise_like(latent: Tensor, generators: Iterable[torch.Generator]) -> Tensor:
    """Standard normal noise of the shape of `latent` (B,C,h,w), each sample's from its own generator on the CPU."""
    noise = [torch.randn(latent.shape[1:], generator=generator) for generator in generators]
    return torch.stack(noise).to(latent.device, torch.float32, non_blocking=True)


def check_widths(transformer: FluxTransformer2DModel, codec: Codec, prompt: Tensor, pooled: Tensor) -> None:
    """ValueError where the transformer takes other channels than the codec and the prompt have."""
    config, cells = transformer.config, TOKEN_CELLS**2
    if config["in_channels"] != codec.latent_channels * cells:
        raise ValueError(
            f"the transformer takes tokens of {config['in_channels']} channels, the codec gives "
            f"{codec.latent_channels} x {cells}: transformer.path and codec.path must fit together"
        )
    expected, found = (config["joint_attention_dim"], config["pooled_projection_dim"]), (prompt.shape[-1], len(pooled))
    if expected != found:
        raise ValueError(
            f"the transformer takes a prompt of {expected[0]} and a pooled prompt of {expected[1]} channels, found "
            f"{found[0]} and {found[1]}: change transformer.prompt, transformer.prompt_width or transformer.path"
        )


def fixed_prompt(tokens: int, width: int, pooled_width: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Seeded embeddings (tokens,width) and (pooled_width,) that stand for a text prompt (ours: small transformers)."""
    return torch.randn(tokens, width, generator=generator), torch.randn(pooled_width, generator=generator)
