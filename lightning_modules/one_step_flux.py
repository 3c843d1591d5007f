"""OP4KSR's student: one forward pass of Flux between an F16 encoder and its frozen decoder (arXiv 2605.13457)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor
from torchmetrics import Metric

from datamodules.randomness import generator_for
from lightning_modules.adversarial_training import Manual, sample_generators
from lightning_modules.adversary import Adversary
from lightning_modules.color_fix import color_fix
from lightning_modules.latent_flux import LatentFlux, noise_like, shuffled_ids
from lightning_modules.networks.codec import Codec
from lightning_modules.networks.lora import without_adapters
from lightning_modules.super_resolution import AdamWSchedule, pad_to_multiple, resize_up
from losses.latent import latent_loss
from losses.weighted_sum import WeightedSum


class OneStepFlux(LatentFlux):
    """z_L = encode(up(lr)); v = transformer(z_L, sigma, prompt); z0 = z_L - sigma v; sr = decode(z0).

    codec: its decoder is frozen; its encoder is, too, but for adapters. transformer: whole or adapters, whatever has
    requires_grad. sigma: the noise level of the one step, 0-1. noise: deviation of seeded noise that is added to z_L
    (ours: it makes a token's neighbours useful, docs/log.md; 0 with OMGSR). color_fix: see `color_fix`, at inference
    alone. latent_weight: of OMGSR's LRR. Images are [0,1]; any height and width works.
    """

    def __init__(
        self,
        codec: Codec,
        transformer: FluxTransformer2DModel,
        sigma: float,
        prompt: Tensor,
        pooled_prompt: Tensor,
        scale: int,
        losses: WeightedSum,
        metrics: Mapping[str, Metric],
        schedule: AdamWSchedule,
        noise: float = 0.0,
        color_fix: str = "none",
        latent_weight: float = 0.0,
        adversary: Adversary | None = None,
        optimisation: Manual | None = None,
    ) -> None:
        super().__init__(codec, transformer, prompt, pooled_prompt, losses, metrics, schedule, adversary, optimisation)
        self.sigma = sigma
        self.scale = scale
        self.noise = noise
        self.color_fix = color_fix
        self.latent_weight = latent_weight
        self._encoded: Tensor | None = None

    def forward_batch(self, batch: dict[str, Any]) -> Tensor:
        lr, (height, width) = batch["lr"], batch["hr"].shape[-2:]
        image = pad_to_multiple(resize_up(lr, (height, width)), self.token_pitch)
        latent = self.codec.encode(image)
        self._encoded = latent if self.training and self.latent_weight else None
        latent = self.one_step(self.noised(latent, sample_generators(batch, "entry noise")))
        return self.codec.decode(latent)[..., :height, :width]

    def extra_terms(self, batch: dict[str, Any], sr: Tensor) -> dict[str, tuple[float, Tensor]]:
        """OMGSR's LRR between the encoder's latent of lr and the frozen one's of hr, of the batch just restored."""
        latent, self._encoded = self._encoded, None
        if latent is None:
            return {}
        with torch.no_grad(), without_adapters(self.codec):
            hr_latent = self.codec.encode(pad_to_multiple(batch["hr"], self.token_pitch))
        noise = noise_like(latent, sample_generators(batch, "latent loss"))
        return {"lrr": (self.latent_weight, latent_loss(latent, hr_latent, self.sigma, noise))}

    def upscale(self, lr: Tensor) -> Tensor:
        """Super-resolve lr (B,3,h,w) in [0,1] to (B,3,h*scale,w*scale), unclamped."""
        size = (lr.shape[-2] * self.scale, lr.shape[-1] * self.scale)
        return self.restore(resize_up(lr, size))

    def restore(self, image: Tensor, strip_rows: int = 0, shuffle: torch.Generator | None = None) -> Tensor:
        """Restore an image (B,3,H,W) in [0,1] that already has its final size, in its colours as `color_fix` says.

        strip_rows: latent rows per strip of the codec's finest stages; 0 runs them in one piece. shuffle: permutes the
        image ids at random: what that costs is what the student knows of positions.
        """
        height, width = image.shape[-2:]
        latent = self.codec.encode(pad_to_multiple(image, self.token_pitch), strip_rows)
        latent = self.noised(latent, [generator_for((0,), "entry noise") for _ in latent])
        ids = None if shuffle is None else shuffled_ids(latent, shuffle)
        sr = self.codec.decode(self.one_step(latent, ids), strip_rows)[..., :height, :width]
        return sr if self.color_fix == "none" else color_fix(sr, image, self.color_fix)

    def noised(self, latent: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """z_L with the noise that the student enters with, each sample's from its own generator."""
        return latent + self.noise * noise_like(latent, generators) if self.noise else latent

    def one_step(self, latent: Tensor, ids: Tensor | None = None) -> Tensor:
        """z0 = z_L - sigma v for a latent of even sides; `ids` replaces the tokens' positions."""
        return latent - self.sigma * self.velocity(latent, latent.new_full((len(latent),), self.sigma), ids)

    def last_layer(self) -> Tensor:
        """The transformer's last projection, where it is trained: the decoder behind it is frozen (ours)."""
        weight = self.transformer.proj_out.weight
        return weight if weight.requires_grad else super().last_layer()

    @torch.no_grad()
    def panel(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        size = batch["hr"].shape[-2:]
        return {"lr": resize_up(batch["lr"], size), "sr": self.forward_batch(batch), "hr": batch["hr"]}
