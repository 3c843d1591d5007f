import math

import numpy as np
import pytest
import torch

from datamodules.degradations.kernels import gaussian_kernel, plateau_kernel, sinc_kernel
from datamodules.degradations.parameters import Kernel, draw_factor, draw_kernel, draw_parameters
from datamodules.degradations.presets import KERNEL_WEIGHTS, PRESETS, KernelSizes

COUNT = 2000
SIZES = KernelSizes(7, 21, 13)


@pytest.fixture(scope="module", params=["real_esrgan", "omgsr"])
def drawn(request):
    """The preset, and thousands of draws from one generator."""
    generator = torch.Generator().manual_seed(0)
    preset = PRESETS[request.param]
    return preset, [draw_parameters(preset, 4, generator) for _ in range(COUNT)]


@pytest.fixture(scope="module")
def kernels():
    generator = torch.Generator().manual_seed(1)
    return [draw_kernel(SIZES, (0.2, 3.0), generator) for _ in range(3 * COUNT)]


def assert_uniform(values, low, high):
    values = np.array(values)
    assert values.min() >= low
    assert values.max() <= high
    error = 5 * (high - low) / math.sqrt(12 * len(values))
    assert values.mean() == pytest.approx((low + high) / 2, abs=error)
    assert values.std() == pytest.approx((high - low) / math.sqrt(12), abs=error)


def assert_share(hits, probability):
    error = 4 * math.sqrt(max(probability * (1 - probability), 1e-9) / len(hits)) + 1e-9
    assert np.mean(hits) == pytest.approx(probability, abs=error)


def test_kernel_kinds_have_real_esrgans_shares(kernels):
    assert_share([k.kind == "sinc" for k in kernels], 0.1)
    others = [k.kind for k in kernels if k.kind != "sinc"]
    for kind, share in zip(KERNEL_WEIGHTS, [0.45, 0.25, 0.12, 0.03, 0.12, 0.03], strict=True):
        assert_share([other == kind for other in others], share)


def test_kernel_sizes_are_odd_and_alike_in_share(kernels):
    for size in range(7, 22, 2):
        assert_share([k.size == size for k in kernels], 1 / 8)
    assert {k.size for k in kernels} == set(range(7, 22, 2))


def test_sigmas_and_angles(kernels):
    blurs = [k for k in kernels if k.kind != "sinc"]
    anisotropic = [k for k in blurs if k.kind.startswith("anisotropic")]
    assert_uniform([k.sigma_x for k in blurs], 0.2, 3.0)
    assert_uniform([k.sigma_y for k in anisotropic], 0.2, 3.0)
    assert_uniform([k.angle for k in anisotropic], -math.pi, math.pi)
    assert abs(np.corrcoef([(k.sigma_x, k.sigma_y) for k in anisotropic], rowvar=False)[0, 1]) < 0.1
    isotropic = [k for k in blurs if not k.kind.startswith("anisotropic")]
    assert all(k.sigma_x == k.sigma_y and k.angle == 0 for k in isotropic)


def test_betas_lie_below_one_in_half_of_the_cases(kernels):
    assert all(k.beta == 1 for k in kernels if k.kind.endswith("gaussian"))
    betas = np.array([k.beta for k in kernels if k.kind.endswith("generalised")])
    assert_share(betas < 1, 0.5)
    assert_uniform(betas[betas < 1], 0.5, 1)
    assert_uniform(betas[betas > 1], 1, 4)
    betas = np.array([k.beta for k in kernels if k.kind.endswith("plateau")])
    assert_share(betas == 1, 0.5)
    assert_uniform(betas[betas > 1], 1, 2)


def test_cutoffs_depend_on_the_size(kernels):
    sincs = [k for k in kernels if k.kind == "sinc"]
    assert_uniform([k.cutoff for k in sincs if k.size < 13], math.pi / 3, math.pi)
    assert_uniform([k.cutoff for k in sincs if k.size >= 13], math.pi / 5, math.pi)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("anisotropic gaussian", gaussian_kernel(9, 1.5, 0.7, 0.4)),
        ("anisotropic generalised", gaussian_kernel(9, 1.5, 0.7, 0.4, 2.5)),
        ("anisotropic plateau", plateau_kernel(9, 1.5, 0.7, 0.4, 2.5)),
        ("sinc", sinc_kernel(9, 1.2)),
    ],
)
def test_a_drawn_kernel_is_its_formula(kind, expected):
    beta = 1.0 if kind.endswith("gaussian") else 2.5
    assert torch.equal(Kernel(kind, 9, 1.5, 0.7, 0.4, beta, 1.2).tensor(), expected)


def test_blurs_come_with_their_probability(drawn):
    preset, samples = drawn
    for index, order in enumerate(preset.orders):
        assert_share([s.orders[index].kernel is not None for s in samples], order.blur_probability)
        sigmas = [s.orders[index].kernel.sigma_x for s in samples if s.orders[index].kernel]
        assert max(sigmas) <= order.blur_sigma[1]


