"""RT4KSR in its training form (Zamfir, Conde, Timofte, CVPRW 2023, figure 3): one upscaling CNN for real time.

All of it works at half of lr's resolution: 2 x 2 pixels become channels first. `rt4ksr_folded.py` makes of it what is
deployed.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

VARIANTS = {
    "XXS": (2, 24),
    "XS": (2, 32),
    "S": (4, 24),
    "M": (4, 32),
    "L": (6, 24),
    "XL": (6, 32),
    "XXL": (8, 24),
    "XXXL": (8, 32),
}
"""Blocks B and channels C of the paper's table 3b, in which XS and M are misprinted as 34."""

SCALES = (2, 3, 4)
BLOCKS = ("layer_norm", "plain", "residual")
"""The basic block of table 2b: LayerNorm before each RRB, nothing, or a skip around RRB and GELU."""

EXTRACTIONS = ("gaussian", "down_up")
"""How high frequencies are taken from lr (table 2a)."""

UNSHUFFLE = 2
"""Side of the pixel blocks that become channels: lr's sides must be multiples of it."""

NORM_EPS = 1e-6


class UpscalingNetwork(nn.Module):
    """What a system for real time asks of its network: lr (N,3,H,W) in [0,1], H and W even, to sr (N,3,sH,sW)."""

    scale: int
    upsample: nn.Conv2d
    """The last convolution."""


class RT4KSR(UpscalingNetwork):
    """lr (N,3,H,W) in [0,1], H and W even, to sr (N,3,sH,sW), unclamped; no skip from lr to sr.

    scale: 2, 3 or 4. channels, blocks: C and B, see VARIANTS. hf_branch: add the refined high frequencies of lr to the
    deep features, as in the paper; without it they are not computed, as in the released weights. extraction, block: see
    EXTRACTIONS and BLOCKS. online: each RRB convolves with its folded kernel, see there.

    The paper does not say how the branch is merged. Here it is deep + gamma * details, gamma one learned scalar that
    starts at 1 (ours): both sides have a gradient from the first step, and gamma = 0 are the released networks.
    """

    def __init__(
        self,
        scale: int = 2,
        channels: int = 24,
        blocks: int = 4,
        hf_branch: bool = True,
        extraction: str = "gaussian",
        block: str = "layer_norm",
        online: bool = True,
    ) -> None:
        super().__init__()
        check_choice("scale", scale, SCALES)
        check_choice("extraction", extraction, EXTRACTIONS)
        check_choice("block", block, BLOCKS)
        self.scale, self.channels, self.blocks = scale, channels, blocks
        self.extraction, self.block = extraction, block
        norm = block == "layer_norm"
        self.head = nn.Conv2d(3 * UNSHUFFLE**2, channels, 3, padding=1)
        self.body = nn.Sequential(*[Block(channels, norm, block == "residual", online) for _ in range(blocks)])
        self.hf_branch = RRB(channels, online) if hf_branch else None
        self.gamma = nn.Parameter(torch.ones(1)) if hf_branch else None
        self.tail_norm = ChannelNorm(channels)
        self.tail = RRB(channels, online)
        self.upsample = nn.Conv2d(channels, 3 * (UNSHUFFLE * scale) ** 2, 3, padding=1)

    def forward(self, lr: Tensor) -> Tensor:
        deep = self.body(self.head(F.pixel_unshuffle(lr, UNSHUFFLE)))
        if self.hf_branch is not None and self.gamma is not None:
            # the shallow convolution is shared by lr and its high frequencies
            shallow = self.head(F.pixel_unshuffle(high_frequencies(lr, self.extraction), UNSHUFFLE))
            deep = deep + self.gamma * F.gelu(self.hf_branch(shallow))
        deep = self.tail(self.tail_norm(deep))
        return F.pixel_shuffle(self.upsample(deep), UNSHUFFLE * self.scale)

    def layers(self) -> list["Block"]:
        """The blocks of the body in their order."""
        return [block for block in self.body if isinstance(block, Block)]


class Block(nn.Module):
    """GELU(RRB(LayerNorm(x))) on (N,C,h,w); norm and local skip as table 2b has them."""

    def __init__(self, channels: int, norm: bool, residual: bool, online: bool) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels) if norm else nn.Identity()
        self.rrb = RRB(channels, online)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        y = F.gelu(self.rrb(self.norm(x)))
        return x + y if self.residual else y


