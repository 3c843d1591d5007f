"""The paper's table 1 by its counts, and the networks by a second implementation in numpy and scipy."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate, gaussian_filter
from scipy.special import erf
from torch import Tensor, nn

from lightning_modules.networks.rt4ksr import RT4KSR
from lightning_modules.networks.rt4ksr_folded import fold
from lightning_modules.networks.rt4ksr_steps import FEATURES, STEP_BLOCKS, RT4KSRStep

PIXELS = 14.7456e6
"""Of lr, in the table's column "FLOPs (G)"."""

TABLE = {
    "a": ("conv", "full", False, 2, 429.98),
    "b": ("conv", "full", True, 2, 515.98),
    "a down_up": ("conv", "down_up", False, 2, 200.66),
    "c": ("conv", "down_up", True, 2, 286.65),
    "a unshuffle": ("conv", "unshuffle", False, 2, 1347.28),
    "d": ("conv", "squeeze", False, 2, 217.65),
    "e": ("nafnet", "full", False, 2, 353.54),
    "e hf": ("nafnet", "full", True, 2, 439.54),
    "e down_up": ("nafnet", "down_up", False, 2, 181.55),
    "f": ("nafnet", "down_up", True, 2, 267.54),
    "a x3": ("conv", "full", False, 3, 477.76),
}
"""Block, features, HF branch, scale and the published giga-multiplications."""

PARAMETERS = {
    "a": (35.2, False),
    "b": (34.6, True),
    "a down_up": (35.2, False),
    "c": (35.2, False),
    "a unshuffle": (346.6, False),
    "d": (40.0, False),
    "e": (30.0, True),
    "e hf": (30.6, False),
    "e down_up": (30.0, True),
    "f": (30.6, False),
    "a x3": (38.5, False),
}
"""The published thousands, which hold an HF branch in every row, and whether its head is the shared one."""


def build(block: str, features: str, hf_branch: bool, scale: int = 2, **options: Any) -> RT4KSRStep:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return RT4KSRStep(scale, hf_branch=hf_branch, features=features, block=block, **options)


def small(block: str, features: str, hf_branch: bool, **options: Any) -> RT4KSRStep:
    network = build(block, features, hf_branch, channels=4, blocks=2, **options).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64), alpha=0.2)
    return network


def image(height: int = 8, width: int = 10, batch: int = 1) -> Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def giga_multiplications(network: nn.Module) -> float:
    """Of the 2-d convolution layers, at PIXELS; the blur, which is none, is not counted, as in the table."""
    counts: list[int] = []

    def count(layer: nn.Conv2d, _: tuple[Tensor, ...], result: Tensor) -> None:
        counts.append(result.numel() * layer.weight[0].numel())

    handles = [m.register_forward_hook(count) for m in network.modules() if isinstance(m, nn.Conv2d)]
    network(image().float())
    for handle in handles:
        handle.remove()
    return sum(counts) / image()[0, 0].numel() * PIXELS / 1e9


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("row", TABLE)
def test_multiplications_are_those_of_table_1(row: str) -> None:
    block, features, hf_branch, scale, published = TABLE[row]
    assert round(giga_multiplications(build(block, features, hf_branch, scale)), 2) == published


@pytest.mark.parametrize(("scale", "published"), [(2, 171.99), (3, 219.77)])
def test_the_folded_rt4ksr_counted_in_the_same_way_is_row_h(scale: int, published: float) -> None:
    assert round(giga_multiplications(fold(RT4KSR(scale))), 2) == published


@pytest.mark.parametrize("row", PARAMETERS)
def test_parameters_are_those_of_table_1_with_a_branch_in_every_row(row: str) -> None:
    block, features, hf_branch, scale, _ = TABLE[row]
    published, shared_head = PARAMETERS[row]
    counted = build(block, features, True, scale, shared_head=shared_head)
    used = build(block, features, hf_branch, scale, shared_head=shared_head)
    branch = 24 * 24 * 9 + 24 + 1 + (0 if shared_head else 3 * 24 * 9 + 24)
    assert round(parameters(counted) / 1000, 1) == published
    assert parameters(used) == parameters(counted) - (0 if hf_branch else branch)


@pytest.mark.parametrize("block", STEP_BLOCKS)
@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize(("hf_branch", "shared_head"), [(False, False), (True, False), (True, True)])
def test_every_parameter_has_a_gradient_in_the_first_step(
    block: str, features: str, hf_branch: bool, shared_head: bool
) -> None:
    network = build(block, features, hf_branch, shared_head=shared_head)
    network(image().float()).square().mean().backward()
    still = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.abs().max() > 1e-9]
    assert still == []


