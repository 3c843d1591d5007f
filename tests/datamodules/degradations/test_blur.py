import numpy as np
import pytest
import torch
from scipy import ndimage

from datamodules.degradations.blur import blur, blur_fft, blur_separable, reflect_pad, separate
from datamodules.degradations.kernels import gaussian_kernel, plateau_kernel, sinc_kernel


def seeded_image(*shape):
    return np.random.default_rng(0).random(shape, dtype=np.float32)


@pytest.mark.parametrize("tile", [16, 30, 1000])
@pytest.mark.parametrize(("height", "width", "size"), [(40, 53, 21), (9, 12, 41), (33, 1, 7)])
def test_fft_blur_is_a_mirrored_convolution(height, width, size, tile):
    image = seeded_image(1, 3, height, width)
    kernel = seeded_image(size, size)
    kernel /= kernel.sum()
    expected = [[ndimage.convolve(plane, kernel, mode="mirror") for plane in image[0]]]
    result = blur_fft(torch.from_numpy(image), torch.from_numpy(kernel), tile)
    np.testing.assert_allclose(result, np.array(expected), atol=2e-6)


@pytest.mark.parametrize(("height", "width", "size"), [(70, 53, 21), (9, 12, 41), (33, 1, 7)])
def test_separable_blur_is_a_mirrored_convolution(height, width, size):
    image, (down, across) = seeded_image(1, 3, height, width), seeded_image(2, size) / size
    expected = [[ndimage.convolve(plane, np.outer(down, across), mode="mirror") for plane in image[0]]]
    result = blur_separable(torch.from_numpy(image), torch.from_numpy(down), torch.from_numpy(across))
    np.testing.assert_allclose(result, np.array(expected), atol=2e-6)


@pytest.mark.parametrize(
    ("kernel", "separable"),
    [
        (gaussian_kernel(21, 1.3, 1.3), True),
        (gaussian_kernel(9, 0.2, 2.8), True),
        (gaussian_kernel(15, 1.0, 2.0, 0.5), False),
        (plateau_kernel(15, 1.0, 1.0), False),
        (sinc_kernel(13, 1.5), False),
    ],
)
def test_every_kernel_takes_a_way_that_gives_the_convolution(kernel, separable):
    image = seeded_image(1, 1, 37, 50)
    assert (separate(kernel) is not None) == separable
    expected = ndimage.convolve(image[0, 0], kernel.numpy(), mode="mirror")
    np.testing.assert_allclose(blur(torch.from_numpy(image), kernel)[0, 0], expected, atol=2e-6)


@pytest.mark.parametrize("pads", [((2, 2), (2, 2)), ((1, 4), (0, 6)), ((5, 0), (3, 2)), ((23, 9), (1, 40))])
def test_reflect_pad_is_numpys(pads):
    image = torch.arange(35.0).view(1, 1, 5, 7)
    np.testing.assert_array_equal(reflect_pad(image, *pads)[0, 0], np.pad(image[0, 0].numpy(), pads, mode="reflect"))
