"""Named loss terms in one weighted sum."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class NonFiniteLossError(FloatingPointError):
    """A loss term became infinite or NaN; the message names the term, the rank and the step."""


class WeightedSum(nn.Module):
    """Sum of weight x term over named terms, each a module `forward(sr, hr) -> scalar`.

    terms: name -> (weight, module). A term of weight 0 is computed for the log only, without a gradient.
    Raises ValueError for no terms at all and for negative or non-finite weights.
    """

    def __init__(self, terms: Mapping[str, tuple[float, nn.Module]]) -> None:
        super().__init__()
        if not terms:
            raise ValueError("found no loss term; give at least one below losses")
        for name, (weight, _) in terms.items():
            if not 0 <= weight < float("inf"):
                raise ValueError(f"found losses.{name}.weight={weight}; expected a finite number >= 0")
        self.weights = {name: float(weight) for name, (weight, _) in terms.items()}
        self.terms = nn.ModuleDict({name: module for name, (_, module) in terms.items()})

    def forward(self, sr: Tensor, hr: Tensor, step: int | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """sr, hr: (B, 3, H, W) in [0, 1] -> (total, terms without weights, detached); raises NonFiniteLossError.

        step: the global step, for the error message only.
        """
        values = {name: self._term(name, sr, hr) for name in self.weights}
        check_finite(values, step)
        total = torch.stack([self.weights[name] * value for name, value in values.items()]).sum()
        return total, {name: value.detach() for name, value in values.items()}

    def _term(self, name: str, sr: Tensor, hr: Tensor) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.weights[name] > 0):
            return self.terms[name](sr, hr)


def add_terms(
    total: Tensor, terms: Mapping[str, tuple[float | Tensor, Tensor]], step: int | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Add weight x value of terms that are no function of (sr, hr) alone: name -> (weight, scalar value).

    Returns (total, values without weights, float32 and detached), for no terms the total itself; raises
    NonFiniteLossError. step: the global step, for the error message only.
    """
    if not terms:
        return total, {}
    values = {name: value.float() for name, (_, value) in terms.items()}
    check_finite(values, step)
    for name, (weight, _) in terms.items():
        total = total + weight * values[name]
    return total, {name: value.detach() for name, value in values.items()}


def check_finite(values: Mapping[str, Tensor], step: int | None) -> None:
    """NonFiniteLossError where one of the named scalars is infinite or NaN; the message names it, rank and step."""
    # One transfer from the device for all terms.
    numbers = torch.stack([value.detach().float() for value in values.values()]).tolist()
    broken = [f"{name} = {number}" for name, number in zip(values, numbers, strict=True) if not _is_finite(number)]
    if broken:
        raise NonFiniteLossError(f"found a non-finite loss on rank {_rank()} at step {step}: {', '.join(broken)}")


def _is_finite(number: float) -> bool:
    return abs(number) < float("inf")


def _rank() -> int:
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_rank() if distributed else 0
