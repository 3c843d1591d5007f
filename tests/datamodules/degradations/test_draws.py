import numpy as np
import torch

from datamodules.degradations.draws import chance, choice, integer, seed, uniform, weighted


def test_weights_are_the_shares():
    generator = torch.Generator().manual_seed(0)
    drawn = [weighted(generator, "abcd", [0.5, 0.0, 0.3, 0.2]) for _ in range(4000)]
    shares = [drawn.count(letter) / 4000 for letter in "abcd"]
    np.testing.assert_allclose(shares, [0.5, 0, 0.3, 0.2], atol=0.03)


def test_weights_need_no_sum_of_one():
    generator = torch.Generator().manual_seed(0)
    assert {weighted(generator, "ab", [0, 7]) for _ in range(50)} == {"b"}


def test_draws_keep_to_their_ranges_and_to_their_generator():
    generator = torch.Generator().manual_seed(0)
    assert all(2 <= uniform(generator, 2, 3) < 3 for _ in range(200))
    assert {integer(generator, 1, 3) for _ in range(100)} == {1, 2, 3}
    assert {choice(generator, "xy") for _ in range(50)} == {"x", "y"}
    assert [chance(generator, p) for p in (0, 1)] == [False, True]
    first = seed(torch.Generator().manual_seed(5))
    torch.rand(4)
    assert first == seed(torch.Generator().manual_seed(5))
    assert 0 <= first <= 2**62
