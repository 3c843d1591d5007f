import json

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import convolve
from scipy.special import gamma

from datamodules.curation.measures import matlab_y
from datamodules.curation.niqe import NiqeParameters, niqe, read_niqe_parameters
from datamodules.image_io import read_image
from datamodules.synthetic import bundled_path


@pytest.fixture(scope="module")
def window():
    axis = np.exp(-(np.arange(-3, 4) ** 2) / (2 * (7 / 6) ** 2))
    return axis / axis.sum()


@pytest.fixture(scope="module")
def parameters(window):
    rng = np.random.default_rng(0)
    root = rng.normal(size=(36, 36))
    return NiqeParameters(rng.normal(size=36), root @ root.T / 36 + np.eye(36), window)


@pytest.fixture(scope="module")
def coffee():
    return matlab_y(read_image(bundled_path("coffee.png")).pixels)[:290, :400]


def fit(values):
    """Moment fit of an asymmetric generalized Gaussian, straight from Lasmar et al."""
    left, right = np.sqrt(np.mean(values[values < 0] ** 2)), np.sqrt(np.mean(values[values > 0] ** 2))
    skew = left / right
    wanted = np.mean(np.abs(values)) ** 2 / np.mean(values**2)
    wanted *= (skew**3 + 1) * (skew + 1) / (skew**2 + 1) ** 2
    shapes = np.arange(0.2, 10.001, 0.001)
    ratios = gamma(2 / shapes) ** 2 / gamma(1 / shapes) / gamma(3 / shapes)
    shape = shapes[np.argmin(np.abs(ratios - wanted))]
    width = np.sqrt(gamma(1 / shape) / gamma(3 / shape))
    return shape, left * width, right * width


def block_features(block):
    shape, left, right = fit(block)
    found = [shape, (left + right) / 2]
    for rows, columns in ((0, 1), (1, 0), (1, 1), (1, -1)):
        shape, left, right = fit(block * np.roll(np.roll(block, rows, 0), columns, 1))
        found += [shape, (right - left) * gamma(2 / shape) / gamma(1 / shape), left, right]
    return found


def image_features(image, side, window):
    square = np.outer(window, window)
    mean = convolve(image, square, mode="nearest")
    deviation = np.sqrt(np.abs(convolve(image**2, square, mode="nearest") - mean**2))
    normal = (image - mean) / (deviation + 1)
    return [
        block_features(normal[top : top + side, left : left + side])
        for top in range(0, image.shape[0], side)
        for left in range(0, image.shape[1], side)
    ]


def halve(image):
    """MATLAB's imresize(image, 0.5): every output is a cubic of double width around its own centre."""
    matrix = np.zeros((len(image) // 2, len(image)))
    for row in range(len(matrix)):
        for tap in range(2 * row - 4, 2 * row + 6):
            x = abs(tap - (2 * row + 0.5)) / 2
            weight = (1.5 * x - 2.5) * x * x + 1 if x <= 1 else ((-0.5 * x + 2.5) * x - 4) * x + 2 if x < 2 else 0
            mirrored = -1 - tap if tap < 0 else 2 * len(image) - 1 - tap if tap >= len(image) else tap
            matrix[row, mirrored] += weight
    return matrix / matrix.sum(1, keepdims=True) @ image


def test_niqe_equals_the_papers_formulas_in_float64(coffee, parameters):
    image = coffee[:288, :384].astype(np.float64)
    half = halve(halve(image).T).T
    features = np.hstack([image_features(image, 96, parameters.window), image_features(half, 48, parameters.window)])
    difference = parameters.mean - features.mean(0)
    covariance = (parameters.covariance + np.cov(features.T)) / 2
    expected = np.sqrt(difference @ np.linalg.inv(covariance) @ difference)
    assert niqe(coffee, parameters) == pytest.approx(expected, rel=1e-4)


def test_niqe_equals_the_published_implementation(shared):
    parameters = read_niqe_parameters(shared / "weights/niqe/niqe_pris_params.npz")
    expected = json.loads((shared / "weights/niqe/reference_values.json").read_text())
    found = {name: niqe(matlab_y(read_image(shared / name).pixels), parameters) for name in expected}
    assert found == pytest.approx(expected, abs=0.005)


def test_matlab_y_is_that_of_ycbcr():
    pixels = read_image(bundled_path("chelsea.png")).pixels
    red, green, blue = pixels.double().numpy() / 255
    expected = np.rint(16 + 65.481 * red + 128.553 * green + 24.966 * blue)
    assert np.abs(matlab_y(pixels) - expected).max() <= 1
    assert np.mean(matlab_y(pixels) != expected) < 1e-4
    assert np.array_equal(matlab_y(pixels.to(torch.uint16) * 257), matlab_y(pixels))


def test_flat_blocks_are_left_out_and_a_flat_image_has_no_niqe(coffee, parameters):
    padded = np.full((288, 480), 128, np.float32)
    assert np.isnan(niqe(padded, parameters))
    padded[:, :384] = coffee[:288, :384]
    assert np.isfinite(niqe(padded, parameters))


def test_two_blocks_are_needed(coffee, parameters):
    with pytest.raises(ValueError, match=r"found an image of \(100, 190\), expected at least two blocks of 96 px"):
        niqe(coffee[:100, :190], parameters)


def test_a_wrong_file_of_parameters_is_told(tmp_path, window):
    with pytest.raises(FileNotFoundError, match=r"models\.niqe: found no file"):
        read_niqe_parameters(tmp_path / "no.npz")
    Image.new("RGB", (8, 8)).save(tmp_path / "image.png")
    np.savez(tmp_path / "other.npz", mean=window)
    np.savez(tmp_path / "small.npz", mu_pris_param=window, cov_pris_param=np.eye(7), gaussian_window=np.eye(7))
    for name, said in (("image.png", "is no .npz"), ("other.npz", "is no .npz"), ("small.npz", "a mean of 7")):
        with pytest.raises(ValueError, match=said):
            read_niqe_parameters(tmp_path / name)
