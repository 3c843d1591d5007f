import math

import numpy as np
import pytest
from scipy import stats

from experiments.paired import compare, half_width


def test_the_interval_is_scipys_of_paired_differences():
    draws = np.random.default_rng(0)
    baseline = draws.normal(30, 1, (5, 4))
    arm = baseline + draws.normal(0.1, 0.05, (5, 4))
    scores = [{seed: dict(zip("abcd", row, strict=True)) for seed, row in enumerate(x)} for x in (arm, baseline)]
    found = compare(*scores)
    expected = stats.ttest_rel(arm.mean(1), baseline.mean(1)).confidence_interval(0.95)
    assert found.difference - found.half_width == pytest.approx(expected.low)
    assert found.difference + found.half_width == pytest.approx(expected.high)
    assert found.mean == pytest.approx(arm.mean())
    assert found.seeds == 5
    assert found.decided == (expected.low > 0)


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
