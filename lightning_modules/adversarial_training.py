"""Two optimisers in one training: a generator against an adversary, by manual optimisation."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor

from datamodules.randomness import generator_for
from lightning_modules.adversary import Adversary
from losses.adversarial import adaptive_weight, gradient_at
from losses.weighted_sum import add_terms, check_finite

ADVERSARY = "adversary."
"""What the names of an adversary's tensors begin with, in the module and in a checkpoint."""


@dataclass(frozen=True)
class Manual:
    """What the Trainer does in automatic optimisation and refuses in manual: batches per step, bound on gradients.

    clip: largest norm of the gradients, of generator and heads each on their own; 0 is none.
    """

    accumulate: int = 1
    clip: float = 0.0

    def __post_init__(self) -> None:
        if self.accumulate < 1:
            raise ValueError(f"found trainer.accumulate={self.accumulate}; expected a number of batches >= 1")
        if not 0 <= self.clip < float("inf"):
            raise ValueError(f"found trainer.clip={self.clip}; expected a finite number >= 0, 0 for none")


class AdversarialTraining(pl.LightningModule):
    """The part of a system that trains against an adversary, where it has one.

    adversary: trains against the generator, which is all else: the heads follow the schedule at their own factor and
    step after each step of the generator, and a global step is one of the generator. optimisation: accumulation and
    clipping beside an adversary, given here and not to the Trainer; without an adversary the Trainer does both.
    """

    def __init__(self, adversary: Adversary | None, optimisation: Manual | None) -> None:
        super().__init__()
        self.adversary = adversary
        self.optimisation = optimisation or Manual()
        self.automatic_optimization = adversary is None
        if adversary is not None:
            # DDP expects every tensor that it knows in the generator's backward pass; the heads have their own.
            own = [*adversary.named_parameters(), *adversary.named_buffers()]
            self._ddp_params_and_buffers_to_ignore = [ADVERSARY + name for name, _ in own]

    def last_layer(self) -> Tensor:
        """The trained weight at which an adaptive adversary compares gradients: the last before the image."""
        raise ValueError(
            f"found adversary.adaptive=true, but {type(self).__name__} names no last layer; "
            "set adversary.adaptive=false"
        )

    def accumulates(self) -> bool:
        """Whether this batch ends without a step: the Trainer's own answer, by which it counts and logs steps."""
        return self.trainer.fit_loop.epoch_loop._should_accumulate()

    def train_both(
        self, adversary: Adversary, total: Tensor, sr: Tensor, batch: dict[str, Any]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Backward passes of both sides and, at the end of an accumulation, their steps: (total, terms to log)."""
        step, last = self.global_step, not self.accumulates()
        generator, discriminator = cast(list[LightningOptimizer], self.optimizers())
        # The generator's backward pass needs no gradient of the heads.
        with self.toggled_optimizer(generator), self._gradient_sync(last):
            total, terms = self._add_adversarial(adversary, total, sr, batch)
            self.manual_backward(total / self.optimisation.accumulate)
        if last:
            self._clip(generator)
            generator.step()
            generator.zero_grad()
        generators = sample_generators(batch, "adversary, discriminator")
        loss = adversary.discriminator_loss(sr.detach(), batch["hr"], generators)
        check_finite({"discriminator": loss}, step)
        (loss / self.optimisation.accumulate).backward()  # not DDP's affair, hence no manual_backward
        if last:
            self._step_heads(discriminator)
        return total.detach(), terms | {"discriminator": loss.detach()}

    def _add_adversarial(
        self, adversary: Adversary, total: Tensor, sr: Tensor, batch: dict[str, Any]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        value = adversary.generator_loss(sr, sample_generators(batch, "adversary, generator"))
        if not adversary.adaptive:
            return add_terms(total, {"adversarial": (adversary.weight, value)}, self.global_step)
        gradients = [gradient_at(term, self.last_layer()) for term in (total, value)]
        self._average_over_ranks(gradients)
        ratio = adaptive_weight(gradients[0], gradients[1])
        total, terms = add_terms(total, {"adversarial": (adversary.weight * ratio, value)}, self.global_step)
        return total, terms | {"adaptive_weight": ratio}

    def _step_heads(self, discriminator: LightningOptimizer) -> None:
        parameters = [parameter for group in discriminator.param_groups for parameter in group["params"]]
        self._average_over_ranks([parameter.grad for parameter in parameters])
        self._clip(discriminator)
        discriminator.optimizer.step()  # the plain optimiser's: a wrapped one would count as a global step
        discriminator.zero_grad()
        for scheduler in cast(list[torch.optim.lr_scheduler.LRScheduler], self.lr_schedulers()):
            scheduler.step()

    def _clip(self, optimizer: LightningOptimizer) -> None:
        self.clip_gradients(optimizer.optimizer, self.optimisation.clip, "norm")

    def _gradient_sync(self, wanted: bool) -> AbstractContextManager[None]:
        """Context in which DDP averages the generator's gradients only if `wanted`."""
        strategy = self.trainer.strategy
        return (
            strategy.block_backward_sync() if not wanted and isinstance(strategy, ParallelStrategy) else nullcontext()
        )

    def _average_over_ranks(self, gradients: Sequence[Tensor]) -> None:
        """Replace gradients by their means over the ranks, in one reduction."""
        if self.trainer.world_size == 1:
            return
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        mean = self.trainer.strategy.reduce(flat, reduce_op="mean")
        for gradient, part in zip(gradients, mean.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def on_fit_start(self) -> None:
        if self.adversary is None:
            return
        if self.adversary.adaptive:
            self.last_layer()  # a system without one ends here, not in the first step
        # The Trainer refuses this as an argument in manual optimisation; set here, it counts and logs steps as usual.
        self.trainer.accumulate_grad_batches = self.optimisation.accumulate
        if self.trainer.world_size > 1:
            for tensor in self.adversary.state_dict().values():  # as DDP does with all that it knows
                torch.distributed.broadcast(tensor, 0)

    def on_fit_end(self) -> None:
        if self.adversary is not None:
            self.trainer.accumulate_grad_batches = 1


def sample_generators(batch: Mapping[str, Any], purpose: str) -> list[torch.Generator]:
    """A generator on the CPU per sample, from the batch's `key` (B,4) and a purpose."""
    return [generator_for(key, purpose) for key in batch["key"].tolist()]
