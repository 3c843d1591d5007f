import numpy as np
import pytest
import torch
from scipy import stats

from datamodules.degradations.noise import alias_table, counts_by_table, counts_on_device, gaussian_noise, poisson_noise


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def ramp(levels):
    """Every grey level 0..levels-1 in equal shares, 256 pixels each and three equal channels."""
    return (torch.arange(levels).repeat_interleave(256).view(1, levels, 256) / 255).expand(3, -1, -1)


def test_gaussian_noise_has_its_sigma_in_grey_levels():
    field = gaussian_noise(torch.full((3, 300, 300), 0.5), 12.0, False, seeded())
    assert field.std().item() * 255 == pytest.approx(12, rel=0.01)
    assert field.mean().item() * 255 == pytest.approx(0, abs=0.1)
    assert np.abs(np.corrcoef(field.flatten(1)) - np.eye(3)).max() < 0.02


def test_grey_noise_is_the_same_in_all_channels():
    image = ramp(64)
    for noise in (gaussian_noise, poisson_noise):
        noisy = image + noise(image, 1.0, True, seeded()) - image
        assert noisy.shape == image.shape
        assert noisy.std() > 0
        torch.testing.assert_close(noisy[0], noisy[2], atol=1e-7, rtol=0)


@pytest.mark.parametrize(("levels", "peak"), [(33, 64), (64, 64), (65, 128), (128, 128), (200, 256), (256, 256)])
@pytest.mark.parametrize("grey", [False, True])
def test_poisson_variance_is_the_signal_over_the_peak(levels, peak, grey):
    image, scale = ramp(levels), 1.5
    field = poisson_noise(image, scale, grey, seeded())
    # Per row (one grey level): mean 0 and variance scale^2 x / peak.
    signal = image[:1].mean(2) * (0.9999 if grey else 1)
    variance = field.var(2).mean(0, keepdim=True)
    assert field.mean().abs() < 4 * (scale**2 * signal.mean() / peak / field.numel()).sqrt() + 1e-6
    assert variance.mean().item() == pytest.approx(scale**2 * signal.mean().item() / peak, rel=0.1)
    assert variance[0, 0] == 0


def test_poisson_values_are_whole_counts_of_the_peak():
    image = ramp(100)
    counts = (image + poisson_noise(image, 1.0, False, seeded())) * 128
    torch.testing.assert_close(counts, counts.round(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("noise", [gaussian_noise, poisson_noise])
def test_noise_comes_from_the_generator_alone(noise):
    image = ramp(32)
    first = noise(image, 1.0, False, seeded(1))
    torch.rand(3)
    assert torch.equal(first, noise(image, 1.0, False, seeded(1)))
    assert not torch.equal(first, noise(image, 1.0, False, seeded(2)))


@pytest.mark.parametrize("peak", [1, 8, 256])
def test_alias_tables_hold_the_poisson_distribution(peak):
    table = alias_table(peak).view(256, 512).numpy()
    chance, alias = (table >> 9) / 2**22, table & 511
    for level in (0, 1, 100, 255):
        probability = chance[level] / 512
        np.add.at(probability, alias[level], (1 - chance[level]) / 512)
        expected = stats.poisson.pmf(np.arange(512), level / 255 * peak)
        np.testing.assert_allclose(probability, expected, atol=3e-7)


@pytest.mark.parametrize("draw", [counts_by_table, counts_on_device])
def test_poisson_counts_follow_the_distribution(draw):
    levels = torch.full((500_000,), 20.0)
    levels[:64] = torch.arange(64)
    counts, peak = draw(levels, seeded())
    assert int(peak) == 64
    mean = 20 / 255 * 64
    expected = stats.poisson.pmf(np.arange(30), mean) * (len(levels) - 64)
    observed = np.bincount(counts[64:].int(), minlength=30)[:30]
    keep = expected > 20
    expected = expected[keep] * observed[keep].sum() / expected[keep].sum()
    assert stats.chisquare(observed[keep], expected).pvalue > 1e-3
    assert counts[0] == 0


@pytest.mark.parametrize("draw", [counts_by_table, counts_on_device])
@pytest.mark.parametrize(("distinct", "peak"), [(1, 1), (2, 2), (3, 4), (128, 128), (129, 256), (256, 256)])
def test_peak_is_the_next_power_of_two(draw, distinct, peak):
    _, found = draw(torch.arange(float(distinct)).repeat(2, 3), seeded())
    assert int(found) == peak
