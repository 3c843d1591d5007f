"""Differences between arms of a study, paired by seed and image."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy.stats import t as student_t

CONFIDENCE = 0.95

Scores = Mapping[int, Mapping[str, float]]
"""Of one arm and metric: by seed, a value for each image."""


@dataclass(frozen=True)
class Comparison:
    """An arm against the baseline: its own mean, the mean difference and the t interval's half width, over `seeds`."""

    mean: float
    difference: float
    half_width: float
    seeds: int

    @property
    def decided(self) -> bool:
        """Whether the interval leaves out zero."""
        return abs(self.difference) > self.half_width


def compare(arm: Scores, baseline: Scores) -> Comparison:
    """The arm's values less the baseline's, image by image of the same seed, then averaged over the images.

    The interval is Student's over the seeds at 95 %: it speaks of another seed on these images, not of other images.
    With one seed it is infinite. ValueError where seeds or images are not the same on both sides.
    """
    if not arm or arm.keys() != baseline.keys():
        raise ValueError(f"found seeds {sorted(arm)} and {sorted(baseline)}; expected the same ones in both arms")
    differences = [_mean_difference(arm[seed], baseline[seed]) for seed in sorted(arm)]
    mean = statistics.fmean(statistics.fmean(images.values()) for images in arm.values())
    return Comparison(mean, statistics.fmean(differences), half_width(differences), len(differences))


def half_width(values: Sequence[float]) -> float:
    """Half the width of the 95 % t interval of the mean of independent values; infinite for one value.

    >>> round(half_width([1.0, 2.0, 3.0]), 3)
    2.484
    """
    if len(values) < 2:
        return math.inf
    quantile = float(student_t.ppf((1 + CONFIDENCE) / 2, len(values) - 1))
    return quantile * statistics.stdev(values) / math.sqrt(len(values))


def _mean_difference(images: Mapping[str, float], others: Mapping[str, float]) -> float:
    if not images or images.keys() != others.keys():
        raise ValueError(f"found images {sorted(images)} and {sorted(others)}; expected the same ones in both arms")
    return statistics.fmean(value - others[name] for name, value in images.items())
