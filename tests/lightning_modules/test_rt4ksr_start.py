import pytest
import torch

from datamodules.crops import random_crop
from datamodules.degradations.resize import matlab_bicubic
from datamodules.image_io import read_image
from datamodules.randomness import generator_for
from datamodules.synthetic import HELD_OUT_PHOTOGRAPHS, TRAIN_PHOTOGRAPHS, bundled_path
from lightning_modules.networks.rt4ksr import RT4KSR
from lightning_modules.networks.rt4ksr_start import mean_output, start_linear
from lightning_modules.super_resolution import resize_up


def crops(name, count, scale):
    pixels, draws = read_image(bundled_path(name)).pixels, generator_for((0,), "test")
    hr = torch.stack([random_crop(pixels, 24 * scale, draws) for _ in range(count)])
    return torch.stack([matlab_bicubic(image, scale) for image in hr]), hr


@pytest.fixture(scope="module")
def photographs():
    return crops(TRAIN_PHOTOGRAPHS[0], 48, 2), crops(HELD_OUT_PHOTOGRAPHS[0], 8, 2)


def build(**options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return RT4KSR(**options)


def error(sr, hr):
    """Without the border, where every method is worse."""
    return (sr - hr)[..., 4:-4, 4:-4].square().mean().item()


@pytest.mark.parametrize("hf_branch", [True, False])
def test_it_starts_above_bicubic_on_photographs_it_has_not_seen(photographs, hf_branch):
    (lr, hr), (new_lr, new_hr) = photographs
    network = build(hf_branch=hf_branch)
    before = error(network(new_lr), new_hr)
    start_linear(network, lr, hr)
    bicubic = error(resize_up(new_lr, new_hr.shape[-2:]), new_hr)
    assert error(network(new_lr), new_hr) < bicubic < before / 10


def test_it_is_nearly_linear(photographs):
    (lr, hr), (new, _) = photographs
    network = build(hf_branch=False)
    start_linear(network, lr, hr)
    half = (network(new[:4]) + network(new[4:])) / 2
    assert (network((new[:4] + new[4:]) / 2) - half).abs().mean() < 0.005


def test_no_kernel_of_the_body_sees_a_constant(photographs):
    lr, hr = photographs[0]
    network = build()
    start_linear(network, lr, hr)
    for part in (*(block.norm for block in network.body), network.tail_norm, network.tail):
        assert mean_output(network, part, lr).abs().max() < 1e-4


def test_every_parameter_still_has_a_gradient(photographs):
    lr, hr = photographs[0]
    network = build()
    start_linear(network, lr, hr)
    (network(lr) - hr).abs().mean().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in network.parameters())


@pytest.mark.parametrize("scale", [3, 4])
def test_other_scales(scale):
    lr, hr = crops(TRAIN_PHOTOGRAPHS[0], 16, scale)
    network = build(scale=scale)
    start_linear(network, lr, hr)
    assert error(network(lr), hr) < error(resize_up(lr, hr.shape[-2:]), hr)


def test_too_few_channels_are_refused():
    with pytest.raises(ValueError, match=r"network\.channels=12.*network\.start=linear .*needs 24 channels or more"):
        start_linear(RT4KSR(channels=12), torch.rand(1, 3, 8, 8), torch.rand(1, 3, 16, 16))
