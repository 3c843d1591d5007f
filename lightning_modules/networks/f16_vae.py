"""The FLUX VAE (diffusers' AutoencoderKL) in F16 layout: 16 px per latent cell with the tensors of the F8 one.

Layout of Diffusion-4K (arXiv 2506.01331) and UltraFlux (arXiv 2511.18050): the encoder's `conv_in` runs at stride 2,
and the decoder doubles the size (nearest) between its last SiLU and `conv_out`. No tensor is added or renamed.
"""

from collections.abc import Sequence

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

# Statistics of FLUX.1's latents, by which its transformer's input is normalised.
_FLUX_SCALING, _FLUX_SHIFT = 0.3611, 0.1159


class DoublingSiLU(nn.Module):
    """silu(x), then each pixel repeated 2 x 2: (B,C,H,W) -> (B,C,2H,2W); takes the place of the decoder's last SiLU."""

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(F.silu(x), scale_factor=2, mode="nearest")


def build_flux_vae(
    block_out_channels: Sequence[int], layers_per_block: int, norm_groups: int, latent_channels: int = 16
) -> AutoencoderKL:
    """An AutoencoderKL of any size in FLUX's own layout; FLUX.1 has (128, 256, 512, 512), 2 and 32.

    No quant convolutions, FLUX's scaling and shift. n blocks give 2^(n-1) px per latent cell, so four give F8.
    Raises ValueError where `norm_groups` does not divide every width.
    """
    uneven = [width for width in block_out_channels if width % norm_groups]
    if uneven:
        raise ValueError(f"found blocks of {uneven} channels; expected multiples of norm_groups={norm_groups}")
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(block_out_channels),
        up_block_types=("UpDecoderBlock2D",) * len(block_out_channels),
        block_out_channels=tuple(block_out_channels),
        layers_per_block=layers_per_block,
        latent_channels=latent_channels,
        norm_num_groups=norm_groups,
        scaling_factor=_FLUX_SCALING,
        shift_factor=_FLUX_SHIFT,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def build_f16_vae(
    block_out_channels: Sequence[int], layers_per_block: int, norm_groups: int, latent_channels: int = 16
) -> AutoencoderKL:
    """`build_flux_vae` in F16 layout: n blocks give 2^n px per latent cell."""
    return to_f16(build_flux_vae(block_out_channels, layers_per_block, norm_groups, latent_channels))


def to_f16(vae: AutoencoderKL) -> AutoencoderKL:
    """The same VAE with the two changes of the F16 layout made in place; its config.json will say layout "f16" (ours).

    Parameter names and shapes stay, so weights of either layout load before or after.
    """
    vae.encoder.conv_in.stride = (2, 2)
    vae.decoder.conv_act = DoublingSiLU()
    vae.register_to_config(layout="f16")
    return vae


def is_f16(vae: nn.Module) -> bool:
    """Whether a model is an AutoencoderKL in F16 layout."""
    return isinstance(vae, AutoencoderKL) and isinstance(vae.decoder.conv_act, DoublingSiLU)


def last_norm(vae: AutoencoderKL, latent: Tensor) -> Tensor:
    """Output of the decoder's last norm for a latent as `vae.decode` takes it: (B,C,h,w) -> (B,width,H,W).

    What is left of decoding is `conv_out(conv_act(...))`; in F16 layout, H and W are half of the image's.
    """
    decoder = vae.decoder
    h = decoder.conv_in(latent if vae.post_quant_conv is None else vae.post_quant_conv(latent))
    for block in (decoder.mid_block, *decoder.up_blocks):
        if decoder.gradient_checkpointing and torch.is_grad_enabled():
            h = checkpoint(block, h, None, use_reentrant=False)
        else:
            h = block(h, None)
    return decoder.conv_norm_out(h)


def last_features(vae: AutoencoderKL, latent: Tensor) -> Tensor:
    """What the decoder's `conv_out` sees, at the image's size in either layout: (B,C,h,w) -> (B,width,H,W)."""
    return vae.decoder.conv_act(last_norm(vae, latent))


@torch.no_grad()
def decode_in_strips(vae: AutoencoderKL, latent: Tensor, rows: int) -> Tensor:
    """`vae.decode(latent).sample` of an F16 VAE, exactly, with its last stage on strips of `rows` latent rows.

    The last doubling and convolution hold the largest tensor of all (8 GiB in fp32 at 4096 px and 128 channels). Each
    strip carries the one row that the convolution reaches. The norms need the whole image, so the rest stays whole.
    """
    decoder, h = vae.decoder, last_norm(vae, latent)
    height, step = h.shape[-2], rows * (h.shape[-2] // latent.shape[-2])
    strips = []
    for top in range(0, height, step):
        bottom = min(top + step, height)
        first, last = max(0, top - 1), min(height, bottom + 1)
        strip = decoder.conv_out(decoder.conv_act(h[..., first:last, :]))
        strips.append(strip[..., 2 * (top - first) : 2 * (bottom - first), :])
    return torch.cat(strips, dim=-2)
