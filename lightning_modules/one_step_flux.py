"""OP4KSR's student: one forward pass of Flux between an F16 encoder and its frozen decoder (arXiv 2605.13457)."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn
from torchmetrics import Metric

from lightning_modules.networks.flux import TOKEN_CELLS, image_ids, pack, unpack
from lightning_modules.networks.small_codec import PATCH, SmallF16Codec
from lightning_modules.super_resolution import AdamWSchedule, SuperResolution, pad_to_multiple, resize_up
from losses.weighted_sum import WeightedSum

TOKEN_PITCH = PATCH * TOKEN_CELLS
"""Pixels that a token covers along each side: the size unit of the student and the period of its artifact."""


class OneStepFlux(SuperResolution):
    """z_L = encode(up(lr)); v = transformer(z_L, sigma, prompt); z0 = z_L - sigma v; sr = decode(z0).

    codec: frozen here. transformer: trained whole. sigma: the noise level of the one step, 0-1. prompt (T,D) and
    pooled_prompt (D,): fixed embeddings. Images are [0,1] outside and [-1,1] inside; any height and width works.
    """

    prompt: Tensor
    pooled_prompt: Tensor

    def __init__(
        self,
        codec: SmallF16Codec,
        transformer: FluxTransformer2DModel,
        sigma: float,
        prompt: Tensor,
        pooled_prompt: Tensor,
        scale: int,
        losses: WeightedSum,
        metrics: Mapping[str, Metric],
        schedule: AdamWSchedule,
    ) -> None:
        check_widths(transformer, codec, prompt, pooled_prompt)
        super().__init__(losses, metrics, schedule)
        self.codec = codec.requires_grad_(False)
        self.transformer = transformer
        self.sigma = sigma
        self.scale = scale
        self.register_buffer("prompt", prompt, persistent=False)
        self.register_buffer("pooled_prompt", pooled_prompt, persistent=False)

    def forward_batch(self, batch: dict[str, Any]) -> Tensor:
        return self.upscale(batch["lr"])

    def upscale(self, lr: Tensor) -> Tensor:
        """Super-resolve lr (B,3,h,w) in [0,1] to (B,3,h*scale,w*scale), unclamped."""
        size = (lr.shape[-2] * self.scale, lr.shape[-1] * self.scale)
        return self.restore(resize_up(lr, size))

    def restore(self, image: Tensor, strip_rows: int = 0) -> Tensor:
        """Restore an image (B,3,H,W) in [0,1] that already has its final size.

        strip_rows: latent rows per strip of the codec's finest stages; 0 runs them in one piece, which training needs.
        """
        height, width = image.shape[-2:]
        latent = self.one_step(self.encode(pad_to_multiple(image, TOKEN_PITCH), strip_rows))
        return self.decode(latent, strip_rows)[..., :height, :width]

    def encode(self, image: Tensor, strip_rows: int = 0) -> Tensor:
        """Normalised latent (B,C,H/16,W/16) of an image (B,3,H,W) in [0,1] with sides a multiple of 16."""
        config = self.codec.config
        if strip_rows:
            latent = self.codec.encode_in_strips(image * 2 - 1, strip_rows)
        else:
            latent = self.codec.encode(image * 2 - 1).latent_dist.mode()
        return (latent - config["shift_factor"]) * config["scaling_factor"]

    def decode(self, latent: Tensor, strip_rows: int = 0) -> Tensor:
        """The inverse of `encode`, unclamped."""
        config = self.codec.config
        latent = latent / config["scaling_factor"] + config["shift_factor"]
        if strip_rows:
            return self.codec.decode_in_strips(latent, strip_rows) / 2 + 0.5
        return self.codec.decode(latent).sample / 2 + 0.5

    def one_step(self, latent: Tensor, ids: Tensor | None = None) -> Tensor:
        """z0 = z_L - sigma v for a latent of even sides; `ids` replaces the tokens' positions (the id-shuffle cost)."""
        return latent - self.sigma * self.velocity(latent, ids)

    def velocity(self, latent: Tensor, ids: Tensor | None = None) -> Tensor:
        """The transformer's velocity at noise level sigma, in the latent's shape."""
        batch, _, height, width = latent.shape
        if ids is None:
            ids = image_ids(height // TOKEN_CELLS, width // TOKEN_CELLS, latent.device)
        (tokens,) = self.transformer(
            hidden_states=pack(latent),
            encoder_hidden_states=self.prompt.expand(batch, -1, -1),
            pooled_projections=self.pooled_prompt.expand(batch, -1),
            timestep=latent.new_full((batch,), self.sigma),
            guidance=latent.new_ones(batch) if self.transformer.config["guidance_embeds"] else None,
            img_ids=ids,
            txt_ids=ids.new_zeros(self.prompt.shape[0], ids.shape[-1]),
            return_dict=False,
        )
        return unpack(tokens, height, width)

    @torch.no_grad()
    def upscale_with_shuffled_ids(self, lr: Tensor, generator: torch.Generator) -> Tensor:
        """`upscale` with the image ids permuted at random: what it loses is what the student knows of positions."""
        height, width = (side * self.scale for side in lr.shape[-2:])
        latent = self.encode(pad_to_multiple(resize_up(lr, (height, width)), TOKEN_PITCH))
        ids = image_ids(latent.shape[-2] // TOKEN_CELLS, latent.shape[-1] // TOKEN_CELLS)
        ids = ids[torch.randperm(len(ids), generator=generator)].to(latent.device)
        return self.decode(self.one_step(latent, ids))[..., :height, :width]

    @torch.no_grad()
    def panel(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        size = batch["hr"].shape[-2:]
        return {"lr": resize_up(batch["lr"], size), "sr": self.upscale(batch["lr"]), "hr": batch["hr"]}

    def frozen_modules(self) -> Iterable[nn.Module]:
        return [self.codec, self.transformer]


def check_widths(transformer: FluxTransformer2DModel, codec: SmallF16Codec, prompt: Tensor, pooled: Tensor) -> None:
    """ValueError where the transformer takes other channels than the codec and the prompt have."""
    config, cells = transformer.config, TOKEN_CELLS**2
    latent = codec.config["latent_channels"]
    if config["in_channels"] != latent * cells:
        raise ValueError(
            f"the transformer takes tokens of {config['in_channels']} channels, the codec gives {latent} x {cells}: "
            "transformer.path and codec.path must fit together"
        )
    expected, found = (config["joint_attention_dim"], config["pooled_projection_dim"]), (prompt.shape[-1], len(pooled))
    if expected != found:
        raise ValueError(
            f"the transformer takes a prompt of {expected[0]} and a pooled prompt of {expected[1]} channels, found "
            f"{found[0]} and {found[1]}: change transformer.prompt_width or transformer.path"
        )


def fixed_prompt(tokens: int, width: int, pooled_width: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Seeded embeddings (tokens,width) and (pooled_width,) that stand for a text prompt (ours: small transformers)."""
    return torch.randn(tokens, width, generator=generator), torch.randn(pooled_width, generator=generator)
