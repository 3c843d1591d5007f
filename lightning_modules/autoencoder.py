"""Training of the small F16 codec: reconstruct hr crops."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_modules.adversarial_training import Manual
from lightning_modules.adversary import Adversary
from lightning_modules.networks.small_codec import SmallF16Codec
from lightning_modules.super_resolution import AdamWSchedule, SuperResolution
from losses.weighted_sum import WeightedSum


class Autoencoder(SuperResolution):
    """decode(encode(hr)) against hr, images in [0,1]; the linear path, which PCA has set, learns slower."""

    scale = 1

    def __init__(
        self,
        codec: SmallF16Codec,
        linear_learning_rate: float,
        losses: WeightedSum,
        metrics: Mapping[str, Metric],
        schedule: AdamWSchedule,
        adversary: Adversary | None = None,
        optimisation: Manual | None = None,
    ) -> None:
        super().__init__(losses, metrics, schedule, adversary, optimisation)
        self.codec = codec
        self.linear_learning_rate = linear_learning_rate

    def forward_batch(self, batch: dict[str, Any]) -> Tensor:
        return self.reconstruct(batch["hr"])

    def reconstruct(self, image: Tensor) -> Tensor:
        """decode(encode(image)) of (B,3,H,W) in [0,1] with sides a multiple of 16, unclamped."""
        return self.codec.decode(self.codec.encode(image * 2 - 1).latent_dist.mode()).sample / 2 + 0.5

    def parameter_groups(self) -> Iterable[dict[str, Any]]:
        linear = {id(p) for part in (self.codec.encoder, self.codec.decoder) for p in part.linear.parameters()}
        return [
            {"params": [p for p in self.codec.parameters() if id(p) not in linear], "factor": 1.0},
            {"params": [p for p in self.codec.parameters() if id(p) in linear], "factor": self.linear_learning_rate},
        ]

    def last_layer(self) -> Tensor:
        return self.codec.decoder.conv_out.weight

    @torch.no_grad()
    def panel(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        return {"reconstruction": self.reconstruct(batch["hr"]), "hr": batch["hr"]}
