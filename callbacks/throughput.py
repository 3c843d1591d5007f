"""Where the time of a training step goes: waiting for data, degrading, computing; images per second; peak memory."""

import resource
import sys
import time
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from callbacks.image_panel import logging_step


@dataclass
class Interval:
    """Sums over the steps of one logging interval; seconds are those of this rank's host clock."""

    gaps: float = 0.0
    degrading: float = 0.0
    computing: float = 0.0
    steps: int = 0
    images: int = 0

    def add(self, gap: float, degrading: float, computing: float, images: int) -> None:
        """One step: `gap` seconds since the step before (the degradation included), then `computing` seconds."""
        self.gaps += gap
        self.degrading += degrading
        self.computing += computing
        self.steps += 1
        self.images += images

    def report(self, world_size: int = 1) -> dict[str, float]:
        """Averages per step in seconds, and images per second over all ranks (equal batches); needs one step or more.

        >>> interval = Interval()
        >>> interval.add(gap=0.3, degrading=0.1, computing=0.7, images=8)
        >>> {key: round(value, 3) for key, value in interval.report(world_size=2).items()}
        {'data_wait_s': 0.2, 'degrade_s': 0.1, 'step_s': 0.7, 'images_per_s': 16.0}
        """
        waiting = max(self.gaps - self.degrading, 0.0)
        total = waiting + self.degrading + self.computing
        return {
            "data_wait_s": waiting / self.steps,
            "degrade_s": self.degrading / self.steps,
            "step_s": self.computing / self.steps,
            "images_per_s": self.images * world_size / max(total, 1e-9),
        }


def peak_memory_gib(device: torch.device) -> float:
    """Peak memory of this process so far in GiB: allocated by torch on a CUDA device, else resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def batch_size(batch: dict[str, Any]) -> int:
    """Samples in a batch: the length of its first tensor."""
    return next((len(value) for value in batch.values() if isinstance(value, Tensor)), 0)


class Throughput(Callback):
    """Logs `speed/{data_wait_s, degrade_s, step_s, images_per_s, peak_memory_gib}` every log_every_n_steps.

    Averages over the interval's batches; validation and the writing of checkpoints count in none of them. The data wait
    is the time from the end of a batch to the start of the next, less the data module's `degrade_seconds` (float, what
    its on_after_batch_transfer took; 0 where it has none). On CUDA the device is waited for at interval ends and before
    validation only: within an interval the split shows the host's view, its sum and images/s are exact.
    """

    def __init__(self) -> None:
        super().__init__()
        self._interval = Interval()
        self._ended: float | None = None  # None: what passes until the next batch is no data wait
        self._started = 0.0
        self._gap = 0.0
        self._degrading = 0.0
        self._global_step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._global_step = trainer.global_step  # not 0 after a resume

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._ended = time.perf_counter()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._started = time.perf_counter()
        self._degrading = float(getattr(getattr(trainer, "datamodule", None), "degrade_seconds", None) or 0.0)
        # After a pause only the degradation is known of the gap.
        self._gap = self._degrading if self._ended is None else self._started - self._ended

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = logging_step(trainer)
        stepped, self._global_step = trainer.global_step != self._global_step, trainer.global_step
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]  # set outside Trainer's own code
        due = stepped and every > 0 and (step + 1) % every == 0
        if due:
            _synchronize(pl_module.device)
        self._ended = time.perf_counter()
        self._interval.add(self._gap, self._degrading, self._ended - self._started, batch_size(batch))
        if due:
            speed = self._interval.report(trainer.world_size) | {"peak_memory_gib": peak_memory_gib(pl_module.device)}
            for logger in trainer.loggers:
                logger.log_metrics({f"speed/{key}": value for key, value in speed.items()}, step=step)
            self._interval = Interval()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        before = time.perf_counter()
        _synchronize(pl_module.device)
        self._interval.computing += time.perf_counter() - before

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._ended = time.perf_counter()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._ended = None


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