class RRB(nn.Module):
    """Re-parameterisable residual block on (N,C,h,w): reduce(conv3x3(expand(x)) + expand(x)) + x (figure 3b).

    expand: 1 x 1, C -> 2C. conv: 3 x 3, 2C -> 2C. reduce: 1 x 1, 2C -> C. The expanded features are padded with
    expand's bias, which is what expand makes of zeros: so the block is one 3 x 3 convolution with zero padding, at the
    borders too. online: convolve with that folded kernel, made anew in each step (ours): the same function and
    gradients up to rounding for a quarter of the multiplications; else the three convolutions run one by one.
    """

    def __init__(self, channels: int, online: bool = True) -> None:
        super().__init__()
        self.expand = nn.Conv2d(channels, 2 * channels, 1)
        self.conv = nn.Conv2d(2 * channels, 2 * channels, 3)
        self.reduce = nn.Conv2d(2 * channels, channels, 1)
        self.online = online

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, *self.folded(), padding=1) if self.online else self.explicit(x)

    def explicit(self, x: Tensor) -> Tensor:
        """The block as three convolutions and two skips."""
        expanded = self.expand(x)
        return self.reduce(self.conv(_pad_with(expanded, _bias(self.expand))) + expanded) + x

    def folded(self) -> tuple[Tensor, Tensor]:
        """Kernel (C,C,3,3) and bias (C,) of the one convolution, with padding 1, that this block is."""
        with torch.autocast(self.expand.weight.device.type, enabled=False):  # bf16 would round the sums themselves
            return self._folded()

    def _folded(self) -> tuple[Tensor, Tensor]:
        expand, reduce = self.expand.weight.flatten(1), self.reduce.weight.flatten(1)
        identity = _centre(torch.eye(len(expand), dtype=expand.dtype, device=expand.device))
        middle = self.conv.weight + identity
        kernel = torch.einsum("oc,cdyx,di->oiyx", reduce, middle, expand)
        kernel = kernel + _centre(torch.eye(len(kernel), dtype=kernel.dtype, device=kernel.device))
        # inside and beyond the border alike, expand's bias is a constant under the 3 x 3 kernel
        bias = reduce @ (middle.sum((2, 3)) @ _bias(self.expand) + _bias(self.conv)) + _bias(self.reduce)
        return kernel, bias


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of each pixel of (N,C,h,w), eps 1e-6."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        normed = F.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, NORM_EPS)
        return normed.permute(0, 3, 1, 2)


def high_frequencies(lr: Tensor, extraction: str) -> Tensor:
    """lr (N,3,H,W) without its low ones (section 3.1): a 5 x 5 Gaussian of sigma 1, or means of 2 x 2 pixels."""
    if extraction == "gaussian":
        return lr - gaussian_blur(lr)
    return lr - F.interpolate(F.avg_pool2d(lr, 2), scale_factor=2, mode="nearest")


def gaussian_blur(image: Tensor) -> Tensor:
    """(N,C,H,W) with its border mirrored under the paper's 5 x 5 Gaussian of sigma 1."""
    offsets = torch.arange(-2, 3, device=image.device, dtype=image.dtype)
    taps = torch.softmax(-offsets.square() / 2, 0)
    kernel = torch.outer(taps, taps).expand(image.shape[1], 1, 5, 5)
    return F.conv2d(F.pad(image, (2, 2, 2, 2), mode="reflect"), kernel, groups=image.shape[1])


def size_of(variant: str) -> tuple[int, int]:
    """Blocks and channels of a variant; ValueError lists the variants."""
    check_choice("variant", variant, VARIANTS)
    return VARIANTS[variant]


def _bias(convolution: nn.Conv2d) -> Tensor:
    if convolution.bias is None:
        raise RuntimeError("found a convolution without bias; all of RT4KSR's have one")
    return convolution.bias


def _pad_with(features: Tensor, value: Tensor) -> Tensor:
    """One pixel around (N,C,h,w) in which each channel has its own value."""
    value = value[:, None, None]
    return F.pad(features - value, (1, 1, 1, 1)) + value


def _centre(matrix: Tensor) -> Tensor:
    """A matrix (O,I) as the 3 x 3 kernel (O,I,3,3) that applies it to the pixel itself."""
    return F.pad(matrix[:, :, None, None], (1, 1, 1, 1))


def check_choice(name: str, found: object, expected: Iterable[object]) -> None:
    """ValueError where what was found for an option is none of its choices."""
    choices = tuple(expected)
    if found not in choices:
        raise ValueError(f"found {name}={found}; expected one of {', '.join(map(str, choices))}")
