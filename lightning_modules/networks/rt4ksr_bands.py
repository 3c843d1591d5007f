"""The folded RT4KSR on a CPU in fp32: the image runs through all layers in bands of rows, which stay in the cache.

No row is computed twice: every layer keeps the last two rows of its input for the next band. Each of the choices below
is measured against its plain form in docs/log.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_modules.networks.rt4ksr import NORM_EPS, UNSHUFFLE, ChannelNorm, high_frequencies

if TYPE_CHECKING:
    from lightning_modules.networks.rt4ksr_folded import FoldedRT4KSR

BAND_BYTES = 4 * 2**20
"""Features of a band of rows, per thread (ours)."""

LEAST_SHARE = 0.1
"""Of the sum of the squares of a pixel's features: if less is left without their mean, it is summed anew."""


def upscale_in_bands(network: FoldedRT4KSR, lr: Tensor) -> Tensor:
    """What `network.whole(lr)` is, up to rounding: lr (N,3,H,W) in fp32 on the CPU to sr (N,3,sH,sW), contiguous."""
    side = UNSHUFFLE * network.scale
    batch, _, height, width = lr.shape
    sr = lr.new_empty(batch, 3, height * network.scale, width * network.scale)
    for image, out in zip(lr.split(1), sr.split(1), strict=True):
        _Bands(network, height // UNSHUFFLE, width // UNSHUFFLE).run(image, _by_blocks(out, side))
    return sr


class _Bands:
    """One image of height x width blocks of pixels on its way through the layers."""

    def __init__(self, network: FoldedRT4KSR, height: int, width: int) -> None:
        channels, layers = network.head.out_channels, len(network.body) + 3
        rows = BAND_BYTES * torch.get_num_threads() // (4 * channels * width)
        # a layer is one row behind the one before it: the first band has to reach the last one
        bands = -(-height // max(rows, 2 * layers))
        self.network, self.height, self.rows = network, height, -(-height // bands)
        widest = max(channels, network.head.in_channels)
        memory = network.head.weight.new_empty((self.rows + layers + 3) * width * widest)

        def layer(convolution: nn.Conv2d, norm: nn.Module | None = None) -> _Layer:
            return _Layer(*_kernel(convolution), norm, memory, width)

        self.head = layer(network.head)
        self.body = [layer(*pair) for pair in zip(network.body, network.norms, strict=True)]  # type: ignore[arg-type]
        if self.body[0].normed:
            # its mean over the channels can be subtracted before the image is there
            weight, bias = _kernel(network.head)
            centred = weight - weight.mean(0), bias - bias.mean()
            self.head, self.body[0].centred = _Layer(*centred, None, memory, width), True
        self.tail, self.upsample = layer(network.tail, network.tail_norm), layer(network.upsample)
        self.details = None if network.hf_branch is None else (layer(network.head), layer(network.hf_branch))

    def run(self, lr: Tensor, sr: Tensor) -> None:
        """Write the result for lr (1,3,H,W) to sr as `_by_blocks` shows it."""
        network, done = self.network, 0
        waiting = lr.new_empty(1, network.head.out_channels, 0, lr.shape[3] // UNSHUFFLE)
        high = lr if self.details is None else high_frequencies(lr, network.extraction)
        lr, high = _pairs(lr), _pairs(high)
        for top in range(0, self.height, self.rows):
            last = top + self.rows >= self.height
            rows = slice(UNSHUFFLE * top, UNSHUFFLE * (top + self.rows))
            deep = self.head(_unshuffled(lr[:, :, rows]), last)
            for layer in self.body:
                refined = _gelu(layer(deep, last))
                deep = refined.add_(layer.skip()) if network.residual else refined
            if self.details is not None:
                shallow = self.details[0](_unshuffled(high[:, :, rows]), last)
                # two layers behind the image here, more than two in the body: the rest waits
                waiting = torch.cat([waiting, _gelu(self.details[1](shallow, last))], 2)
                deep.add_(waiting[:, :, : deep.shape[2]], alpha=network.gamma)
                waiting = waiting[:, :, deep.shape[2] :]
            made = _from_channels(self.upsample(self.tail(deep, last), last), UNSHUFFLE * network.scale)
            sr[:, :, done : done + made.shape[2]].copy_(made)
            done += made.shape[2]


class _Layer:
    """A 3 x 3 convolution with zero padding, after a LayerNorm or not, of an image that comes in bands from above.

    Its input lies in memory that all layers share: one after the other they need it, and so it stays in the cache. The
    convolution does all of a LayerNorm but the division: its kernel subtracts the mean and holds the scale, its own
    bias has what the LayerNorm's adds, which `_without_border` takes back where the kernel reaches over the border.
    """

    def __init__(self, weight: Tensor, bias: Tensor, norm: nn.Module | None, memory: Tensor, width: int) -> None:
        channels, self.centred = weight.shape[1], False
        self.normed, self.border = isinstance(norm, ChannelNorm), weight.new_zeros(0)
        if isinstance(norm, ChannelNorm):
            # by row and column of the kernel: what the LayerNorm's bias adds, and in the last ones the sums
            border = torch.einsum("oiyx,i->yxo", weight, norm.bias)
            border = torch.cat([border, border.sum(0, keepdim=True)])
            self.border = torch.cat([border, border.sum(1, keepdim=True)], 1)[..., None]
            bias = bias + self.border[3, 3, :, 0]
            weight = weight * (channels**0.5 * norm.weight[:, None, None])
            weight = weight - weight.mean(1, keepdim=True)
        self.kernel, self.bias = weight.contiguous(memory_format=torch.channels_last), bias
        rows = len(memory) // (channels * width)
        self.memory = memory[: rows * width * channels].view(1, rows, width, channels).permute(0, 3, 1, 2)
        self.input = self.memory
        # above the image lies a row of zeros, and for a later band the last two rows of the one before it
        self.above = self.memory.new_zeros(1, channels, 1, width)

    def __call__(self, features: Tensor, last: bool) -> Tensor:
        """The next rows of the result, as many as the input so far allows; all that are left with the last band."""
        first, start = self.above.shape[2] == 1, self.above.shape[2]
        end = start + features.shape[2]
        self.memory[:, :, :start] = self.above
        if self.normed:
            torch.mul(features, _inverse_length(features, self.centred), out=self.memory[:, :, start:end])
        else:
            self.memory[:, :, start:end] = features
        if last:
            self.memory[:, :, end] = 0
            end += 1
        self.input = self.memory[:, :, :end]
        self.above = self.input[:, :, -2:].clone()
        result = F.conv2d(self.input, self.kernel, self.bias, padding=(0, 1))
        return _without_border(result, self.border, first, last) if self.normed else result

    def skip(self) -> Tensor:
        """The input at the place of the rows that were just returned."""
        return self.input[:, :, 1:-1]


def _kernel(convolution: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Weight and bias."""
    weight, bias = convolution.weight, convolution.bias
    return weight, weight.new_zeros(len(weight)) if bias is None else bias


def _inverse_length(features: Tensor, centred: bool) -> Tensor:
    """1 / sqrt(C variance + C eps) over the channels of (1,C,h,w), as (1,1,h,w); the mean is 0 where `centred`."""
    channels = features.shape[1]
    spread = square = torch.linalg.vector_norm(features, dim=1, keepdim=True).square_()
    if not centred:
        # `mean` is twice as slow as `sum`
        total = features.sum(1, keepdim=True)
        spread = torch.addcmul(square, total, total, value=-1 / channels)
        if float((spread / square).amin()) < LEAST_SHARE:
            spread = (features - total / channels).square().sum(1, keepdim=True)
    return spread.add_(channels * NORM_EPS).rsqrt_()


def _without_border(result: Tensor, border: Tensor, first: bool, last: bool) -> Tensor:
    """Subtract from the outermost pixels of (1,C,h,w) what the kernel's rows and columns beyond the image added."""
    result[0, :, :, 0] -= border[3, 0]
    result[0, :, :, -1] -= border[3, 2]
    for outermost, row, beyond in ((first, 0, border[0]), (last, -1, border[2])):
        if outermost:
            result[0, :, row] -= beyond[3]
            # the corners have lost this twice
            result[0, :, row, :1] += beyond[0]
            result[0, :, row, -1:] += beyond[2]
    return result


def _gelu(features: Tensor) -> Tensor:
    """GELU in place. PyTorch leaves contiguous tensors to oneDNN, whose kernel takes two thirds of its own's time."""
    torch.ops.aten.gelu_(features.permute(0, 2, 3, 1))
    return features


def _pairs(lr: Tensor) -> Tensor:
    """(1,3,H,W) with two neighbours in a row as one value, (1,3,H,W/2): half as many to move."""
    return (lr.clone() if lr.storage_offset() % 2 else lr.contiguous()).view(torch.float64)


def _unshuffled(pairs: Tensor) -> Tensor:
    """What pixel_unshuffle makes of an image as `_pairs` gives it, (1,12,h,w), channels last."""
    pixels = pairs.unflatten(2, (-1, UNSHUFFLE)).permute(0, 2, 4, 1, 3).contiguous()
    return pixels.view(torch.float32).flatten(3).permute(0, 3, 1, 2)


def _by_blocks(image: Tensor, side: int) -> Tensor:
    """An image (1,3,h side,w side) as (1,3,h,side,w,groups), see `_groups`."""
    return _groups(image.unflatten(3, (-1, side)).unflatten(2, (-1, side)), side)


def _from_channels(features: Tensor, side: int) -> Tensor:
    """(1,3 side side,h,w), channels last, as what pixel_shuffle makes of it, in the form of `_by_blocks`."""
    last = features.permute(0, 2, 3, 1).contiguous()
    return _groups(last.unflatten(3, (3, side, side)), side).permute(0, 3, 1, 4, 2, 5)


def _groups(pixels: Tensor, side: int) -> Tensor:
    """Rows of `side` values as groups of 4, or 2, that are copied as one value: five times as fast as one by one."""
    return pixels.view(torch.complex128 if side % 4 == 0 else torch.float64)
