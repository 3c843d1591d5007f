"""A start for RT4KSR at which it is nearly a linear filter (ours): training begins above bicubic, not at 10 dB.

A LayerNorm over the channels of a pixel divides by how far they are apart: it takes the brightness out of the features,
which a network without a skip from lr to sr then has to find its way back to. Here the channels get constants, +1 and
-1 in turn, large beside the signal: so a pixel's deviation is nearly the same everywhere, and the norm nearly linear.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_modules.networks.rt4ksr import RT4KSR, UNSHUFFLE

PATTERN = 1.0
"""Constants of the channels, alternately of either sign; pixels are in [0,1]."""

OPERATING_POINT = 2.0
"""Mean input of a GELU: there it is nearly the identity."""

PERTURBATION = 0.3
"""Factor of the random weights beside the identity that head and RRBs start from."""

TAIL_GAIN = 4.0
"""Scale of the last norm: as much smaller are the last convolution's weights, and so what a step of Adam does to sr."""

FEWEST_CHANNELS = 2 * 3 * UNSHUFFLE**2
"""Of 2 x 2 pixels, and as many again: the norm's mean would be the pixels' brightness else, and take it away."""

RIDGE = 1e-3
"""Of the least squares, in units of the features' mean power."""


@torch.no_grad()
def start_linear(network: RT4KSR, lr: Tensor, hr: Tensor) -> None:
    """Set a new network's weights so that it upscales lr (N,3,H,W) to hr (N,3,sH,sW), in [0,1], by a linear filter.

    Head and RRBs pass the pixels on beside random weights as drawn; norms and biases are set to the means that lr
    gives, layer by layer, so that no kernel sees the constants; the last convolution is the least squares solution.
    ValueError for fewer than 24 channels, and without LayerNorm.
    """
    inputs = 3 * UNSHUFFLE**2
    if network.channels < FEWEST_CHANNELS or network.block != "layer_norm":
        raise ValueError(
            f"network.channels={network.channels}, network.block={network.block}: network.start=linear needs "
            f"{FEWEST_CHANNELS} channels or more, and block layer_norm"
        )
    pattern = PATTERN * torch.tensor([1.0, -1.0]).repeat(network.channels)[: network.channels].to(lr)
    network.head.weight.mul_(PERTURBATION)
    network.head.weight[:inputs] = F.pad(torch.eye(inputs).to(lr)[:, :, None, None], (1, 1, 1, 1))
    network.head.get_parameter("bias").copy_(pattern)
    for block in network.layers():
        block.rrb.reduce.weight.mul_(PERTURBATION)
        block.norm.get_parameter("bias").sub_(mean_output(network, block.norm, lr))
        block.rrb.reduce.get_parameter("bias").add_(pattern + OPERATING_POINT - mean_output(network, block.rrb, lr))
    network.tail.reduce.weight.mul_(PERTURBATION)
    network.tail_norm.weight.mul_(TAIL_GAIN)
    network.tail_norm.bias.sub_(mean_output(network, network.tail_norm, lr))
    network.tail.reduce.get_parameter("bias").sub_(mean_output(network, network.tail, lr))
    _solve_last(network, lr, hr)


def mean_output(network: RT4KSR, part: nn.Module, lr: Tensor) -> Tensor:
    """Mean (C,) of what a part of the network gives for lr."""
    outputs: list[Tensor] = []
    hook = part.register_forward_hook(lambda module, inputs, output: outputs.append(output.mean((0, 2, 3))))
    network(lr)
    hook.remove()
    return outputs[0]


def _solve_last(network: RT4KSR, lr: Tensor, hr: Tensor) -> None:
    """Ridge regression of hr's pixel blocks on the 3 x 3 features around them, zeros beyond the border as ever."""
    features: list[Tensor] = []
    hook = network.upsample.register_forward_pre_hook(lambda module, inputs: features.append(inputs[0]))
    square, product = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for image, target in zip(lr.split(1), hr.split(1), strict=True):  # one at a time: all of them are half a gigabyte
        network(image)
        columns = F.unfold(features.pop().double(), 3, padding=1)[0].T
        columns = torch.cat([columns, columns.new_ones(len(columns), 1)], 1)
        square = square + columns.T @ columns
        product = product + columns.T @ F.pixel_unshuffle(target.double(), UNSHUFFLE * network.scale)[0].flatten(1).T
    hook.remove()
    square.diagonal().add_(RIDGE * square.diagonal().mean())
    solution = torch.linalg.solve(square, product)
    network.upsample.weight.copy_(solution[:-1].T.reshape_as(network.upsample.weight))
    network.upsample.get_parameter("bias").copy_(solution[-1])
