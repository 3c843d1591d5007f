"""The networks on the way from a plain CNN to RT4KSR (Zamfir, Conde, Timofte, CVPRW 2023, table 1, rows a to f).

The paper gives words and counts, no code. At C = 24 and B = 4 every row agrees with the table to the last printed
digit: its "FLOPs" are multiplications of the convolutions at 14.7456 Mpixel of lr, and its parameters count an HF
branch in all rows, run or not; here a branch that is off does not exist. By these counts lr and its high frequencies
share one head in row (b) and in the two NAFNet rows without the branch, and have one each in all others.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_modules.networks.rt4ksr import (
    EXTRACTIONS,
    SCALES,
    UNSHUFFLE,
    ChannelNorm,
    UpscalingNetwork,
    check_choice,
    high_frequencies,
)

FEATURES = ("full", "down_up", "unshuffle", "squeeze")
"""Where the body works: on C channels at lr's resolution; at half of it, by 2 x 2 means and back by the nearest pixel;
at half of it on 4C channels, 2 x 2 pixels having become channels; the same with a 1 x 1 convolution from 4C to C and
another back."""

STEP_BLOCKS = ("conv", "nafnet")
"""The body's block: a 3 x 3 convolution and GELU, or NafBlock."""

ECA_TAPS = 3


class RT4KSRStep(UpscalingNetwork):
    """lr (N,3,H,W) in [0,1], H and W even, to sr (N,3,sH,sW), unclamped; no skip from lr to sr.

    scale: 2, 3 or 4. channels, blocks: C and B, 24 and 4 in table 1. hf_branch: add GELU(conv(head(high frequencies of
    lr))) to the deep features. extraction: see EXTRACTIONS. features, block: see FEATURES and STEP_BLOCKS. shared_head:
    lr and its high frequencies have one first convolution, as in RT4KSR, not one each; without the branch it says
    nothing. ValueError: an unknown choice, or an odd side.

    As in RT4KSR the merge is deep + gamma * details with gamma one learned scalar that starts at 1 (ours); it comes
    after the way back to lr's resolution. Resampling has no activation of its own (ours).
    """

    def __init__(
        self,
        scale: int = 2,
        channels: int = 24,
        blocks: int = 4,
        hf_branch: bool = True,
        extraction: str = "gaussian",
        features: str = "full",
        block: str = "conv",
        shared_head: bool = False,
    ) -> None:
        super().__init__()
        check_choice("scale", scale, SCALES)
        check_choice("extraction", extraction, EXTRACTIONS)
        check_choice("features", features, FEATURES)
        check_choice("block", block, STEP_BLOCKS)
        self.scale, self.extraction = scale, extraction
        self.head = nn.Conv2d(3, channels, 3, padding=1)
        self.down, self.up, width = _resampling(features, channels)
        kind = ConvBlock if block == "conv" else NafBlock
        self.body = nn.Sequential(*(kind(width) for _ in range(blocks)))
        self.hf_head = nn.Conv2d(3, channels, 3, padding=1) if hf_branch and not shared_head else None
        self.hf_branch = ConvBlock(channels) if hf_branch else None
        self.gamma = nn.Parameter(torch.ones(1)) if hf_branch else None
        self.tail = nn.Sequential(ChannelNorm(channels), nn.Conv2d(channels, channels, 3, padding=1))
        self.upsample = nn.Conv2d(channels, 3 * scale**2, 3, padding=1)

    def forward(self, lr: Tensor) -> Tensor:
        if lr.shape[-2] % UNSHUFFLE or lr.shape[-1] % UNSHUFFLE:
            raise ValueError(f"found lr of {lr.shape[-2]} x {lr.shape[-1]}; expected multiples of {UNSHUFFLE}")
        deep = self.up(self.body(self.down(self.head(lr))))
        if self.hf_branch is not None and self.gamma is not None:
            head = self.head if self.hf_head is None else self.hf_head
            deep = deep + self.gamma * self.hf_branch(head(high_frequencies(lr, self.extraction)))
        return F.pixel_shuffle(self.upsample(self.tail(deep)), self.scale)


class ConvBlock(nn.Module):
    """GELU(conv3x3(x)) on (N,C,h,w)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.conv(x))


class NafBlock(nn.Module):
    """x + project(ECA(GELU(pointwise(depthwise(LayerNorm(x)))))) on (N,C,h,w): section 3.1's block after NAFNet.

    depthwise: 3 x 3, two filters for each channel, C -> 2C. pointwise: 1 x 1, 2C -> 2C. project: 1 x 1, 2C -> C. The
    order of the parts is our reading: the text later puts the RRB in the place of the separable convolution, before
    GELU, and drops attention, projection and skip. Of the readings tried it alone has both the table's multiplications
    (3888 per pixel at C = 24) and its parameters (4053 to 4059 by rounding; here 4059). The attention averages over the
    whole image.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        wide = 2 * channels
        self.norm = ChannelNorm(channels)
        self.depthwise = nn.Conv2d(channels, wide, 3, padding=1, groups=channels)
        self.pointwise = nn.Conv2d(wide, wide, 1)
        self.attention = EfficientChannelAttention()
        self.project = nn.Conv2d(wide, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.gelu(self.pointwise(self.depthwise(self.norm(x))))
        return x + self.project(self.attention(y))


class EfficientChannelAttention(nn.Module):
    """(N,C,h,w) times sigmoid(a convolution along C, 3 taps, no bias, of the means over h and w) (ECA, CVPR 2020)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, ECA_TAPS, padding=ECA_TAPS // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        means = x.mean((2, 3))
        gate = torch.sigmoid(self.conv(means[:, None]))[:, 0]
        return x * gate[:, :, None, None]


def _resampling(features: str, channels: int) -> tuple[nn.Module, nn.Module, int]:
    """From the head to the body, back again, and the body's channels."""
    wide = channels * UNSHUFFLE**2
    if features == "full":
        return nn.Identity(), nn.Identity(), channels
    if features == "down_up":
        return nn.AvgPool2d(UNSHUFFLE), nn.Upsample(scale_factor=UNSHUFFLE, mode="nearest"), channels
    down, up = nn.PixelUnshuffle(UNSHUFFLE), nn.PixelShuffle(UNSHUFFLE)
    if features == "unshuffle":
        return down, up, wide
    return nn.Sequential(down, nn.Conv2d(wide, channels, 1)), nn.Sequential(nn.Conv2d(channels, wide, 1), up), channels
