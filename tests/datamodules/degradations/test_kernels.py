import math

import numpy as np
import pytest
import torch
from scipy import special

from datamodules.degradations.kernels import gaussian_kernel, plateau_kernel, sinc_kernel

SHAPES = [(7, 0.2, 0.2, 0), (21, 3, 0.7, 0.6), (9, 1, 2, -2.5)]


def reference_kernel(size, sigma_x, sigma_y, angle, profile):
    """A profile of the squared Mahalanobis distance from the covariance matrix, sampled at whole pixels."""
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    inverse = np.linalg.inv(rotation @ np.diag([sigma_x**2, sigma_y**2]) @ rotation.T)
    half = size // 2
    kernel = np.empty((size, size))
    for row in range(size):
        for column in range(size):
            point = np.array([column - half, row - half])
            kernel[row, column] = profile(point @ inverse @ point)
    return kernel / kernel.sum()


@pytest.mark.parametrize(("size", "sigma_x", "sigma_y", "angle"), SHAPES)
def test_gaussian_kernel_is_the_normal_density(size, sigma_x, sigma_y, angle):
    expected = reference_kernel(size, sigma_x, sigma_y, angle, lambda q: np.exp(-0.5 * q))
    np.testing.assert_allclose(gaussian_kernel(size, sigma_x, sigma_y, angle), expected, atol=1e-7)


@pytest.mark.parametrize("beta", [0.5, 1.7, 4])
@pytest.mark.parametrize(("size", "sigma_x", "sigma_y", "angle"), SHAPES)
def test_generalised_gaussian_and_plateau_kernels(size, sigma_x, sigma_y, angle, beta):
    expected = reference_kernel(size, sigma_x, sigma_y, angle, lambda q: np.exp(-0.5 * q**beta))
    np.testing.assert_allclose(gaussian_kernel(size, sigma_x, sigma_y, angle, beta), expected, atol=1e-7)
    expected = reference_kernel(size, sigma_x, sigma_y, angle, lambda q: 1 / (q**beta + 1))
    np.testing.assert_allclose(plateau_kernel(size, sigma_x, sigma_y, angle, beta), expected, atol=1e-7)


@pytest.mark.parametrize(("size", "cutoff"), [(7, math.pi / 3), (21, math.pi / 5), (13, 2.2), (41, math.pi)])
def test_sinc_kernel_is_the_circular_low_pass(size, cutoff):
    y, x = np.mgrid[:size, :size] - size // 2
    radius = np.hypot(x, y)
    radius[size // 2, size // 2] = 1e-9
    expected = cutoff * special.j1(cutoff * radius) / (2 * np.pi * radius)
    np.testing.assert_allclose(sinc_kernel(size, cutoff), expected / expected.sum(), atol=1e-7)


def test_sinc_kernel_passes_below_its_cutoff_and_stops_above():
    kernel = sinc_kernel(41, math.pi / 2).double().numpy()
    waves = np.exp(1j * np.outer([0.25 * np.pi, 0.75 * np.pi], np.arange(41)))
    low, high = np.abs(waves @ kernel.sum(0))
    assert low == pytest.approx(1, abs=0.1)
    assert high < 0.1


def test_rotation_by_a_quarter_turn_swaps_the_axes():
    turned = gaussian_kernel(11, 2.0, 0.8, math.pi / 2)
    torch.testing.assert_close(turned, gaussian_kernel(11, 0.8, 2.0), atol=1e-7, rtol=0)


@pytest.mark.parametrize("formula", [gaussian_kernel, plateau_kernel])
@pytest.mark.parametrize("arguments", [(8, 1.0, 1.0), (7, 0.0, 1.0), (7, 1.0, -1.0), (7, 1.0, 1.0, 0.0, 0.0)])
def test_impossible_kernels_are_refused(formula, arguments):
    with pytest.raises(ValueError, match="odd size, sigmas > 0, beta > 0"):
        formula(*arguments)


@pytest.mark.parametrize("arguments", [(8, 1.0), (7, 0.0), (7, 3.5)])
def test_impossible_sinc_kernels_are_refused(arguments):
    with pytest.raises(ValueError, match="odd size, cutoff in"):
        sinc_kernel(*arguments)
