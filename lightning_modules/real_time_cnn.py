"""RT4KSR as a system: lr to sr by one small CNN (Zamfir, Conde, Timofte, CVPRW 2023)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_modules.adversarial_training import Manual
from lightning_modules.adversary import Adversary
from lightning_modules.networks.rt4ksr import RT4KSR, UNSHUFFLE, UpscalingNetwork
from lightning_modules.networks.rt4ksr_folded import fold
from lightning_modules.super_resolution import AdamWSchedule, SuperResolution, pad_to_multiple, resize_up
from losses.weighted_sum import WeightedSum


class RealTimeCnn(SuperResolution):
    """Trains a network from lr to sr, images in [0,1]; all of it is trained, so a checkpoint is the whole network."""

    def __init__(
        self,
        network: UpscalingNetwork,
        scale: int,
        losses: WeightedSum,
        metrics: Mapping[str, Metric],
        schedule: AdamWSchedule,
        adversary: Adversary | None = None,
        optimisation: Manual | None = None,
    ) -> None:
        super().__init__(losses, metrics, schedule, adversary, optimisation)
        self.network: UpscalingNetwork = network
        self.scale = scale

    def forward_batch(self, batch: dict[str, Any]) -> Tensor:
        return self.restore(batch["lr"])

    def restore(self, lr: Tensor) -> Tensor:
        """lr (B,3,h,w) in [0,1], any size from 4 px on, to (B,3,scale h,scale w), unclamped.

        An odd side is padded by its last row or column, and what becomes of that is cut off.
        """
        height, width = (side * self.scale for side in lr.shape[-2:])
        return self.network(pad_to_multiple(lr, UNSHUFFLE))[..., :height, :width]

    def deploy(self) -> None:
        """Put the folded network in the place of the trained one, for inference: same images, less work."""
        if isinstance(self.network, RT4KSR):
            self.network = fold(self.network)

    def last_layer(self) -> Tensor:
        return self.network.upsample.weight

    @torch.no_grad()
    def panel(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        lr, hr = batch["lr"], batch["hr"]
        size = (hr.shape[-2], hr.shape[-1])
        return {"lr": resize_up(lr, size), "sr": self.restore(lr), "hr": hr}
