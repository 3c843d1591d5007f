"""The Flux transformer (diffusers' FluxTransformer2DModel), built small or loaded, and the packing around it."""

import math
from pathlib import Path

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn

from lightning_modules.networks.local_folder import load_whole

TOKEN_CELLS = 2
"""Latent cells per token along each side: Flux packs 2 x 2 cells into a token."""

HEAD_CHANNELS = 128
ROPE_AXES = (16, 56, 56)
"""Rotary channels of the text axis, the row axis and the column axis; they add up to a head's channels."""


def build_flux(
    latent_channels: int, double_blocks: int, single_blocks: int, heads: int, prompt_width: int
) -> FluxTransformer2DModel:
    """A Flux of any size with the public layout: heads of 128 channels, rotary axes 16/56/56, no guidance embedding.

    Its last projection starts at zero, so that an untrained one-step student is the identity on latents (ours).
    """
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=latent_channels * TOKEN_CELLS**2,
        num_layers=double_blocks,
        num_single_layers=single_blocks,
        attention_head_dim=HEAD_CHANNELS,
        num_attention_heads=heads,
        joint_attention_dim=prompt_width,
        pooled_projection_dim=prompt_width,
        guidance_embeds=False,
        axes_dims_rope=ROPE_AXES,
    )
    nn.init.zeros_(transformer.proj_out.weight)
    nn.init.zeros_(transformer.proj_out.bias)
    return transformer


def load_flux(folder: str | Path, dtype: torch.dtype = torch.float32) -> FluxTransformer2DModel:
    """Load a FluxTransformer2DModel from a local folder in diffusers format, such as `transformer` of FLUX.1-dev."""
    return load_whole(FluxTransformer2DModel, folder, "transformer.path", dtype)


def pack(latent: Tensor) -> Tensor:
    """Latent (B,C,h,w), h and w even, to tokens (B, h/2 * w/2, 4C), a token holding 2 x 2 cells per channel."""
    batch, channels, height, width = latent.shape
    if height % TOKEN_CELLS or width % TOKEN_CELLS:
        raise ValueError(f"latent of {height} x {width} cells: expected even sides, a token covers 2 x 2 cells")
    cells = latent.reshape(batch, channels, height // 2, 2, width // 2, 2)
    return cells.permute(0, 2, 4, 1, 3, 5).reshape(batch, height * width // 4, channels * 4)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """The inverse of `pack` for a latent of height x width cells."""
    batch, _, channels = tokens.shape
    cells = tokens.reshape(batch, height // 2, width // 2, channels // 4, 2, 2)
    return cells.permute(0, 3, 1, 4, 2, 5).reshape(batch, channels // 4, height, width)


def image_ids(rows: int, columns: int, device: torch.device | str = "cpu") -> Tensor:
    """Position ids (rows * columns, 3) of the image tokens: 0, row, column."""
    grid = torch.zeros(rows, columns, 3, device=device)
    grid[..., 1] = torch.arange(rows, device=device)[:, None]
    grid[..., 2] = torch.arange(columns, device=device)
    return grid.reshape(rows * columns, 3)


def neighbour_phases(transformer: FluxTransformer2DModel, axis: int = 1, tokens: int = 2) -> Tensor:
    """Phase differences in degrees of each rotary pair of an axis between neighbouring tokens (OP4KSR, fig. 5a).

    Read from the cos and sin that the transformer itself computes, not from the formula theta^(-2i/D); shape (D/2,).
    tokens: size of the axis, at least 2; the variants of `rope.py` depend on it beyond their window.
    """
    ids = torch.zeros(3, len(ROPE_AXES))
    ids[1, axis] = 1
    ids[2, axis] = tokens - 1
    cos, sin = (table.double() for table in transformer.pos_embed(ids))
    axes = transformer.config["axes_dims_rope"]
    pairs = slice(sum(axes[:axis]), sum(axes[: axis + 1]), 2)  # each pair's angle stands twice in a row
    cos, sin = cos[:, pairs], sin[:, pairs]
    difference = torch.atan2(sin[1] * cos[0] - cos[1] * sin[0], cos[1] * cos[0] + sin[1] * sin[0])
    return difference.abs() * (180 / math.pi)


def distinguishable_pairs(
    transformer: FluxTransformer2DModel, degrees: float = 5.0, tokens: int = 2
) -> tuple[int, int]:
    """How many of a spatial axis's rotary pairs stay at or above `degrees` between neighbours, and of how many.

    OP4KSR, fig. 5a: 8 of 28 at theta = 10,000 and 15 of 28 at theta = 100. tokens as in `neighbour_phases`.
    """
    phases = neighbour_phases(transformer, tokens=tokens)
    return int((phases >= degrees).sum()), len(phases)
