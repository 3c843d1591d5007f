"""What every system shares: losses, validation metrics, schedule, and checkpoints without frozen tensors."""

import hashlib
import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric, MetricCollection

from lightning_modules.adversarial_training import ADVERSARY, AdversarialTraining, Manual
from lightning_modules.adversary import Adversary
from losses.weighted_sum import WeightedSum, add_terms

BASE_FINGERPRINT = "base_fingerprint"


@dataclass(frozen=True)
class AdamWSchedule:
    """AdamW with linear warm-up and a decay of the learning rate over a run of `steps`.

    decay: linear or cosine, from the peak to final_factor of it over the last decay_share of the run; or steps, times
    step_factor after every step_share of the run.
    """

    learning_rate: float
    betas: tuple[float, float]
    weight_decay: float
    warmup_steps: int
    decay_share: float
    final_factor: float
    steps: int
    decay: str = "linear"
    step_share: float = 0.2
    step_factor: float = 0.5

    def factor(self, step: int) -> float:
        """Learning rate at a step as a factor of its peak.

        >>> s = AdamWSchedule(1e-3, (0.9, 0.99), 0.0, warmup_steps=10, decay_share=0.5, final_factor=0.0, steps=100)
        >>> s.factor(0), s.factor(50), s.factor(75), s.factor(100)
        (0.1, 1.0, 0.5, 0.0)
        """
        warm = min(1.0, (step + 1) / max(self.warmup_steps, 1))
        if self.decay == "steps":
            # the small number keeps 3 * 0.2 of a run from falling short of 0.6 of it
            return warm * self.step_factor ** math.floor(step / (self.steps * self.step_share) + 1e-9)
        falling = self.steps * self.decay_share
        left = min(1.0, max(self.steps - step, 0) / falling) if falling else 1.0
        if self.decay == "cosine":
            left = (1 - math.cos(math.pi * left)) / 2
        return warm * (self.final_factor + (1 - self.final_factor) * left)


