import itertools

import numpy as np
import pytest
import torch
from scipy.ndimage import convolve
from torch.nn import functional as F

from lightning_modules.networks.rt4ksr import (
    BLOCKS,
    EXTRACTIONS,
    RRB,
    RT4KSR,
    VARIANTS,
    gaussian_blur,
    high_frequencies,
    size_of,
)
from losses.high_frequency import high_frequencies as high_frequencies_of_the_loss

# Parameters of (deployed, training) networks at x2 with the HF branch, as counted in the released code.
PUBLISHED = {
    "XXS": (34_009, 105_817),
    "S": (44_521, 152_233),
    "L": (55_033, 198_649),
    "XL": (91_793, 346_769),
    "XXL": (65_545, 245_065),
    "XXXL": (110_417, 429_137),
}


def build(seed=0, **options):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return RT4KSR(**options)


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def deployed(network):
    """Parameters once each RRB is one 3 x 3 convolution."""
    blocks = [module for module in network.modules() if isinstance(module, RRB)]
    return count(network) + sum(sum(t.numel() for t in block.folded()) - count(block) for block in blocks)


@pytest.mark.parametrize("variant", PUBLISHED)
def test_parameters_are_those_of_the_released_code(variant):
    blocks, channels = size_of(variant)
    network = RT4KSR(2, channels, blocks)
    assert (deployed(network), count(network)) == PUBLISHED[variant]


def test_parameters_at_x3_and_of_the_misprinted_variants():
    assert (deployed(RT4KSR(3)), count(RT4KSR(3))) == (57_541, 165_253)
    assert VARIANTS["XS"] == (2, 32)
    assert VARIANTS["M"] == (4, 32)


def test_multiplications_are_the_papers_171_99_g():
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
        RT4KSR(hf_branch=True)(torch.zeros(1, 3, 32, 32))
    # online folding multiplies kernels, not images: leave its einsums out by counting the convolutions alone
    flops = counter.get_flop_counts()["Global"][torch.ops.aten.convolution]
    blur = 2 * 32 * 32 * 3 * 25
    pixels = 2560 * 1440 * 4  # the table's "FLOPs" are multiplications at that input
    assert (flops - blur) / 2 / 32**2 * pixels / 1e9 == pytest.approx(171.99, abs=0.005)


@pytest.mark.parametrize("size", [(8, 8), (5, 9), (1, 2)])
def test_rrb_is_one_convolution_up_to_its_borders(size):
    block = RRB(6).double()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    x = torch.randn(2, 6, *size, dtype=torch.double)
    kernel, bias = block.folded()
    torch.testing.assert_close(F.conv2d(x, kernel, bias, padding=1), block.explicit(x), rtol=1e-10, atol=1e-10)


def test_online_folding_trains_the_same_network():
    networks = [build(online=online).double() for online in (True, False)]
    x = torch.rand(1, 3, 12, 16, dtype=torch.double)
    for network in networks:
        network(x).square().sum().backward()
    for ours, plain in zip(networks[0].parameters(), networks[1].parameters(), strict=True):
        torch.testing.assert_close(ours.grad, plain.grad, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    ("extraction", "block", "hf_branch"), list(itertools.product(EXTRACTIONS, BLOCKS, (True, False)))
)
def test_everything_has_a_gradient_from_the_first_step(extraction, block, hf_branch):
    network = build(extraction=extraction, block=block, hf_branch=hf_branch)
    network(torch.rand(2, 3, 16, 12)).abs().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_sizes(scale):
    assert RT4KSR(scale)(torch.rand(2, 3, 6, 10)).shape == (2, 3, 6 * scale, 10 * scale)


def test_without_the_branch_nothing_of_it_is_there():
    plain, full = build(hf_branch=False), build(hf_branch=True)
    assert count(full) - count(plain) == count(full.hf_branch) + 1
    full.load_state_dict({**full.state_dict(), **plain.state_dict(), "gamma": torch.zeros(1)})
    x = torch.rand(1, 3, 16, 16)
    assert torch.equal(plain(x), full(x))


def test_the_layer_norm_is_numpys():
    norm = build().body[0].norm
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = torch.randn(2, 24, 3, 4)
    values = x.numpy()
    normed = (values - values.mean(1, keepdims=True)) / np.sqrt(values.var(1, keepdims=True) + 1e-6)
    expected = normed * norm.weight.detach().numpy()[:, None, None] + norm.bias.detach().numpy()[:, None, None]
    np.testing.assert_allclose(norm(x).detach().numpy(), expected, atol=1e-5)


def test_the_blur_is_scipys():
    image = torch.rand(1, 3, 9, 7)
    taps = np.exp(-(np.arange(-2, 3) ** 2) / 2)
    kernel = np.outer(taps, taps) / taps.sum() ** 2
    expected = np.stack([convolve(channel, kernel, mode="mirror") for channel in image[0].numpy()])
    np.testing.assert_allclose(gaussian_blur(image)[0].numpy(), expected, atol=1e-6)
    torch.testing.assert_close(high_frequencies(image, "gaussian"), image - gaussian_blur(image))


def test_down_up_takes_away_the_means_of_2_x_2_pixels():
    image = torch.rand(1, 3, 4, 6)
    means = image.reshape(1, 3, 2, 2, 3, 2).mean((3, 5)).repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(high_frequencies(image, "down_up"), image - means)


def test_the_network_and_its_loss_look_at_the_same_high_frequencies():
    image = torch.rand(1, 3, 11, 8)
    torch.testing.assert_close(high_frequencies(image, "gaussian"), high_frequencies_of_the_loss(image))


@pytest.mark.parametrize("block", BLOCKS)
def test_the_tail_is_normalised_whatever_the_block(block):
    assert build(block=block).tail_norm.weight.shape == (24,)


def test_flat_images_have_no_high_frequencies():
    flat = torch.full((1, 3, 8, 8), 0.3)
    for extraction in EXTRACTIONS:
        assert high_frequencies(flat, extraction).abs().max() < 1e-6


@pytest.mark.parametrize("wrong", [{"scale": 5}, {"extraction": "blur"}, {"block": "nafnet"}])
def test_wrong_choices_are_named(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=f"found {name}={value}; expected one of "):
        RT4KSR(**wrong)
