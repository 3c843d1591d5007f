"""Pretraining of a Flux transformer by flow matching on the latents of hr crops (Lipman 2023, Esser 2024)."""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric

from lightning_modules.adversarial_training import sample_generators
from lightning_modules.latent_flux import LatentFlux, noise_like, shuffled_ids
from lightning_modules.networks.codec import Codec
from lightning_modules.super_resolution import AdamWSchedule, pad_to_multiple
from losses.weighted_sum import check_finite


class LatentFlow(LatentFlux):
    """z_sigma = (1 - sigma) z + sigma eps; the transformer learns the velocity eps - z by MSE.

    The noise level is drawn per sample, sigma = sigmoid(normal(logit_mean, logit_std)) (Esser et al. 2024, eq. 19).
    Nothing but the fixed prompt conditions it, as the one-step student that starts from it has nothing else. Validation
    and panel show the one-step estimate z_sigma - sigma v at `sigma`, the noise level at which the student enters.
    """

    scale = 1

    def __init__(
        self,
        codec: Codec,
        transformer: FluxTransformer2DModel,
        sigma: float,
        logit_mean: float,
        logit_std: float,
        prompt: Tensor,
        pooled_prompt: Tensor,
        metrics: Mapping[str, Metric],
        schedule: AdamWSchedule,
    ) -> None:
        super().__init__(codec.requires_grad_(False), transformer, prompt, pooled_prompt, None, metrics, schedule)
        self.sigma = sigma
        self.logit_mean = logit_mean
        self.logit_std = logit_std

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        with torch.no_grad():
            latent = self.codec.encode(batch["hr"])
        sigma = torch.sigmoid(self.logit_mean + self.logit_std * self._normal(batch).to(latent.device))
        noise = noise_like(latent, sample_generators(batch, "flow noise"))
        velocity = self.velocity(mix(latent, noise, sigma), sigma)
        loss = F.mse_loss(velocity.float(), noise - latent.float())
        check_finite({"flow": loss}, self.global_step)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(latent), sync_dist=True)
        return loss

    def _normal(self, batch: dict[str, Any]) -> Tensor:
        return torch.cat([torch.randn(1, generator=g) for g in sample_generators(batch, "flow noise level")])

    def forward_batch(self, batch: dict[str, Any]) -> Tensor:
        return self.denoise(batch["hr"], sample_generators(batch, "flow noise"))

    def denoise(
        self, image: Tensor, generators: list[torch.Generator], shuffle: torch.Generator | None = None
    ) -> Tensor:
        """The image (B,3,H,W) in [0,1] that one step finds in its latent noised to `sigma`, unclamped.

        generators: of the noise, one per image. shuffle: permutes the image ids, as in `OneStepFlux.restore`.
        """
        height, width = image.shape[-2:]
        latent = self.codec.encode(pad_to_multiple(image, self.token_pitch))
        sigma = latent.new_full((len(latent),), self.sigma)
        noised = mix(latent, noise_like(latent, generators), sigma)
        ids = None if shuffle is None else shuffled_ids(latent, shuffle)
        estimate = noised - self.sigma * self.velocity(noised, sigma, ids)
        return self.codec.decode(estimate)[..., :height, :width]

    @torch.no_grad()
    def panel(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        return {"denoised": self.forward_batch(batch), "hr": batch["hr"]}


def mix(latent: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """z_sigma = (1 - sigma) z + sigma eps for latents (B,C,h,w) and noise levels (B,)."""
    sigma = sigma[:, None, None, None]
    return (1 - sigma) * latent + sigma * noise
