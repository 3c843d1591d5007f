"""Rotary position embedding of Flux in four variants: plain, interpolated, NTK-aware, and YaRN with resonance.

Each axis is treated on its own: a 128 x 32 token image is four windows of 32 tall and one wide, so its rows change and
its columns stay (UltraFlux does the same). Within the window every variant is the plain embedding.
"""

import math
from collections.abc import Sequence

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn

VARIANTS = ("plain", "interpolation", "ntk", "yarn")

# YaRN's turns within the window between which its two ramps run, as UltraFlux sets them: (all, nothing).
_BETA_TURNS = (1.25, 0.75)
_GAMMA_TURNS = (16.0, 2.0)


class RotaryEmbedding(nn.Module):
    """Takes the place of diffusers' FluxPosEmbed: ids (N, axes) to cos and sin (N, sum of axes_dim), float32.

    axes_dim: rotary channels per axis, (16, 56, 56) in Flux. theta: base frequency. variant: one of VARIANTS. window:
    training crop in tokens per side, not read by plain. The first axis, the text's, is plain in every variant. The
    current size of an axis is its largest id + 1, whatever the order of the ids; Flux's ids start at 0. Plain gives
    FluxPosEmbed's values bit for bit. Errors as in `frequencies`.
    """

    def __init__(
        self,
        axes_dim: Sequence[int],
        theta: float = 10000.0,
        variant: str = "plain",
        window: int = 0,
    ) -> None:
        super().__init__()
        check_rope(variant, theta, window)
        self.axes_dim = tuple(axes_dim)
        self.theta = theta
        self.variant = variant
        self.window = window

    @torch.no_grad()
    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Cos and sin of each id's angles; each pair's value stands twice in a row."""
        positions = ids.float()
        # plain needs no sizes, and asking for them makes the host wait for the GPU
        sizes = [1] * ids.shape[-1] if self.variant == "plain" else [int(top) + 1 for top in positions.amax(0).tolist()]
        tables = [self._axis(axis, positions[:, axis], tokens) for axis, tokens in enumerate(sizes)]
        cos, sin = (torch.cat(parts, dim=-1) for parts in zip(*tables, strict=True))
        return cos, sin

    def _axis(self, axis: int, positions: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
        variant = self.variant if axis else "plain"
        frequency, amplitude = frequencies(self.axes_dim[axis], self.theta, variant, tokens, self.window)
        angles = torch.outer(positions, frequency.to(positions.device))  # float64, as in diffusers
        cos, sin = (table.repeat_interleave(2, dim=1).float() for table in (angles.cos(), angles.sin()))
        return (cos, sin) if amplitude == 1 else (cos * amplitude, sin * amplitude)


def use_rope(transformer: FluxTransformer2DModel, variant: str, theta: float, window: int) -> None:
    """Replace a transformer's position embedding; variant, theta and window as in `RotaryEmbedding`."""
    transformer.pos_embed = RotaryEmbedding(transformer.config["axes_dims_rope"], theta, variant, window)


def check_rope(variant: str, theta: float, window: int) -> None:
    """ValueError, naming the option, for values that no embedding can be built of."""
    if variant not in VARIANTS:
        raise ValueError(f"transformer.rope.variant={variant!r}: expected one of {', '.join(VARIANTS)}")
    smallest = 1 if variant == "yarn" else 0  # YaRN divides by the logarithm of theta
    if not smallest < theta < math.inf:
        raise ValueError(f"transformer.rope.theta={theta}: expected a finite value above {smallest} ({variant})")
    if variant != "plain" and window < 1:
        raise ValueError(f"transformer.rope.window={window}: expected the training crop in tokens, at least 1")


def frequencies(width: int, theta: float, variant: str, tokens: int, window: int) -> tuple[Tensor, float]:
    """Radians per token (width / 2,) in float64 of an axis of `width` channels, and the factor of its cos and sin.

    tokens: current tokens n of the axis; s = max(n / window, 1); f_i = theta^(-2i / width).
    plain: f_i (Su et al. 2021); OP4KSR's RFR is plain at theta = 100. interpolation: f_i / s (Chen et al. 2023).
    ntk: theta s^(width / (width - 2)) in place of theta. yarn: `_yarn`. Factor: 0.1 ln s + 1 in yarn, else 1.
    ValueError for an unknown variant, theta not above 0 (yarn: 1), or a window below 1.
    """
    check_rope(variant, theta, window)
    exponents = torch.arange(0, width, 2, dtype=torch.float64) / width
    base = 1.0 / (theta**exponents)
    stretch = 1.0 if variant == "plain" else max(tokens / window, 1.0)
    if stretch == 1:
        return base, 1.0
    if variant == "interpolation":
        return base / stretch, 1.0
    if variant == "ntk":
        return _ntk_theta(theta, stretch, width) ** -exponents, 1.0
    return _yarn(base, theta, stretch, window), 0.1 * math.log(stretch) + 1


def _ntk_theta(theta: float, stretch: float, width: int) -> float:
    return theta * stretch ** (width / (width - 2))


def _yarn(base: Tensor, theta: float, stretch: float, window: int) -> Tensor:
    """YaRN (Peng et al. 2023) with resonance, by UltraFlux's formula, s > 1.

    Pairs that turn at least once in the window first get a whole number of turns there. Slow pairs are then
    interpolated, faster ones NTK-scaled, and those with many turns in the window keep their frequency.
    """
    width, turn = 2 * len(base), 2 * math.pi
    turns = window * base / turn
    base = torch.where(turns >= 1, turn * turns.round() / window, base)
    exponents = -base.log() / math.log(theta)
    ntk = _ntk_theta(theta, stretch, width) ** -exponents
    slow = _ramp(_BETA_TURNS, width, theta, window)
    changed = _ramp(_GAMMA_TURNS, width, theta, window)
    mixed = slow * base / stretch + (1 - slow) * ntk
    return changed * mixed + (1 - changed) * base


def _ramp(turns: tuple[float, float], width: int, theta: float, window: int) -> Tensor:
    """0 to 1 over the pairs, from the one with the first number of turns in the window to the one with the second.

    Where the window is so small or so large that no pair lies between, a step at the upper end (ours: the formula's
    ramp would divide by zero or run backwards; windows below 13 tokens come to that at YaRN's outer ramp).
    """
    first, second = (width * math.log(window / (2 * math.pi * r)) / (2 * math.log(theta)) for r in turns)
    low, high = max(0, math.floor(first)), min(width // 2, math.ceil(second))
    pairs = torch.arange(width // 2, dtype=torch.float64)
    if high <= low:
        return (pairs >= high).double()
    return ((pairs - low) / (high - low)).clamp(0, 1)