@pytest.mark.parametrize("index", [0, 1])
def test_noise_and_quality(drawn, index):
    preset, samples = drawn
    order, orders = preset.orders[index], [s.orders[index] for s in samples]
    assert_share([o.noise.gaussian for o in orders], 0.5)
    assert_share([o.noise.grey for o in orders], 0.4)
    assert_uniform([o.noise.strength for o in orders if o.noise.gaussian], *order.gaussian_sigma)
    assert_uniform([o.noise.strength for o in orders if not o.noise.gaussian], *order.poisson_scale)
    low, high = order.jpeg_quality
    assert {o.quality for o in orders} == set(range(low, high + 1))
    assert np.mean([o.quality for o in orders]) == pytest.approx((low + high) / 2, abs=1.5)
    assert len({o.noise.seed for o in orders}) == COUNT


@pytest.mark.parametrize("index", [0, 1])
def test_resizes(drawn, index):
    preset, samples = drawn
    order, orders = preset.orders[index], [s.orders[index] for s in samples]
    up, down, keep = order.resize_probabilities
    factors = np.array([o.factor for o in orders])
    assert_share(factors > 1, up)
    assert_share(factors < 1, down)
    assert_share(factors == 1, keep)
    assert_uniform(factors[factors > 1], 1, order.resize_factor[1])
    assert_uniform(factors[factors < 1], order.resize_factor[0], 1)
    for name in ("area", "bilinear", "bicubic"):
        assert_share([o.filter_name == name for o in orders], 1 / 3)


def test_endings(drawn):
    _, samples = drawn
    assert_share([s.jpeg_last for s in samples], 0.5)
    sincs = [s.final_sinc for s in samples if s.final_sinc]
    assert len(sincs) / COUNT == pytest.approx(0.8, abs=0.04)
    assert_uniform([k.cutoff for k in sincs], math.pi / 3, math.pi)
    assert {k.kind for k in sincs} == {"sinc"}
    for name in ("area", "bilinear", "bicubic"):
        assert_share([s.final_filter == name for s in samples], 1 / 3)


def test_the_published_ranges():
    first, second = PRESETS["real_esrgan"].orders
    assert (first.blur_sigma, first.resize_factor, first.jpeg_quality) == ((0.2, 3.0), (0.15, 1.5), (30, 95))
    assert (first.gaussian_sigma, first.poisson_scale) == ((1, 30), (0.05, 3))
    assert (first.blur_probability, first.resize_probabilities) == (1, (0.2, 0.7, 0.1))
    assert (second.blur_probability, second.blur_sigma) == (0.8, (0.2, 1.5))
    assert (second.gaussian_sigma, second.poisson_scale) == ((1, 25), (0.05, 2.5))
    assert (second.resize_probabilities, second.resize_factor) == ((0.3, 0.4, 0.3), (0.3, 1.2))
    assert second.jpeg_quality == (30, 95)
    omgsr = PRESETS["omgsr"]
    first, second = omgsr.orders
    assert (first.blur_probability, first.blur_sigma, second.blur_sigma) == (1, (0.2, 3.0), (0.2, 1.5))
    assert (first.resize_probabilities, second.resize_probabilities) == ((0.2, 0.7, 0.1), (0.3, 0.4, 0.3))
    assert (first.gaussian_sigma, first.poisson_scale, first.jpeg_quality) == ((1, 15), (0.05, 2), (60, 95))
    assert (second.gaussian_sigma, second.poisson_scale, second.jpeg_quality) == ((1, 12), (0.05, 1), (60, 100))
    assert (first.resize_factor, second.resize_factor, second.blur_probability) == ((0.3, 1.5), (0.6, 1.2), 0.5)
    assert (omgsr.sizes, omgsr.large_sizes) == (KernelSizes(7, 21, 13), KernelSizes(11, 41, wide=25))


@pytest.mark.parametrize(
    ("name", "scale", "sizes"), [("omgsr", 4, (7, 21)), ("omgsr", 8, (11, 41)), ("real_esrgan", 8, (7, 21))]
)
def test_omgsrs_kernels_grow_with_the_scale(name, scale, sizes):
    generator = torch.Generator().manual_seed(0)
    drawn = [draw_parameters(PRESETS[name], scale, generator) for _ in range(300)]
    sides = [kernel.size for s in drawn for kernel in (s.orders[0].kernel, s.final_sinc) if kernel]
    assert (min(sides), max(sides)) == sizes


def test_draws_come_from_the_generator_alone():
    first = draw_parameters(PRESETS["omgsr"], 4, torch.Generator().manual_seed(3))
    torch.rand(5)
    assert first == draw_parameters(PRESETS["omgsr"], 4, torch.Generator().manual_seed(3))
    assert first != draw_parameters(PRESETS["omgsr"], 4, torch.Generator().manual_seed(4))


def test_factor_stays_in_its_branch():
    generator = torch.Generator().manual_seed(0)
    assert all(draw_factor(generator, (1, 0, 0), (0.3, 1.5)) >= 1 for _ in range(50))
    assert all(draw_factor(generator, (0, 1, 0), (0.3, 1.5)) <= 1 for _ in range(50))
    assert draw_factor(generator, (0, 0, 1), (0.3, 1.5)) == 1
