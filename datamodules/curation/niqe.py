"""NIQE: how far an image's local statistics lie from those of pristine photographs, without a reference."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.ndimage import correlate1d
from scipy.special import gamma

BLOCK = 96
"""Px per side of the blocks at full size; half of it at half size."""
_NEIGHBOURS = ((0, 1), (1, 0), (1, 1), (1, -1))
_SHAPES = np.arange(0.2, 10.001, 0.001)
_RATIOS = gamma(2 / _SHAPES) ** 2 / (gamma(1 / _SHAPES) * gamma(3 / _SHAPES))
# Keys' cubic of a = -0.5 widened to twice its width, at the eight pixels around the middle of two: MATLAB's halving
_HALVING = np.array([-3, -9, 29, 111, 111, 29, -9, -3], np.float32) / 256


@dataclass(frozen=True)
class NiqeParameters:
    """The model of pristine photographs: mean (36,), covariance (36,36), window (7,) whose square blurs; float64."""

    mean: np.ndarray
    covariance: np.ndarray
    window: np.ndarray


def read_niqe_parameters(path: str | Path) -> NiqeParameters:
    """Read BasicSR's niqe_pris_params.npz; FileNotFoundError where there is none, ValueError for another file."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"models.niqe: found no file at {path}, expected niqe_pris_params.npz of BasicSR")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            mean, covariance, window = (arrays[name] for name in ("mu_pris_param", "cov_pris_param", "gaussian_window"))
    except Exception as error:  # numpy raises a handful of kinds for files that are no .npz
        raise ValueError(
            f"models.niqe: {path} is no .npz with mu_pris_param, cov_pris_param and gaussian_window"
        ) from error
    if mean.size != 36 or covariance.shape != (36, 36) or window.shape != (7, 7):
        raise ValueError(
            f"models.niqe: {path} holds a mean of {mean.size}, a covariance of {covariance.shape} and a window of "
            f"{window.shape}, expected 36, (36, 36) and (7, 7)"
        )
    return NiqeParameters(mean.reshape(36), covariance, window.sum(0))


def niqe(luma_255: np.ndarray, parameters: NiqeParameters) -> float:
    """The NIQE of an image; 2-4 is typical of good photographs, lower is better.

    luma_255 is (H,W) float32: Y of MATLAB's YCbCr, rounded, 16-235. What exceeds whole blocks of 96 px at the right
    and the bottom is left out. NaN where fewer than two blocks have texture. ValueError below two blocks. Source:
    Mittal, Soundararajan, Bovik, "Making a completely blind image quality analyzer", IEEE SPL 2013; blocks are not
    chosen by sharpness, as in the authors' code for the image under test and in BasicSR, whose values it gives.
    """
    rows, columns = (side // BLOCK for side in luma_255.shape)
    if rows * columns < 2:
        raise ValueError(f"NIQE: found an image of {luma_255.shape}, expected at least two blocks of {BLOCK} px")
    whole = luma_255[: rows * BLOCK, : columns * BLOCK].astype(np.float32)
    half = _halved(_halved(whole.T).T)
    features = np.concatenate([_features(whole, BLOCK, parameters), _features(half, BLOCK // 2, parameters)], axis=1)
    valid = features[~np.isnan(features).any(1)]
    if len(valid) < 2:
        return float("nan")
    difference = parameters.mean - np.nanmean(features, axis=0)
    # equation 10
    inverse = np.linalg.pinv((parameters.covariance + np.cov(valid, rowvar=False)) / 2)
    return float(np.sqrt(difference @ inverse @ difference))


def _halved(image: np.ndarray) -> np.ndarray:
    """Half as many rows, as MATLAB's `imresize(image, 0.5)` with antialiasing; the number of rows is even."""
    padded = np.pad(image, ((3, 3), (0, 0)), mode="symmetric")
    half = len(image)
    return sum(
        (weight * padded[tap : tap + half : 2] for tap, weight in enumerate(_HALVING)),
        start=np.zeros((), np.float32),
    )


def _features(image: np.ndarray, side: int, parameters: NiqeParameters) -> np.ndarray:
    """The 18 features of every block, (blocks, 18) float64; NaN for a block without values on both sides of zero."""
    rows = [
        _block_features(row.reshape(side, -1, side).swapaxes(0, 1))
        for row in np.split(_normalized(image, parameters.window), len(image) // side)
    ]
    return np.concatenate(rows)


def _normalized(image: np.ndarray, window: np.ndarray) -> np.ndarray:
    """Equation 1: each pixel less its neighbourhood's mean, in units of its deviation plus one."""
    image = image - np.float32(128)  # smaller squares keep the difference of squares exact enough in float32
    mean = _blurred(image, window)
    variance = np.abs(_blurred(image * image, window) - mean * mean)
    return (image - mean) / (np.sqrt(variance) + 1)


def _blurred(image: np.ndarray, window: np.ndarray) -> np.ndarray:
    return correlate1d(correlate1d(image, window, axis=0, mode="nearest"), window, axis=1, mode="nearest")


def _block_features(blocks: np.ndarray) -> np.ndarray:
    """(n, side, side) to (n, 18): shape and width of the values, then four numbers for each product of neighbours."""
    shape, left, right = _asymmetric_gaussian(blocks)
    features = [shape, (left + right) / 2]
    for shift in _NEIGHBOURS:
        shape, left, right = _asymmetric_gaussian(blocks * np.roll(blocks, shift, axis=(1, 2)))
        # equation 8
        mean = (right - left) * gamma(2 / shape) / gamma(1 / shape)
        features += [shape, mean, left, right]
    return np.stack(features, axis=1)


def _asymmetric_gaussian(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shape, left and right width of an asymmetric generalized Gaussian for each of (n, side, side), by moments.

    Equations 5-7; Lasmar, Stitou, Berthoumieu, "Multiscale skewed heavy tailed model for texture analysis", ICIP 2009.
    """
    flat = values.reshape(len(values), -1)
    above, below = np.maximum(flat, 0), np.minimum(flat, 0)
    square_above, square_below = (np.einsum("ij,ij->i", v, v).astype(np.float64) for v in (above, below))
    count_above, count_below = (np.count_nonzero(v, axis=1) for v in (above, below))
    absolute = (above.sum(1, dtype=np.float64) - below.sum(1, dtype=np.float64)) / flat.shape[1]
    with np.errstate(invalid="ignore", divide="ignore"):
        left, right = np.sqrt(square_below / count_below), np.sqrt(square_above / count_above)
        skew = left / right
        ratio = absolute**2 / ((square_above + square_below) / flat.shape[1])
        ratio *= (skew**3 + 1) * (skew + 1) / (skew**2 + 1) ** 2
    shape = _SHAPES[_nearest(_RATIOS, ratio)]
    width = np.sqrt(gamma(1 / shape) / gamma(3 / shape))
    return np.where(np.isnan(ratio), np.nan, shape), left * width, right * width


def _nearest(ascending: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Where in `ascending` the nearest value stands."""
    after = np.searchsorted(ascending, values).clip(1, len(ascending) - 1)
    return after - (values - ascending[after - 1] <= ascending[after] - values)
