import numpy as np
import pytest
import torch

from datamodules.degradations.bands import Taps, along_height, along_width


def random_taps(before, after, count, dtype):
    """Taps near the diagonal, as a blur or a resize has them, and the same map as a matrix."""
    generator = torch.Generator().manual_seed(before + after)
    middle = torch.arange(after)[:, None] * before // after
    inputs = (middle + torch.randint(-3, 4, (after, count), generator=generator)).clamp(0, before - 1)
    weights = torch.rand(after, count, generator=generator, dtype=dtype)
    matrix = np.zeros((after, before))
    for output in range(after):
        for position, weight in zip(inputs[output].tolist(), weights[output].tolist(), strict=True):
            matrix[output, position] += weight
    return Taps(inputs, weights), matrix


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [1, 4, 9])
@pytest.mark.parametrize(("before", "after"), [(70, 70), (100, 33), (21, 64), (1, 5), (40, 1)])
def test_bands_are_their_matrix(before, after, count, dtype):
    taps, matrix = random_taps(before, after, count, dtype)
    image = torch.rand(2, 3, before, 11, generator=torch.Generator().manual_seed(0), dtype=dtype)
    expected = matrix @ image.numpy()
    result = along_height(image, taps)
    assert result.dtype == dtype
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)
    turned = along_width(image.transpose(-1, -2), taps)
    np.testing.assert_allclose(turned.transpose(-1, -2), expected, rtol=1e-5, atol=1e-6)
