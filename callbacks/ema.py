"""Exponential moving average of the trainable parameters; frozen weights and buffers are never copied."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn


def decay_at(update: int, decay: float, warmup: float) -> float:
    """Decay of one update: min(decay, (1 + n) / (warmup + n)), n = updates done before it; plain `decay` at warmup 0.

    Source: tf.train.ExponentialMovingAverage (num_updates), there with warmup 10.

    >>> decay_at(0, 0.999, 10), decay_at(0, 0.999, 0)
    (0.1, 0.999)
    """
    return min(decay, (1 + update) / (warmup + update)) if warmup else decay


class Ema(Callback):
    """Averages every parameter with requires_grad: shadow = d shadow + (1 - d) parameter, in fp32, once per step.

    decay: in [0, 1), applied per update. every_n_steps: optimizer steps between updates (gradient accumulation is no
    step; a batch on which several optimizers step is one). warmup: 0 or False none, True is 10, or a number >= 1, see
    `decay_at`. The average starts at the parameters' values at fit start, stands in for them during validation, and is
    saved with the checkpoint. All ranks of DDP hold equal parameters, hence equal averages, without communication.
    Of a module with `generator_parameters()` (name -> parameter) only these are averaged, so no discriminator is.
    Errors: ValueError for a value out of range, for a module without trainable parameters, or for a checkpoint whose
    averaged names are not the module's.
    """

    def __init__(self, decay: float = 0.999, every_n_steps: int = 1, warmup: bool | float = True) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"ema decay is {decay}, expected a number in [0, 1): change the EMA option 'decay'")
        if every_n_steps < 1:
            raise ValueError(f"ema every_n_steps is {every_n_steps}, expected >= 1: change the option 'every_n_steps'")
        self.warmup = 10.0 if warmup is True else float(warmup)
        if self.warmup and not self.warmup >= 1:
            raise ValueError(f"ema warmup is {warmup}, expected 0 or a number >= 1: change the EMA option 'warmup'")
        self.decay = decay
        self.every_n_steps = every_n_steps
        self._shadow: dict[str, Tensor] = {}
        self._live: dict[str, Tensor] = {}  # the parameters' own values while the average stands in for them
        self._steps = 0
        self._updates = 0
        self._last_global_step = 0

    def averaged_state(self) -> dict[str, Tensor]:
        """Copies of the averaged parameters by their names in the module, fp32; empty before fit or load."""
        return {name: shadow.clone() for name, shadow in self._shadow.items()}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget an earlier fit; a checkpoint is loaded after this hook and before on_fit_start."""
        if stage == "fit":
            self._shadow, self._live, self._steps, self._updates = {}, {}, 0, 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainable = averaged_parameters(pl_module)
        if not trainable:
            raise ValueError("ema found no parameter with requires_grad: nothing to average, leave the EMA option out")
        if not self._shadow:
            self._shadow = {name: p.detach().to(torch.float32, copy=True) for name, p in trainable.items()}
        check_names(set(self._shadow), set(trainable))
        self._shadow = {name: self._shadow[name].to(p.device) for name, p in trainable.items()}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._last_global_step = trainer.global_step

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._last_global_step:
            return  # this batch only accumulated gradients
        self._last_global_step = trainer.global_step
        self._steps += 1
        if self._steps % self.every_n_steps:
            return
        weight = 1 - decay_at(self._updates, self.decay, self.warmup)
        parameters = dict(pl_module.named_parameters())
        for name, shadow in self._shadow.items():
            shadow.lerp_(parameters[name].float(), weight)
        self._updates += 1

    @torch.no_grad()
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        parameters = dict(pl_module.named_parameters())
        self._live = {name: parameters[name].clone() for name in self._shadow}
        for name, shadow in self._shadow.items():
            parameters[name].copy_(shadow)

    @torch.no_grad()
    def _restore(self, pl_module: LightningModule) -> None:
        parameters = dict(pl_module.named_parameters())
        for name, value in self._live.items():
            parameters[name].copy_(value)
        self._live = {}

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restore(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._restore(pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        # A checkpoint written in the middle of validation must hold the trained weights, not the average twice.
        for name, value in self._live.items():
            if name in checkpoint["state_dict"]:
                checkpoint["state_dict"][name] = value

    def state_dict(self) -> dict[str, Any]:
        return {"shadow": self._shadow, "steps": self._steps, "updates": self._updates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._shadow = {name: shadow.clone() for name, shadow in state_dict["shadow"].items()}
        self._steps, self._updates = state_dict["steps"], state_dict["updates"]


def averaged_parameters(pl_module: LightningModule) -> dict[str, nn.Parameter]:
    """The module's `generator_parameters()` where it has that method, else all its parameters with requires_grad."""
    generator_parameters = getattr(pl_module, "generator_parameters", None)
    if callable(generator_parameters):
        return generator_parameters()
    return {name: p for name, p in pl_module.named_parameters() if p.requires_grad}


def check_names(saved: set[str], trainable: set[str]) -> None:
    """Raise ValueError naming the difference between the averaged and the trainable parameters."""
    if saved != trainable:
        raise ValueError(
            f"the checkpoint's moving average does not fit the model: {sorted(saved - trainable)[:3]} are not "
            f"trainable here, {sorted(trainable - saved)[:3]} are not in it; resume with the options of the saved run, "
            "or start from its weights alone with INIT= instead of RESUME="
        )


def averaged_weights(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """The moving average inside a loaded Lightning checkpoint, by parameter name, fp32; empty where none was kept."""
    state = checkpoint.get("callbacks", {}).get(Ema.__qualname__, {})
    return dict(state.get("shadow", {}))
