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
    """An arm against the base arm: its own mean, the mean difference and the t interval's half width, over `seeds`.

    ratio: the mean is geometric, and difference and half width are natural logarithms of a factor.
    """

    mean: float
    difference: float
    half_width: float
    seeds: int
    ratio: bool = False

    @property
    def decided(self) -> bool:
        """Whether the interval leaves out zero, or the factor 1."""
        return abs(self.difference) > self.half_width

    def applied_to(self, level: float) -> tuple[float, float, float]:
        """Lower end, middle and upper end of the interval, put on top of a level such as the base arm's mean."""
        steps = (self.difference - self.half_width, self.difference, self.difference + self.half_width)
        low, middle, high = (level * math.exp(step) if self.ratio else level + step for step in steps)
        return low, middle, high


def compare(arm: Scores, baseline: Scores, ratio: bool = False) -> Comparison:
    """The arm's values less the baseline's, image by image of the same seed, then averaged over the images.

    The interval is Student's over the seeds at 95 %: it speaks of another seed on these images, not of other images.
    With one seed it is infinite. ratio: for positive values with a long tail, medians over the images, whose logarithms
    are compared. ValueError where seeds or images are not the same on both sides.
    """
    if not arm or arm.keys() != baseline.keys():
        raise ValueError(f"found seeds {sorted(arm)} and {sorted(baseline)}; expected the same ones in both arms")
    for seed in arm:
        _check_same_images(arm[seed], baseline[seed])
    own, other = (by_seed(scores, ratio) for scores in (arm, baseline))
    # the mean of the images' differences is the difference of their means
    differences = [_scaled(own[seed], ratio) - _scaled(other[seed], ratio) for seed in sorted(arm)]
    width = half_width(differences)
    return Comparison(mean_over_seeds(own, ratio), statistics.fmean(differences), width, len(differences), ratio)


def by_seed(scores: Scores, ratio: bool = False) -> dict[int, float]:
    """Each seed's mean over the images, or for ratios its median."""
    average = statistics.median if ratio else statistics.fmean
    return {seed: float(average(images.values())) for seed, images in scores.items()}


def mean_over_seeds(values: Mapping[int, float], ratio: bool = False) -> float:
    """The mean of the seeds' values, for ratios the geometric one, as the ratios of two arms' means are then paired."""
    mean = statistics.fmean(_scaled(value, ratio) for value in values.values())
    return math.exp(mean) if ratio else mean


def half_width(values: Sequence[float]) -> float:
    """Half the width of the 95 % t interval of the mean of independent values; infinite for one value.

    >>> round(half_width([1.0, 2.0, 3.0]), 3)
    2.484
    """
    if len(values) < 2:
        return math.inf
    quantile = float(student_t.ppf((1 + CONFIDENCE) / 2, len(values) - 1))
    return quantile * statistics.stdev(values) / math.sqrt(len(values))


def _scaled(value: float, ratio: bool) -> float:
    if ratio and value <= 0:
        raise ValueError(f"found {value}; expected positive values where arms are compared by their ratio")
    return math.log(value) if ratio else value


def _check_same_images(images: Mapping[str, float], others: Mapping[str, float]) -> None:
    if not images or images.keys() != others.keys():
        raise ValueError(f"found images {sorted(images)} and {sorted(others)}; expected the same ones in both arms")
