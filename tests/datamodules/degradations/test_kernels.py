import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from datamodules.degradations.kernels import blur, draw_gaussian_kernel, gaussian_kernel, reflect_pad


def reference_kernel(size, sigma_x, sigma_y, angle):
    """The density of a bivariate normal from its covariance matrix, sampled at whole pixels."""
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    inverse = np.linalg.inv(rotation @ np.diag([sigma_x**2, sigma_y**2]) @ rotation.T)
    half = size // 2
    kernel = np.empty((size, size))
    for row in range(size):
        for column in range(size):
            point = np.array([column - half, row - half])
            kernel[row, column] = np.exp(-0.5 * point @ inverse @ point)
    return kernel / kernel.sum()


@pytest.mark.parametrize(
    ("size", "sigma_x", "sigma_y", "angle"), [(7, 0.2, 0.2, 0), (21, 3, 0.7, 0.6), (9, 1, 2, -2.5)]
)
def test_gaussian_kernel_is_the_normal_density(size, sigma_x, sigma_y, angle):
    kernel = gaussian_kernel(size, sigma_x, sigma_y, angle)
    np.testing.assert_allclose(kernel, reference_kernel(size, sigma_x, sigma_y, angle), atol=1e-7)


def test_rotation_by_a_quarter_turn_swaps_the_axes():
    turned = gaussian_kernel(11, 2.0, 0.8, math.pi / 2)
    torch.testing.assert_close(turned, gaussian_kernel(11, 0.8, 2.0), atol=1e-7, rtol=0)


@pytest.mark.parametrize("arguments", [(8, 1.0, 1.0), (7, 0.0, 1.0), (7, 1.0, -1.0)])
def test_impossible_kernels_are_refused(arguments):
    with pytest.raises(ValueError, match="odd size, sigmas > 0"):
        gaussian_kernel(*arguments)


def test_drawn_kernels_keep_to_their_ranges():
    generator = torch.Generator().manual_seed(0)
    kernels = [draw_gaussian_kernel(generator, (7, 21), (0.5, 1.2), 0.0) for _ in range(300)]
    assert {len(k) for k in kernels} == set(range(7, 22, 2))
    for kernel in kernels:
        # For neighbours on an axis, log ratio = 1 / (2 sigma^2).
        middle = len(kernel) // 2
        sigma = (2 * torch.log(kernel[middle, middle] / kernel[middle, middle + 1])) ** -0.5
        assert 0.5 <= sigma <= 1.2


def test_anisotropic_share():
    generator = torch.Generator().manual_seed(0)
    kernels = [draw_gaussian_kernel(generator, (9, 9), (0.5, 3.0), 0.3) for _ in range(500)]
    anisotropic = sum(not torch.allclose(k, k.T, atol=1e-7) for k in kernels)
    assert 110 <= anisotropic <= 190


@pytest.mark.parametrize(("height", "width", "size"), [(40, 53, 21), (9, 12, 41), (33, 1, 7)])
def test_blur_is_a_mirrored_convolution(height, width, size):
    rng = np.random.default_rng(0)
    image = rng.random((2, 3, height, width), dtype=np.float32)
    kernels = rng.random((2, size, size), dtype=np.float32)
    kernels /= kernels.sum((1, 2), keepdims=True)
    expected = [[ndimage.convolve(c, k, mode="mirror") for c in i] for i, k in zip(image, kernels, strict=True)]
    result = blur(torch.from_numpy(image), torch.from_numpy(kernels))
    np.testing.assert_allclose(result, np.array(expected), atol=2e-6)


def test_blur_of_a_sample_does_not_depend_on_the_batch():
    images = torch.rand(4, 3, 50, 40, generator=torch.Generator().manual_seed(0))
    kernels = torch.stack([gaussian_kernel(11, s, 2 * s, s) for s in (0.3, 0.8, 1.5, 2.5)])
    singles = torch.cat([blur(i[None], k[None]) for i, k in zip(images, kernels, strict=True)])
    torch.testing.assert_close(blur(images, kernels), singles, atol=1e-6, rtol=0)


@pytest.mark.parametrize("pad", [2, 4, 5, 23])
def test_reflect_pad_is_numpys(pad):
    image = torch.arange(35.0).view(1, 1, 5, 7)
    expected = np.pad(image[0, 0].numpy(), pad, mode="reflect")
    np.testing.assert_array_equal(reflect_pad(image, pad)[0, 0], expected)
