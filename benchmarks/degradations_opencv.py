"""The degradation chain on one image with OpenCV and NumPy, for comparison in speed only.

It applies the parameters that `datamodules.degradations` draws, with OpenCV's own functions on float32 (H, W, 3) images
in BGR. Its random fields come from other generators, and INTER_AREA enlarges in another way than torch.
"""

from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import numpy as np

from datamodules.degradations.blur import separate
from datamodules.degradations.parameters import Kernel, Noise, SampleParameters
from datamodules.degradations.pipeline import Operations, stages_of

# As Any: mypy must say the same with the extra and without it.
cv2: Any = import_module("cv2")

Image = np.ndarray[Any, np.dtype[np.float32]]
_LUMA_BGR = np.array([[0.114, 0.587, 0.2989]], np.float32)


def use_threads(count: int) -> None:
    """Let OpenCV use so many threads."""
    cv2.setNumThreads(count)


def opencv_stages(
    parameters: SampleParameters, lr_size: tuple[int, int]
) -> Iterator[tuple[str, Callable[[Image], Image]]]:
    """The steps of `datamodules.degradations.pipeline.stages`, each from (H, W, 3) to (H', W', 3)."""
    return stages_of(_OPENCV, parameters, lr_size)


def blur(image: Image, kernel: Kernel) -> Image:
    """Two passes where the kernel allows it; filter2D itself turns to a DFT for large kernels."""
    weights = kernel.tensor()
    factors = separate(weights)
    if factors:
        down, across = factors
        return cv2.sepFilter2D(image, -1, across.numpy(), down.numpy(), borderType=cv2.BORDER_REFLECT_101)
    return cv2.filter2D(image, -1, weights.numpy(), borderType=cv2.BORDER_REFLECT_101)


def size_of(image: Image) -> tuple[int, int]:
    """Rows, columns."""
    return image.shape[0], image.shape[1]


def resize(image: Image, size: tuple[int, int], filter_name: str) -> Image:
    """Resize to rows, columns."""
    if image.shape[:2] == size:
        return image
    filters = {"area": cv2.INTER_AREA, "bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}
    return cv2.resize(image, size[::-1], interpolation=filters[filter_name])


def add_noise(image: Image, noise: Noise) -> Image:
    """Gaussian noise by OpenCV, Poisson by NumPy: OpenCV has none."""
    field = _gaussian(image, noise) if noise.gaussian else _poisson(image, noise)
    if noise.grey:
        field = cv2.merge([field, field, field])
    field += image
    return np.clip(field, 0, 1, out=field)


def _gaussian(image: Image, noise: Noise) -> Image:
    cv2.setRNGSeed(noise.seed % 2**31)
    field = np.empty(image.shape[:2] if noise.grey else image.shape, np.float32)
    # As one channel: for three, randn takes three deviations.
    cv2.randn(field.reshape(len(field), -1), 0, noise.strength / 255)
    return field


def _poisson(image: Image, noise: Noise) -> Image:
    levels = cv2.transform(image, _LUMA_BGR) if noise.grey else image
    levels = cv2.convertScaleAbs(levels, alpha=255)
    peak = 2 ** int(np.count_nonzero(np.bincount(levels.ravel(), minlength=256)) - 1).bit_length()
    signal = levels.astype(np.float32) / 255
    counts = np.random.default_rng(noise.seed).poisson(signal * peak).astype(np.float32)
    return (counts / peak - signal) * np.float32(noise.strength)


def jpeg(image: Image, quality: int) -> Image:
    """Compress and decompress, 4:2:0."""
    _, code = cv2.imencode(".jpg", to_8_bits(image), [cv2.IMWRITE_JPEG_QUALITY, quality])
    return cv2.imdecode(code, cv2.IMREAD_COLOR).astype(np.float32) / 255


def to_8_bits(image: Image) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Whole grey levels, rounded and clamped."""
    return cv2.convertScaleAbs(np.maximum(image, 0), alpha=255)


_OPENCV = Operations(size_of, blur, resize, add_noise, jpeg)
