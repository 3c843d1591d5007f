import pytest
import torch
from torch import Tensor, nn

from losses.fidelity import L1, L2
from losses.weighted_sum import NonFiniteLossError, WeightedSum


class Quotient(nn.Module):
    """Infinite where hr is black."""

    def forward(self, sr: Tensor, hr: Tensor) -> Tensor:
        return (sr / hr).mean()


def pair() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2, 3, 8, 8, generator=generator), torch.rand(2, 3, 8, 8, generator=generator) + 0.1


def test_total_is_weighted_and_terms_are_not() -> None:
    sr, hr = pair()
    sr.requires_grad_(True)
    total, terms = WeightedSum({"l1": (0.5, L1()), "l2": (2.0, L2())})(sr, hr)
    l1, l2 = (sr - hr).abs().mean(), (sr - hr).square().mean()
    assert list(terms) == ["l1", "l2"]
    assert terms["l1"].item() == pytest.approx(l1.item())
    assert not terms["l1"].requires_grad
    assert total.item() == pytest.approx((0.5 * l1 + 2 * l2).item())
    (gradient,) = torch.autograd.grad(total, sr)
    (expected,) = torch.autograd.grad(0.5 * l1 + 2 * l2, sr)
    torch.testing.assert_close(gradient, expected)


def test_weight_zero_is_logged_and_gives_no_gradient() -> None:
    sr, hr = pair()
    sr.requires_grad_(True)
    total, terms = WeightedSum({"l1": (1.0, L1()), "quotient": (0.0, Quotient())})(sr, hr)
    assert terms["quotient"].item() == pytest.approx((sr / hr).mean().item())
    (gradient,) = torch.autograd.grad(total, sr)
    torch.testing.assert_close(gradient, (sr - hr).sign().detach() / sr.numel())


@pytest.mark.parametrize("weight", [1.0, 0.0])
def test_a_non_finite_term_is_named_with_rank_and_step(weight: float) -> None:
    sr, hr = pair()
    hr[0, 0, 0, 0] = 0
    with pytest.raises(NonFiniteLossError, match=r"rank 0 at step 41: quotient = inf$") as error:
        WeightedSum({"l1": (1.0, L1()), "quotient": (weight, Quotient())})(sr, hr, step=41)
    assert isinstance(error.value, FloatingPointError)
    with pytest.raises(NonFiniteLossError, match=r"l1 = nan, l2 = nan"):
        WeightedSum({"l1": (1.0, L1()), "l2": (1.0, L2())})(sr * float("nan"), hr)


def test_impossible_sums_are_refused() -> None:
    with pytest.raises(ValueError, match="no loss term"):
        WeightedSum({})
    for weight in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"losses\.l1\.weight"):
            WeightedSum({"l1": (weight, L1())})
