import numpy as np
import pytest
import torch
from torch import Tensor

from datamodules.randomness import generator_for
from lightning_modules.networks.diff_augment import diff_augment


def images(height: int = 17, width: int = 26, batch: int = 4) -> Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(0))


def generators(start: int = 0, count: int = 4) -> list[torch.Generator]:
    return [generator_for((1, 0, sample, 0), "augmentation") for sample in range(start, start + count)]


def numpy_augment(image: Tensor, generator: torch.Generator) -> np.ndarray:
    """Zhao et al. 2020 pixel by pixel, on [-1, 1]: colour, then translation by 1/8, then a cutout of 1/2."""
    brightness, saturation, contrast = torch.rand(3, generator=generator).double().tolist()
    x = 2 * image.double().numpy() - 1 + brightness - 0.5
    grey = x.mean(axis=0, keepdims=True)
    x = (x - grey) * 2 * saturation + grey
    x = (x - x.mean()) * (contrast + 0.5) + x.mean()
    height, width = x.shape[1:]
    reach = [int(side * 0.125 + 0.5) for side in (height, width)]
    down, right = (int(torch.randint(-r, r + 1, (), generator=generator)) for r in reach)
    size = [int(side * 0.5 + 0.5) for side in (height, width)]
    centre = [
        int(torch.randint(0, side + (1 - cut % 2), (), generator=generator))
        for side, cut in zip((height, width), size, strict=True)
    ]
    result = np.zeros_like(x)
    for row in range(height):
        for column in range(width):
            source = row - down, column - right
            inside = 0 <= source[0] < height and 0 <= source[1] < width
            first = [c - s // 2 for c, s in zip(centre, size, strict=True)]
            cut = all(f <= p < f + s for f, p, s in zip(first, (row, column), size, strict=True))
            if inside and not cut:
                result[:, row, column] = x[:, source[0], source[1]]
    return result / 2 + 0.5


@pytest.mark.parametrize("size", [(17, 26), (16, 9)])
def test_equals_the_published_policy(size: tuple[int, int]) -> None:
    expected = [numpy_augment(image, g) for image, g in zip(images(*size), generators(), strict=True)]
    np.testing.assert_allclose(diff_augment(images(*size), generators()).numpy(), np.stack(expected), atol=1e-5)


def test_a_batch_split_over_two_ranks_is_augmented_as_the_whole() -> None:
    whole = diff_augment(images(), generators())
    parts = [diff_augment(images()[:1], generators(0, 1)), diff_augment(images()[1:], generators(1, 3))]
    assert torch.equal(whole, torch.cat(parts))
    assert not torch.equal(whole, diff_augment(images(), generators(4)))


def test_gradient_reaches_what_is_neither_moved_out_nor_cut_out() -> None:
    image = images().requires_grad_(True)
    diff_augment(image, generators()).square().sum().backward()
    assert image.grad is not None
    touched = (image.grad != 0).float().mean(dim=(1, 2, 3))
    assert (touched > 0.4).all()


def test_draws_are_uniform_over_their_ranges() -> None:
    """Of a white image: translation and cutout leave mid-grey, so brightness and position can be read off."""
    white = torch.ones(400, 3, 16, 16)
    grey = (diff_augment(white, generators(count=400)) - 0.5).abs() < 1e-6
    brightness = diff_augment(white, generators(count=400)).flatten(1).amax(dim=1) - 1
    assert brightness.min() < -0.24
    assert brightness.max() > 0.24
    assert brightness.mean().abs() < 0.03
    # rows that are wholly grey at the top and at the bottom: shifts of up to 2 px either way, equally often
    top, bottom = (grey[:, 0, row].all(dim=-1).float().mean() for row in (0, -1))
    assert top.item() == pytest.approx(0.4, abs=0.08)
    assert bottom.item() == pytest.approx(0.4, abs=0.08)


def test_counts_must_agree() -> None:
    with pytest.raises(ValueError, match="3 generators for 4 images"):
        diff_augment(images(), generators(count=3))
