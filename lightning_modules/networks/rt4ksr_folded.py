"""RT4KSR as users run it: every RRB folded into one 3 x 3 convolution, nothing computed for a branch that is off."""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_modules.networks.rt4ksr import RRB, RT4KSR, UNSHUFFLE, UpscalingNetwork, high_frequencies
from lightning_modules.networks.rt4ksr_bands import upscale_in_bands

FEWEST_PIXELS = 200 * 200
"""Images of fewer pixels are not cut into bands: preparing the layers would take longer than it saves."""


class FoldedRT4KSR(UpscalingNetwork):
    """The function of a trained RT4KSR, made by `fold`: lr (N,3,H,W) in [0,1], H and W even, to sr (N,3,sH,sW).

    Inference in fp32 on a CPU goes in bands of rows (`rt4ksr_bands.py`), everything else layer by layer (`whole`): the
    same function up to rounding. Compilers and exporters see the latter.
    """

    def __init__(self, network: RT4KSR) -> None:
        super().__init__()
        self.scale, self.extraction, self.residual = network.scale, network.extraction, network.block == "residual"
        self.head = copy.deepcopy(network.head)
        self.norms = nn.ModuleList(copy.deepcopy(block.norm) for block in network.layers())
        self.body = nn.ModuleList(_convolution(block.rrb) for block in network.layers())
        self.gamma = 0.0 if network.gamma is None else network.gamma.item()
        # the released networks have a branch that adds nothing
        branch = network.hf_branch if self.gamma else None
        self.hf_branch = None if branch is None else _convolution(branch)
        self.tail_norm = copy.deepcopy(network.tail_norm)
        self.tail = _convolution(network.tail)
        self.upsample = copy.deepcopy(network.upsample)

    def forward(self, lr: Tensor) -> Tensor:
        return upscale_in_bands(self, lr) if self._pays_in_bands(lr) else self.whole(lr)

    def whole(self, lr: Tensor) -> Tensor:
        """The network layer by layer on the whole image, on any device and in any precision."""
        deep = self.head(F.pixel_unshuffle(lr, UNSHUFFLE))
        for norm, convolution in zip(self.norms, self.body, strict=True):
            refined = F.gelu(convolution(norm(deep)))
            deep = deep + refined if self.residual else refined
        if self.hf_branch is not None:
            shallow = self.head(F.pixel_unshuffle(high_frequencies(lr, self.extraction), UNSHUFFLE))
            deep = torch.add(deep, F.gelu(self.hf_branch(shallow)), alpha=self.gamma)
        deep = self.tail(self.tail_norm(deep))
        return F.pixel_shuffle(self.upsample(deep), UNSHUFFLE * self.scale)

    def _pays_in_bands(self, lr: Tensor) -> bool:
        weight = self.head.weight
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return False
        if torch.is_grad_enabled() and (lr.requires_grad or weight.requires_grad):
            return False
        on_cpu = lr.device.type == weight.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
        large = len(lr) > 0 and lr.shape[-2] * lr.shape[-1] >= FEWEST_PIXELS
        return on_cpu and large and lr.dtype == weight.dtype == torch.float32


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
