"""RT4KSR as users run it: every RRB folded into one 3 x 3 convolution, nothing computed for a branch that is off."""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_modules.networks.rt4ksr import RRB, RT4KSR, UNSHUFFLE, high_frequencies


class FoldedRT4KSR(nn.Module):
    """The function of a trained RT4KSR, made by `fold`: lr (N,3,H,W) in [0,1], H and W even, to sr (N,3,sH,sW)."""

    def __init__(self, network: RT4KSR) -> None:
        super().__init__()
        self.scale, self.extraction, self.residual = network.scale, network.extraction, network.block == "residual"
        self.head = copy.deepcopy(network.head)
        self.norms = nn.ModuleList(copy.deepcopy(block.norm) for block in network.body)
        self.body = nn.ModuleList(_convolution(block.rrb) for block in network.body)
        self.hf_branch = None if network.hf_branch is None else _convolution(network.hf_branch)
        self.gamma = 0.0 if network.gamma is None else float(network.gamma)
        self.tail_norm = copy.deepcopy(network.tail_norm)
        self.tail = _convolution(network.tail)
        self.upsample = copy.deepcopy(network.upsample)

    def forward(self, lr: Tensor) -> Tensor:
        deep = self.head(F.pixel_unshuffle(lr, UNSHUFFLE))
        for norm, convolution in zip(self.norms, self.body, strict=True):
            refined = F.gelu(convolution(norm(deep)))
            deep = deep + refined if self.residual else refined
        if self.hf_branch is not None:
            shallow = self.head(F.pixel_unshuffle(high_frequencies(lr, self.extraction), UNSHUFFLE))
            deep = torch.add(deep, F.gelu(self.hf_branch(shallow)), alpha=self.gamma)
        deep = self.tail(self.tail_norm(deep))
        return F.pixel_shuffle(self.upsample(deep), UNSHUFFLE * self.scale)


def fold(network: RT4KSR) -> FoldedRT4KSR:
    """The folded network of a trained one, in evaluation mode and without gradients; `network` stays as it is."""
    return FoldedRT4KSR(network).eval().requires_grad_(False)


def _convolution(block: RRB) -> nn.Conv2d:
    # summed in float64, on a copy: folding adds no rounding of its own and leaves the source alone
    weight, bias = copy.deepcopy(block).double().folded()
    made = nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1)
    dtype = block.expand.weight.dtype
    made.weight, made.bias = nn.Parameter(weight.detach().to(dtype)), nn.Parameter(bias.detach().to(dtype))
    return made
