import numpy as np
import pytest
import torch

from datamodules.image_io import read_image
from datamodules.randomness import generator_for
from datamodules.synthetic import (
    FLAT_KINDS,
    HELD_OUT_PHOTOGRAPHS,
    TRAIN_PHOTOGRAPHS,
    bundled_path,
    flat_image,
    procedural_image,
)


def test_photographs_are_there_and_disjoint():
    assert not set(TRAIN_PHOTOGRAPHS) & set(HELD_OUT_PHOTOGRAPHS)
    for name in (*TRAIN_PHOTOGRAPHS, *HELD_OUT_PHOTOGRAPHS):
        rgb = read_image(bundled_path(name)).rgb
        assert min(rgb.shape[1:]) >= 256
        assert not torch.equal(rgb[0], rgb[2])


def test_missing_photograph_names_the_options():
    with pytest.raises(FileNotFoundError, match=r"data\.train"):
        bundled_path("no_such.png")


def test_images_follow_the_generator_alone():
    torch.manual_seed(0)
    first = procedural_image(64, generator_for((1, 2), "crop"))
    torch.manual_seed(1)
    assert torch.equal(first, procedural_image(64, generator_for((1, 2), "crop")))
    assert not torch.equal(first, procedural_image(64, generator_for((1, 3), "crop")))


def test_procedural_images_are_varied_and_in_range():
    images = [procedural_image(128, generator_for((7, i), "crop")) for i in range(24)]
    assert all(i.shape == (3, 128, 128) and i.dtype == torch.float32 and i.min() >= 0 and i.max() <= 1 for i in images)
    roughness = [float((image[:, 1:] - image[:, :-1]).abs().mean()) for image in images]
    assert min(roughness) < 0.01  # a smooth one is among them
    assert max(roughness) > 0.03  # and a textured one
    tints = [float(image.mean((1, 2)).max() - image.mean((1, 2)).min()) for image in images]
    assert max(tints) > 0.05  # and a coloured one


def test_no_period_of_32_px_is_preferred():
    # power on the harmonics of 1/32 against their neighbours, over many images: 1 where none is preferred
    power = np.zeros(256)
    for i in range(40):
        rows = procedural_image(256, generator_for((3, i), "crop")).mean(0).numpy()
        rows = (rows - rows.mean(1, keepdims=True)) * np.hanning(256)
        spectrum = (np.abs(np.fft.fft(rows, axis=1)) ** 2).mean(0)
        power += np.log(spectrum + 1e-12) / 40
    on = np.arange(16, 113, 8)
    off = np.concatenate([on - 4, on + 4])
    assert abs(np.exp(power[on].mean() - power[off].mean()) - 1) < 0.1


@pytest.mark.parametrize("kind", FLAT_KINDS)
def test_flat_images_are_flat_but_not_constant(kind):
    image = flat_image(256, generator_for((0,), kind), kind)
    assert image.shape == (3, 256, 256)
    assert 0.001 < float((image[:, 1:] - image[:, :-1]).abs().mean()) < 0.06
    assert torch.equal(image, flat_image(256, generator_for((0,), kind), kind))


def test_unknown_flat_kind():
    with pytest.raises(ValueError, match="'sand', expected one of sky"):
        flat_image(32, generator_for((0,), "x"), "sand")
