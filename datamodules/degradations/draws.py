"""Scalar draws of one sample's degradation, all from that sample's own CPU generator."""

from collections.abc import Sequence
from typing import TypeVar

import torch

T = TypeVar("T")


def uniform(generator: torch.Generator, low: float, high: float) -> float:
    """Draw a real number in [low, high)."""
    return low + (high - low) * torch.rand((), generator=generator, dtype=torch.float64).item()


def integer(generator: torch.Generator, low: int, high: int) -> int:
    """Draw an integer in [low, high], both ends included."""
    return int(torch.randint(low, high + 1, (), generator=generator).item())


def chance(generator: torch.Generator, probability: float) -> bool:
    """Return True with the given probability; 0 is never and 1 is always."""
    return uniform(generator, 0.0, 1.0) < probability


def choice(generator: torch.Generator, options: Sequence[T]) -> T:
    """Draw one of the options, all equally likely."""
    return options[integer(generator, 0, len(options) - 1)]


def weighted(generator: torch.Generator, options: Sequence[T], weights: Sequence[float]) -> T:
    """Draw one of the options in proportion to its weight, 0 or more each and one at least above 0."""
    left = uniform(generator, 0.0, sum(weights))
    for option, weight in zip(options, weights, strict=True):
        if left < weight:
            return option
        left -= weight
    # Only a last-bit difference between the sum and the subtractions comes here.
    return max(zip(weights, options, strict=True), key=lambda pair: pair[0])[1]


def seed(generator: torch.Generator) -> int:
    """Draw a seed for a generator of its own, on any device."""
    return integer(generator, 0, 2**62)
