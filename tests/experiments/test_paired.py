import math

import numpy as np
import pytest
from scipy import stats

from experiments.paired import by_seed, compare, half_width, mean_over_seeds


def scores(values):
    """By seed and image, of an array with a row per seed."""
    return {seed: dict(zip("abcd", row, strict=False)) for seed, row in enumerate(values)}


def test_the_interval_is_scipys_of_paired_differences():
    draws = np.random.default_rng(0)
    baseline = draws.normal(30, 1, (5, 4))
    arm = baseline + draws.normal(0.1, 0.05, (5, 4))
    found = compare(scores(arm), scores(baseline))
    expected = stats.ttest_rel(arm.mean(1), baseline.mean(1)).confidence_interval(0.95)
    assert found.difference - found.half_width == pytest.approx(expected.low)
    assert found.difference + found.half_width == pytest.approx(expected.high)
    assert found.applied_to(30.0) == pytest.approx((30 + expected.low, 30 + found.difference, 30 + expected.high))
    assert found.mean == pytest.approx(arm.mean())
    assert found.seeds == 5
    assert found.decided == (expected.low > 0)


def test_ratios_are_of_medians_over_images_and_geometric_over_seeds():
    draws = np.random.default_rng(1)
    baseline = np.exp(draws.normal(2, 0.8, (5, 3)))
    arm = np.exp(draws.normal(0.5, 0.8, (5, 3)))
    arm[0, 0] = 1e6  # the median does not see it
    found = compare(scores(arm), scores(baseline), ratio=True)
    logs = [np.log(np.median(values, axis=1)) for values in (arm, baseline)]
    expected = stats.ttest_rel(*logs).confidence_interval(0.95)
    level = stats.gmean(np.median(baseline, axis=1))
    low, middle, high = found.applied_to(level)
    assert found.mean == pytest.approx(stats.gmean(np.median(arm, axis=1)))
    assert middle == pytest.approx(found.mean), "the arms' shown means are apart by the factor"
    assert (low, high) == pytest.approx((level * math.exp(expected.low), level * math.exp(expected.high)))
    assert found.decided == (expected.high < 0)
    assert mean_over_seeds(by_seed(scores(baseline), ratio=True), ratio=True) == pytest.approx(level)


def test_a_ratio_needs_positive_values():
    with pytest.raises(ValueError, match="expected positive values"):
        compare({0: {"a": 0.0}}, {0: {"a": 1.0}}, ratio=True)


def test_what_images_have_in_common_cancels():
    """The noise of seeds and images that both arms share is none of the difference."""
    baseline = {seed: {"easy": 40.0 + seed, "hard": 20.0 - seed} for seed in range(3)}
    arm = {seed: {name: value + 0.01 for name, value in images.items()} for seed, images in baseline.items()}
    found = compare(arm, baseline)
    assert found.difference == pytest.approx(0.01)
    assert found.half_width == pytest.approx(0, abs=1e-9)


def test_one_seed_decides_nothing():
    assert half_width([0.5]) == math.inf
    assert not compare({0: {"a": 9.0}}, {0: {"a": 1.0}}).decided


@pytest.mark.parametrize("other", [{1: {"a": 1.0}}, {0: {"b": 1.0}}, {0: {}}, {}])
def test_unequal_arms_are_refused(other):
    with pytest.raises(ValueError, match="expected the same ones"):
        compare({0: {"a": 1.0}}, other)
