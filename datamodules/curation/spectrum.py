"""Whether an image holds detail of its own up to its finest frequencies, or was enlarged from a smaller one."""

import warnings

import numpy as np
import scipy.fft
from torch import Tensor

TILE = 512
_TILES = (4, 6)
"""Rows and columns of the tiles that are looked at, spread over the image."""
_DETAILED = 8
"""The most detailed of them count: what is out of focus or flat says nothing."""
_SHIFTS = np.arange(140, 380)
"""Distances between a frequency and its repetition, cycles per TILE: enlargements by 3.65 to 1.35."""
_AT_HALF = np.abs(_SHIFTS - TILE // 2) <= 1
_BLURRED = 190
"""Below this shift, an enlargement by 2.7, missing energy alone says blurred rather than enlarged."""
_NEAREST, _WIDTH, _STRIPE = 10, 28, 7
"""The band above a cut begins so many cycles per TILE from it; its stripes see an interpolation filter as constant."""
_ACROSS = 64
"""Frequencies of the other axis below this are taken, in cycles per TILE."""
_FAINT = 2.0
"""Energy per frequency, in squared levels of 255, next below a cut, under which little but rounding can end there."""
_SMOOTH = 0.3
"""The same over all middle frequencies of a tile, under which it holds rounding alone, whose energy is 1/12."""
_PROOF = 0.1
"""Share of repetition above a cut that proves an enlargement, with noise or JPEG laid over it."""
_PROOF_AT_HALF = 0.15
"""The same for an enlargement by 2, of which JPEG alone leaves slight traces too."""
_NOTHING = 1e-3


def high_band(luma: Tensor) -> float:
    """Detail of its own above the cut that an enlargement would have left, in dB: about 0 for photographs.

    luma is (H,W) float, 0-255. NaN where a side is below 512 px or no tile has detail. For cuts c from 0.14 to 0.37
    cycles per px, the energy just above c is compared with that just below, and with the fall of natural images, whose
    energy goes with the inverse square of the frequency. An enlargement by 1 / (2 c) with any filter repeats what lies
    below c above it, mirrored: that part, known by its coherence, is no detail of its own and is taken off manifold,
    since noise or JPEG can cover the rest. The score is that of the worst cut, in the better of both axes, by
    the median of the most detailed tiles (ours; that enlarging makes an image periodically correlated: Popescu, Farid,
    "Exposing digital forgeries by detecting traces of resampling", IEEE TSP 2005).
    """
    if min(luma.shape) < TILE:
        return float("nan")
    spectra = scipy.fft.fft2(_tiles(luma))
    energy_ratios, repeated = zip(*(_along_rows(axis) for axis in (spectra, spectra.swapaxes(1, 2))), strict=True)
    proof = np.where(_AT_HALF, _PROOF_AT_HALF, _PROOF)
    proven = _above_its_surroundings(np.mean(repeated, axis=0)) / proof
    own = 10 * np.log10(np.clip(1 - proven, _NOTHING, 1))
    scores = np.fmax(*energy_ratios) * (_SHIFTS >= _BLURRED) + own
    return float("nan") if np.isnan(scores).all() else float(np.nanmin(scores))


def _tiles(luma: Tensor) -> np.ndarray:
    """(n,TILE,TILE) float32, each less its mean and faded out by a Hann window of unit energy."""
    fade = np.hanning(TILE + 2)[1:-1]
    fade /= np.sqrt((fade**2).sum())
    tops, lefts = (
        sorted({*np.linspace(0, side - TILE, count).astype(int).tolist()})
        for side, count in zip(luma.shape, _TILES, strict=True)
    )
    tiles = np.stack([luma[top : top + TILE, left : left + TILE].numpy() for top in tops for left in lefts])
    return (tiles - tiles.mean((1, 2), keepdims=True)) * np.outer(fade, fade).astype(np.float32)


def _along_rows(spectra: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each shift, over the last axis: energy above its cut to below in dB, and the share that is repetition."""
    spectra = np.concatenate([spectra[:, :_ACROSS], spectra[:, 1 - _ACROSS :]], axis=1)
    power = np.abs(spectra) ** 2
    # the median over the other axis: a smooth ramp or a single line has energy at few frequencies there
    detail = np.median(power[:, :, TILE // 8 : TILE // 3], axis=1).mean(1)
    chosen = [tile for tile in np.argsort(-detail, kind="stable")[:_DETAILED] if detail[tile] > _SMOOTH]
    if not chosen:
        return np.full(len(_SHIFTS), np.nan), np.zeros(len(_SHIFTS))
    spectra, energy = spectra[chosen], power[chosen].mean(1)
    pairs = [_one_cut(spectra, energy, shift) for shift in _SHIFTS.tolist()]
    ratios, repeated = np.array(pairs).transpose(1, 0, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a cut without detail in any tile
        return np.nanmedian(ratios, axis=1), np.nan_to_num(np.nanmedian(repeated, axis=1))


def _one_cut(spectra: np.ndarray, energy: np.ndarray, shift: int) -> tuple[np.ndarray, np.ndarray]:
    """The same for one shift and each tile; NaN where the band below the cut is faint."""
    first = shift // 2 + _NEAREST
    last = first + (min(_WIDTH, TILE // 2 - first) // _STRIPE) * _STRIPE
    frequency = np.arange(first, last)
    high, low = slice(first, last), slice(TILE + first - shift, TILE + last - shift)
    above, below = energy[:, high], energy[:, low]
    # how much of the band above is a multiple of the band below, by stripes of equal multiple
    common = np.einsum("trf,trf->tf", spectra[:, :, high], spectra[:, :, low].conj()) / spectra.shape[1]
    common, stripes, mirrored = (band.reshape(len(band), -1, _STRIPE).mean(2) for band in (common, above, below))
    repeated = np.minimum(np.abs(common) ** 2 / (mirrored + 1e-9), stripes).sum(1) / (stripes.sum(1) + 1e-9)
    fall = ((shift - frequency) / frequency) ** 2
    ratio = 10 * np.log10((above.sum(1) + 1e-9) / (below.sum(1) + 1e-9) / fall.mean())
    faint = below[:, :_STRIPE].mean(1) < _FAINT
    return np.where(faint, np.nan, ratio), np.where(faint, np.nan, repeated)


def _above_its_surroundings(repeated: np.ndarray) -> np.ndarray:
    """How far each shift's share stands above the shifts beside it: a lone straight edge repeats itself at any shift.

    0 at multiples of 1/8, where JPEG's blocks repeat too. At 1/2 their symmetry leaves less than half of what they
    leave at 5/8, which is taken off.
    """
    beside = np.median([np.roll(repeated, step) for step in (-9, -7, -5, 5, 7, 9)], axis=0)
    raised = np.maximum(repeated - beside, 0)
    eighth = TILE // 8
    jpeg = np.abs((_SHIFTS + eighth // 2) % eighth - eighth // 2) <= 1
    at_half = np.maximum(raised - raised[5 * eighth == _SHIFTS] / 2, 0)
    return np.where(_AT_HALF, at_half, np.where(jpeg, 0, raised))
