"""Training of an F16 decoder from F8 weights: who has FLUX's VAE has no F16 one (Diffusion-4K, arXiv 2506.01331)."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric

from lightning_modules.adversarial_training import Manual
from lightning_modules.adversary import Adversary
from lightning_modules.networks.codec import Codec
from lightning_modules.networks.f16_vae import is_f16, last_features
from lightning_modules.super_resolution import AdamWSchedule, SuperResolution
from losses.weighted_sum import WeightedSum


class F16Decoder(SuperResolution):
    """decode(encode(hr)) against hr in F16 layout, encoder frozen, decoder trained; images in [0,1].

    codec: in F16 layout, its decoder starting from F8 or F16 weights. teacher: the same VAE in F8 layout, frozen;
    None without scale consistency. scale_consistency: weight of MSE between what the last convolution sees in the
    student and in the teacher, each decoding its own latent of hr (the public code of Diffusion-4K: weight 1; it draws
    latents from the posterior, we take the mode). Raises ValueError where codec and teacher do not fit together.
    """

    scale = 1

    def __init__(
        self,
        codec: Codec,
        teacher: Codec | None,
        scale_consistency: float,
        losses: WeightedSum,
        metrics: Mapping[str, Metric],
        schedule: AdamWSchedule,
        adversary: Adversary | None = None,
        optimisation: Manual | None = None,
    ) -> None:
        check_pair(codec, teacher, scale_consistency)
        super().__init__(losses, metrics, schedule, adversary, optimisation)
        self.codec = codec.requires_grad_(False)
        self.codec.decoder.requires_grad_(True)
        self.teacher = None if teacher is None else teacher.requires_grad_(False)
        self.scale_consistency = scale_consistency
        self._seen: Tensor | None = None

    def forward_batch(self, batch: dict[str, Any]) -> Tensor:
        seen = self.features(self.codec, batch["hr"])
        if self.training and self.teacher is not None:
            self._seen = seen  # `extra_terms` follows and needs it: a second decoding would double the cost
        return self.codec.model.decoder.conv_out(seen) / 2 + 0.5

    def extra_terms(self, batch: dict[str, Any], sr: Tensor) -> dict[str, tuple[float, Tensor]]:
        """Weight and value of the scale consistency for the batch that `forward_batch` has just reconstructed."""
        if self.teacher is None:
            return {}
        seen, self._seen = self._seen, None
        if seen is None:
            raise RuntimeError("extra_terms without a forward_batch in training mode before it")
        with torch.no_grad():
            target = self.features(self.teacher, batch["hr"])
        return {"scale_consistency": (self.scale_consistency, F.mse_loss(seen.float(), target.float()))}

    def features(self, codec: Codec, image: Tensor) -> Tensor:
        """What the last convolution of `codec` sees when it reconstructs (B,3,H,W) in [0,1]: (B,width,H,W)."""
        with torch.no_grad():
            latent = codec.model.encode(image * 2 - 1).latent_dist.mode()
        return last_features(codec.model, latent)

    def last_layer(self) -> Tensor:
        """Weight of the decoder's last convolution, where an adaptive adversarial weight compares gradients."""
        return self.codec.model.decoder.conv_out.weight

    @torch.no_grad()
    def panel(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        return {"reconstruction": self.codec.decode(self.codec.encode(batch["hr"])), "hr": batch["hr"]}

    def frozen_modules(self) -> Iterable[nn.Module]:
        return [self.codec]  # the teacher has the same weights as the codec had, and inference needs none


def check_pair(codec: Codec, teacher: Codec | None, scale_consistency: float) -> None:
    """ValueError where `codec` is not in F16 layout, or the teacher is missing, not in F8 layout or of other widths."""
    if not is_f16(codec.model):
        raise ValueError(
            f"found a {type(codec.model).__name__} with {codec.cell} px per cell; only an AutoencoderKL in F16 layout "
            "has a decoder to train here: change codec.path or codec.layout"
        )
    if teacher is None:
        if scale_consistency:
            raise ValueError(f"found scale_consistency={scale_consistency} without a teacher; expected one, or 0")
        return
    expected = codec.model.config["block_out_channels"], False
    found = teacher.model.config.get("block_out_channels"), is_f16(teacher.model)
    if found != expected:
        raise ValueError(
            f"found a teacher of {found[0]} channels with {teacher.cell} px per cell; expected the F8 layout of "
            f"the codec's {expected[0]} channels: change codec.path"
        )
