"""A small F16 image codec with the interface of diffusers' AutoencoderKL (ours, for the demo and for tests).

A PCA of 16 x 16 x 3 patches gives the linear path, a light residual CNN around it the rest. The linear path makes it
useful from the first step: plain AutoencoderKLs of 3-4 M parameters are hopeless after the few CPU minutes that the
demo can spend.
"""

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn import functional as F

PATCH = 16
# Logarithm of the variance of the (deterministic) posterior, the floor at which AutoencoderKL clamps.
_LOG_VARIANCE = -30.0


class ResidualBlock(nn.Module):
    """x + conv(silu(conv(silu(x)))), without a norm, so that strips give exactly the whole image's values."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        _zero(self.conv2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.conv1(F.silu(x))))


def _zero(convolution: nn.Conv2d) -> None:
    for parameter in convolution.parameters():
        nn.init.zeros_(parameter)


def _blocks(channels: int, count: int) -> nn.Sequential:
    return nn.Sequential(*[ResidualBlock(channels) for _ in range(count)])


def _fine_halo(blocks: int) -> int:
    """Latent rows that stages finer than stride 16 reach: 2 convolutions per block at strides 8 and 4, and 1 more."""
    reach = 8 * 2 * blocks + 4 * (2 * blocks + 1)
    return -(-reach // PATCH)


class Encoder(nn.Module):
    """Image (B,3,H,W) to latent mean (B,latent,H/16,W/16): linear patch projection plus a CNN at strides 4, 8 and 16.

    `fine` works from the pixels down to stride 16, `coarse` at stride 16.
    """

    def __init__(self, latent_channels: int, widths: tuple[int, int, int], blocks: int) -> None:
        super().__init__()
        fine, middle, coarse = widths
        self.fine_halo = _fine_halo(blocks)
        self.linear = nn.Conv2d(3, latent_channels, PATCH, stride=PATCH)
        self.conv_in = nn.Conv2d(48, fine, 3, padding=1)
        self.stride4 = _blocks(fine, blocks)
        self.down8 = nn.Conv2d(fine, middle, 2, stride=2)
        self.stride8 = _blocks(middle, blocks)
        self.down16 = nn.Conv2d(middle, coarse, 2, stride=2)
        self.stride16 = _blocks(coarse, blocks)
        self.conv_out = nn.Conv2d(coarse, latent_channels, 3, padding=1)
        _zero(self.conv_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.coarse(*self.fine(x))

    def fine(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.stride4(self.conv_in(F.pixel_unshuffle(x, 4)))
        h = self.stride8(self.down8(h))
        return self.linear(x), self.down16(h)

    def coarse(self, linear: Tensor, h: Tensor) -> Tensor:
        return linear + self.conv_out(F.silu(self.stride16(h)))


class Decoder(nn.Module):
    """Latent (B,latent,h,w) to image (B,3,16h,16w); `coarse` works at stride 16, `fine` from there to the pixels."""

    def __init__(self, latent_channels: int, widths: tuple[int, int, int], blocks: int) -> None:
        super().__init__()
        fine, middle, coarse = widths
        self.linear = nn.ConvTranspose2d(latent_channels, 3, PATCH, stride=PATCH)
        self.conv_in = nn.Conv2d(latent_channels, coarse, 3, padding=1)
        self.stride16 = _blocks(coarse, 2 * blocks)
        self.up8 = nn.Conv2d(coarse, 4 * middle, 1)
        self.stride8 = _blocks(middle, blocks)
        self.up4 = nn.Conv2d(middle, 4 * fine, 1)
        self.stride4 = _blocks(fine, blocks)
        self.conv_out = nn.Conv2d(fine, 48, 3, padding=1)
        _zero(self.conv_out)
        self.fine_halo = _fine_halo(blocks)

    def forward(self, z: Tensor) -> Tensor:
        return self.fine(z, self.coarse(z))

    def coarse(self, z: Tensor) -> Tensor:
        return self.stride16(self.conv_in(z))

    def fine(self, z: Tensor, h: Tensor) -> Tensor:
        h = self.stride8(F.pixel_shuffle(self.up8(h), 2))
        h = self.stride4(F.pixel_shuffle(self.up4(h), 2))
        return self.linear(z) + F.pixel_shuffle(self.conv_out(F.silu(h)), 4)


class SmallF16Codec(ModelMixin, ConfigMixin):
    """Deterministic F16 codec: `encode(x).latent_dist`, `decode(z).sample`, `config.scaling_factor` and `shift_factor`.

    x is (B,3,H,W) in [-1,1] with sides a multiple of 16, z (B,latent_channels,H/16,W/16). Saved and loaded by
    diffusers' `save_pretrained` and `from_pretrained` (config.json and safetensors in a local folder).
    """

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 64,
        widths: tuple[int, int, int] = (48, 96, 192),
        blocks: int = 1,
        scaling_factor: float = 1.0,
        shift_factor: float = 0.0,
    ) -> None:
        super().__init__()
        self.encoder = Encoder(latent_channels, widths, blocks)
        self.decoder = Decoder(latent_channels, widths, blocks)

    def encode(self, x: Tensor) -> AutoencoderKLOutput:
        mean = self.encoder(x)
        moments = torch.cat([mean, torch.full_like(mean, _LOG_VARIANCE)], dim=1)
        return AutoencoderKLOutput(latent_dist=DiagonalGaussianDistribution(moments, deterministic=True))

    def decode(self, z: Tensor) -> DecoderOutput:
        return DecoderOutput(sample=self.decoder(z))

    @torch.no_grad()
    def encode_in_strips(self, x: Tensor, rows: int) -> Tensor:
        """Latent mean with the stages finer than stride 16 run on strips of `rows` latent rows, equal to `encode(x)`'s.

        The counterpart of `decode_in_strips`: exact, and the peak memory falls with `rows`.
        """
        halo, height = self.encoder.fine_halo, x.shape[-2] // PATCH
        parts = []
        for top in range(0, height, rows):
            bottom = min(top + rows, height)
            first, last = max(0, top - halo), min(height, bottom + halo)
            strip = self.encoder.fine(x[..., PATCH * first : PATCH * last, :])
            parts.append([part[..., top - first : bottom - first, :] for part in strip])
        linear, h = (torch.cat(part, dim=-2) for part in zip(*parts, strict=True))
        return self.encoder.coarse(linear, h)

    @torch.no_grad()
    def decode_in_strips(self, z: Tensor, rows: int) -> Tensor:
        """Decode with the stages finer than stride 16 run on strips of `rows` latent rows, equal to `decode(z).sample`.

        Each strip carries the halo that its convolutions reach, so the result is exact; peak memory falls with `rows`.
        """
        halo, height = self.decoder.fine_halo, z.shape[-2]
        h = self.decoder.coarse(z)
        image = z.new_empty(z.shape[0], 3, PATCH * height, PATCH * z.shape[-1], dtype=h.dtype)
        for top in range(0, height, rows):
            bottom = min(top + rows, height)
            first, last = max(0, top - halo), min(height, bottom + halo)
            strip = self.decoder.fine(z[..., first:last, :], h[..., first:last, :])
            image[..., PATCH * top : PATCH * bottom, :] = strip[
                ..., PATCH * (top - first) : PATCH * (bottom - first), :
            ]
        return image

    @torch.no_grad()
    def initialise_by_pca(self, patches: Tensor) -> None:
        """Set the linear path to the principal components of `patches` (N,3,16,16) in [-1,1], latents whitened."""
        latent_channels = self.config["latent_channels"]
        flat = patches.double().flatten(1)
        if len(flat) <= latent_channels:
            raise ValueError(f"PCA of {latent_channels} components needs more patches than that, found {len(flat)}")
        mean = flat.mean(0)
        centred = flat - mean
        variance, vectors = torch.linalg.eigh(centred.T @ centred / (len(flat) - 1))
        components = vectors[:, -latent_channels:].flip(1).T
        deviation = variance[-latent_channels:].flip(0).clamp_min(1e-8).sqrt()
        whiten = components / deviation[:, None]
        shape = (latent_channels, 3, PATCH, PATCH)
        self.encoder.linear.load_state_dict({"weight": whiten.reshape(shape), "bias": -whiten @ mean})
        # A transposed convolution has one bias per colour: of the mean patch only its average; the CNN adds the rest.
        spread, bias = components * deviation[:, None], mean.reshape(3, -1).mean(1)
        self.decoder.linear.load_state_dict({"weight": spread.reshape(shape), "bias": bias})