class SuperResolution(AdversarialTraining):
    """Base of the systems: a subclass implements `forward_batch`, `panel` and, where it upscales, `upscale`.

    losses: the weighted sum that trains; None for a system with a training step of its own. metrics: validation metrics
    by name, each `update(sr, hr)` on images clamped to [0,1]. schedule: optimiser and learning rate. Only parameters
    with requires_grad are optimised and saved; the rest is the base, of which a checkpoint keeps a fingerprint.

    adversary, optimisation: see `AdversarialTraining`.
    """

    scale: int

    def __init__(
        self,
        losses: WeightedSum | None,
        metrics: Mapping[str, Metric],
        schedule: AdamWSchedule,
        adversary: Adversary | None = None,
        optimisation: Manual | None = None,
    ) -> None:
        super().__init__(adversary, optimisation)
        self.losses = losses
        self.metrics = MetricCollection(dict(metrics), compute_groups=False)
        self.schedule = schedule
        self._base_fingerprint: str | None = None
        self.strict_loading = False  # frozen tensors are absent by design; `on_load_checkpoint` checks the rest

    @abstractmethod
    def forward_batch(self, batch: dict[str, Any]) -> Tensor:
        """The batch's output image (B,3,H,W) in [0,1], unclamped, in the autocast precision."""

    @abstractmethod
    def panel(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Named images (B,3,H,W) of equal size in the order in which they are shown."""

    def extra_terms(self, batch: dict[str, Any], sr: Tensor) -> Mapping[str, tuple[float, Tensor]]:
        """Named (weight, scalar) terms of the training loss that are no function of (sr, hr) alone.

        Called right after `forward_batch` of the same batch and in its autocast precision.
        """
        return {}

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor | None:
        if self.losses is None:
            raise RuntimeError(f"{type(self).__name__} has no losses, so it needs a training_step of its own")
        sr = self.forward_batch(batch).float()
        extra = self.extra_terms(batch, sr)
        with torch.autocast(sr.device.type, enabled=False):
            total, terms = self.losses(sr, batch["hr"], step=self.global_step)
            total, values = add_terms(total, extra, self.global_step)
            terms |= values
            if self.adversary is not None:
                total, values = self.train_both(self.adversary, total, sr, batch)
                terms |= values
        self._log_training(total, terms, len(batch["hr"]))
        return total if self.automatic_optimization else None

    def _log_training(self, total: Tensor, terms: Mapping[str, Tensor], size: int) -> None:
        """Log a step's last batch: all that Lightning takes of an accumulation where optimisation is automatic."""
        if not self.automatic_optimization and self.accumulates():
            # Lightning logs each batch of manual optimisation, and would repeat what the last step has left.
            if self.trainer._results is not None:
                self.trainer._results.reset(fx="training_step")
            return
        self.log("train/loss", total, prog_bar=True, batch_size=size, sync_dist=True)
        self.log_dict({f"train/{name}": value for name, value in terms.items()}, batch_size=size, sync_dist=True)

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        sr = self.forward_batch(batch).float().clamp(0, 1)
        with torch.autocast(sr.device.type, enabled=False):
            self.metrics.update(sr, batch["hr"])
        tags = {f"val/{name}": metric for name, metric in self.metrics.items(keep_base=True, copy_state=False)}
        self.log_dict(tags, batch_size=len(sr))

    def parameter_groups(self) -> Iterable[dict[str, Any]]:
        """Groups of the generator's parameters with their learning rate as a factor of the peak."""
        return [{"params": list(self.generator_parameters().values()), "factor": 1.0}]

    def configure_optimizers(self) -> Any:
        generator = self._optimizer(self.parameter_groups())
        if self.adversary is None:
            return generator
        heads = {"params": list(self.adversary.parameters()), "factor": self.adversary.learning_rate_factor}
        return [generator, self._optimizer([heads])]

    def _optimizer(self, parameter_groups: Iterable[dict[str, Any]]) -> dict[str, Any]:
        schedule = self.schedule
        groups = [{"params": g["params"], "lr": schedule.learning_rate * g["factor"]} for g in parameter_groups]
        optimizer = torch.optim.AdamW(
            groups, lr=schedule.learning_rate, betas=schedule.betas, weight_decay=schedule.weight_decay
        )
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule.factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def generator_parameters(self) -> dict[str, nn.Parameter]:
        """The trained parameters without the adversary's: what is averaged and what inference needs."""
        named = self.named_parameters()
        return {name: p for name, p in named if p.requires_grad and not name.startswith(ADVERSARY)}

    def trainable_parameters(self) -> dict[str, Tensor]:
        """What a checkpoint must hold: the generator's parameters, an adversary's heads and their spectral norms."""
        heads = {} if self.adversary is None else self.adversary.state_dict(keep_vars=True)
        return {**self.generator_parameters(), **{ADVERSARY + name: tensor for name, tensor in heads.items()}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        trainable = self.trainable_parameters()
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in trainable}
        checkpoint[BASE_FINGERPRINT] = self.base_fingerprint()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        check_trainable(checkpoint["state_dict"], self.trainable_parameters())
        check_base(checkpoint, self.base_fingerprint())

    def base_fingerprint(self) -> str:
        """Hash of the frozen parameters, by which a checkpoint recognises the base it was trained on.

        Computed once: hashing 12 billion parameters takes a minute, and frozen ones do not change.
        """
        if self._base_fingerprint is None:
            self._base_fingerprint = fingerprint(self.frozen_modules(), self.fixed_tensors())
        return self._base_fingerprint

    def fixed_tensors(self) -> Mapping[str, Tensor]:
        """What is fixed beside the frozen parameters and not in the checkpoint, by name."""
        return {}

    def frozen_modules(self) -> Iterable[nn.Module]:
        """Modules that hold the frozen base; perceptual networks inside the losses are none of it."""
        return []


def without_adversary(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint's tensors without those of an adversary: what a system without one loads."""
    return {name: value for name, value in weights.items() if not name.startswith(ADVERSARY)}


def fingerprint(modules: Iterable[nn.Module], tensors: Mapping[str, Tensor]) -> str:
    """Sixteen hexadecimal digits from names, shapes, types and bytes of modules' frozen parameters and of tensors."""
    digest = hashlib.blake2b(digest_size=8)
    named = [item for module in modules for item in module.named_parameters() if not item[1].requires_grad]
    for name, tensor in [*named, *tensors.items()]:
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_trainable(saved: Mapping[str, Tensor], trainable: Mapping[str, Tensor]) -> None:
    """ValueError where a checkpoint's tensors are not, by name and shape, exactly the model's trainable ones."""
    if set(saved) != set(trainable):
        missing, extra = sorted(set(trainable) - set(saved)), sorted(set(saved) - set(trainable))
        raise ValueError(
            f"the checkpoint does not fit the model: {len(missing)} trainable tensors are missing {missing[:3]}, "
            f"{len(extra)} are not of this model {extra[:3]}; give a checkpoint of the same experiment (CKPT=, INIT= "
            "or RESUME=)"
        )
    for name, value in saved.items():
        if value.shape != trainable[name].shape:
            raise ValueError(
                f"tensor {name} has shape {tuple(value.shape)} in the checkpoint and {tuple(trainable[name].shape)} in "
                "the model; give a checkpoint of the same experiment (CKPT=, INIT= or RESUME=)"
            )


def check_base(checkpoint: Mapping[str, Any], found: str) -> None:
    """ValueError where the frozen base is not the one that the checkpoint was trained on."""
    expected = checkpoint.get(BASE_FINGERPRINT, "")
    if expected != found:
        raise ValueError(
            f"the frozen base (fingerprint {found}) is not the one this checkpoint was trained on ({expected}); "
            "point codec.path, transformer.path and transformer.prompt to what was used then (or the checkpoint is of "
            "an older version of this project)"
        )


def resize_up(lr: Tensor, size: tuple[int, int]) -> Tensor:
    """Bicubic up-sampling of lr (B,3,h,w) to `size` pixels, the input of the students and the plain reference."""
    return F.interpolate(lr.float(), size=size, mode="bicubic", antialias=False)


def pad_to_multiple(image: Tensor, unit: int) -> Tensor:
    """Pad (B,3,H,W) at the bottom and the right by replication to the next multiple of `unit` pixels per side."""
    height, width = image.shape[-2:]
    bottom, right = -height % unit, -width % unit
    return F.pad(image, (0, right, 0, bottom), mode="replicate") if bottom or right else image