@pytest.mark.parametrize("block", STEP_BLOCKS)
@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize(
    ("branch", "scale"), [(None, 3), ("gaussian", 2), ("down_up", 4)], ids=["no branch", "gaussian", "down_up"]
)
@torch.no_grad()
def test_equals_the_paper_written_down_in_numpy(block: str, features: str, branch: str | None, scale: int) -> None:
    options = {"extraction": branch} if branch else {}
    network = small(block, features, branch is not None, scale=scale, **options)
    lr = image()
    expected = reference(network, lr[0].numpy(), features, block, branch)
    assert expected.shape == (3, 8 * scale, 10 * scale)
    np.testing.assert_allclose(network(lr)[0].numpy(), expected, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_a_shared_head_is_the_head_of_both() -> None:
    shared, apart = small("conv", "full", True, shared_head=True), small("conv", "full", True)
    both = {name.replace("head.", "hf_head."): w for name, w in shared.state_dict().items() if name.startswith("head.")}
    apart.load_state_dict({**shared.state_dict(), **both})
    torch.testing.assert_close(shared(image()), apart(image()))


@pytest.mark.parametrize("block", STEP_BLOCKS)
@pytest.mark.parametrize("features", FEATURES)
@torch.no_grad()
def test_images_of_a_batch_do_not_see_each_other(block: str, features: str) -> None:
    network, lr = small(block, features, True), image(batch=3)
    torch.testing.assert_close(network(lr), torch.cat([network(part) for part in lr.split(1)]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": 5}, "found scale=5; expected one of 2, 3, 4"),
        ({"extraction": "sobel"}, "found extraction=sobel; expected one of gaussian, down_up"),
        ({"features": "half"}, "found features=half; expected one of full, down_up, unshuffle, squeeze"),
        ({"block": "plain"}, "found block=plain; expected one of conv, nafnet"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_unknown_choice_names_the_known_ones(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RT4KSRStep(**options)


@pytest.mark.parametrize("features", FEATURES)
def test_an_odd_side_is_refused(features: str) -> None:
    with pytest.raises(ValueError, match="found lr of 8 x 9; expected multiples of 2"):
        build("conv", features, False)(torch.rand(1, 3, 8, 9))


def reference(network: RT4KSRStep, lr: np.ndarray, features: str, block: str, branch: str | None) -> np.ndarray:
    """Section 3.1 on one image (3,H,W), weights read by name, everything else from numpy and scipy."""
    w = {name: tensor.numpy() for name, tensor in network.state_dict().items()}

    def conv(x: np.ndarray, name: str) -> np.ndarray:
        return convolution(x, w[f"{name}.weight"], w[f"{name}.bias"])

    deep = conv(lr, "head")
    if features == "down_up":
        deep = means(deep)
    elif features != "full":
        deep = to_channels(deep)
    if features == "squeeze":
        deep = conv(deep, "down.1")
    for number in range(len(network.body)):
        name = f"body.{number}"
        if block == "conv":
            deep = gelu(conv(deep, f"{name}.conv"))
            continue
        y = normed(deep, w[f"{name}.norm.weight"], w[f"{name}.norm.bias"])
        y = gelu(conv(conv(y, f"{name}.depthwise"), f"{name}.pointwise"))
        gate = np.convolve(y.mean((1, 2)), w[f"{name}.attention.conv.weight"][0, 0, ::-1], mode="same")
        deep = deep + conv(y / (1 + np.exp(-gate))[:, None, None], f"{name}.project")
    if features == "squeeze":
        deep = conv(deep, "up.0")
    if features == "down_up":
        deep = repeated(deep)
    elif features != "full":
        deep = to_pixels(deep, 2)
    if branch:
        low = np.stack([gaussian_filter(c, 1.0, radius=2, mode="mirror") for c in lr])
        high = lr - (low if branch == "gaussian" else repeated(means(lr)))
        deep = deep + w["gamma"] * gelu(conv(conv(high, "hf_head"), "hf_branch.conv"))
    deep = conv(normed(deep, w["tail.0.weight"], w["tail.0.bias"]), "tail.1")
    return to_pixels(conv(deep, "upsample"), network.scale)


def convolution(x: np.ndarray, kernels: np.ndarray, biases: np.ndarray) -> np.ndarray:
    """Zero padding; kernels (O,I,k,k) over all channels of x, or (O,1,k,k) with O / channels of them for each."""
    planes = []
    for number, (kernel, bias) in enumerate(zip(kernels, biases, strict=True)):
        seen = x if len(kernel) == len(x) else x[number * len(x) // len(kernels)][None]
        planes.append(bias + sum(correlate(c, k, mode="constant") for c, k in zip(seen, kernel, strict=True)))
    return np.stack(planes)


def gelu(x: np.ndarray) -> np.ndarray:
    return x * (1 + erf(x / np.sqrt(2))) / 2


def normed(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    centred = x - x.mean(0)
    return centred / np.sqrt(x.var(0) + 1e-6) * weight[:, None, None] + bias[:, None, None]


def means(x: np.ndarray) -> np.ndarray:
    return (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4


def repeated(x: np.ndarray) -> np.ndarray:
    return x.repeat(2, axis=1).repeat(2, axis=2)


def to_channels(x: np.ndarray) -> np.ndarray:
    """2 x 2 pixels of each channel as four neighbouring channels."""
    return np.stack([c[i::2, j::2] for c in x for i in (0, 1) for j in (0, 1)])


def to_pixels(x: np.ndarray, side: int) -> np.ndarray:
    result = np.empty((len(x) // side**2, x.shape[1] * side, x.shape[2] * side))
    for number, plane in enumerate(x):
        channel, place = divmod(number, side**2)
        result[channel, place // side :: side, place % side :: side] = plane
    return result
