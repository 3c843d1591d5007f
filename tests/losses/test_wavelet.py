import numpy as np
import pytest
import torch
from torch import Tensor

from losses.wavelet import WaveletLoss, haar_details, wavelet_distances, wavelet_loss


def image(seed: int = 0, batch: int = 1, height: int = 24, width: int = 20) -> Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


def haar(signal: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One decimated Haar level of (..., H, W) by the written-out formula: mean of 2 x 2, and (3, ...) details."""
    a, b = signal[..., ::2, ::2], signal[..., ::2, 1::2]
    c, d = signal[..., 1::2, ::2], signal[..., 1::2, 1::2]
    return (a + b + c + d) / 4, np.stack([a - b + c - d, a + b - c - d, a - b - c + d]) / 4


def over_all_shifts(difference: np.ndarray, level: int) -> float:
    """Mean |detail| of the decimated transform's given level over all shifts that stay inside the image."""
    size, values = 2**level, []
    height, width = difference.shape[-2:]
    for top in range(size):
        for left in range(size):
            rows, columns = (height - top) // size * size, (width - left) // size * size
            low = difference[..., top : top + rows, left : left + columns]
            for _ in range(level):
                low, details = haar(low)
            values.append(np.abs(details).ravel())
    return float(np.concatenate(values).mean())


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_equals_the_decimated_transform_over_all_shifts(levels: int) -> None:
    sr, hr = image(1), image(2)
    difference = (sr.double() - hr.double()).numpy()
    expected = np.mean([over_all_shifts(difference, level) for level in range(1, levels + 1)])
    assert wavelet_loss(sr, hr, levels=levels).item() == pytest.approx(expected, rel=1e-5)


def test_bands_are_vertical_horizontal_and_diagonal_edges() -> None:
    flat = torch.zeros(1, 1, 4, 4)
    columns, rows = flat.clone(), flat.clone()
    columns[..., ::2], rows[..., ::2, :] = 1, 1
    for picture, band in ((columns, 0), (rows, 1), ((columns - rows).abs(), 2)):
        energy = haar_details(picture, 1)[0].abs().mean(dim=(0, 2, 3))
        assert energy.tolist() == [0.5 if index == band else 0.0 for index in range(3)]


def test_a_constant_is_invisible_and_the_difference_counts_linearly() -> None:
    sr, hr = image(1, height=40, width=40), image(2, height=40, width=40)
    assert wavelet_loss(hr + 0.2, hr).item() == pytest.approx(0, abs=1e-6)
    assert wavelet_loss(2 * sr - hr, hr).item() == pytest.approx(2 * wavelet_loss(sr, hr).item(), rel=1e-5)


@pytest.mark.parametrize("level", [1, 2, 3])
def test_a_grid_of_8_px_costs_the_same_wherever_it_starts(level: int) -> None:
    """A decimated transform does not even see the grid where it starts with the image."""
    squares = torch.arange(64) // 8
    grid = ((squares[:, None] + squares) % 2).float()
    side = 32 + 2**level - 1  # whole periods in the valid region
    crops = [grid[None, None, shift : shift + side, shift : shift + side] for shift in range(8)]
    found = [haar_details(crop, level)[-1].abs().mean().item() for crop in crops]
    assert found == pytest.approx([found[0]] * 8, rel=1e-5)
    assert found[0] > 0.03
    low = grid.numpy()
    for _ in range(level):
        low, details = haar(low)
    assert not details.any()


def test_blur_costs_more_than_a_tint_of_equal_error() -> None:
    hr = image(height=32, width=32)
    blurred = torch.nn.functional.avg_pool2d(torch.nn.functional.pad(hr, (1,) * 4, mode="reflect"), 3, stride=1)
    tinted = hr + (blurred - hr).square().mean().sqrt()
    assert wavelet_loss(blurred, hr) > 100 * wavelet_loss(tinted, hr)


def test_module_and_bfloat16() -> None:
    sr, hr = image(1, batch=2).bfloat16(), image(2, batch=2).bfloat16()
    expected = wavelet_distances(sr.float(), hr.float(), levels=2)
    module = WaveletLoss(levels=2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(module.per_image(sr, hr), expected)
        torch.testing.assert_close(module(sr, hr), expected.mean())


def test_errors_name_the_options() -> None:
    with pytest.raises(ValueError, match=r"levels=4 for images of 15 x 40 px.*data\.crop"):
        wavelet_loss(torch.rand(1, 3, 15, 40), torch.rand(1, 3, 15, 40), levels=4)
    with pytest.raises(ValueError, match="levels=0 for images of 24 x 20 px"):
        wavelet_loss(image(), image(), levels=0)
    with pytest.raises(ValueError, match="equal shapes"):
        wavelet_loss(image(), image(height=26))
