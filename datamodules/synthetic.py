"""The embedded default data: photographs bundled with scikit-image, and procedural images (ours)."""

import importlib.util
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from datamodules.image_io import read_image

# Held out: the three that look most like what users bring (fur, a still life, a scene with large flat areas); each
# stands alone, so nothing of them is seen in training. motorcycle_right is the same scene as motorcycle_left from
# 19 cm aside: leaving it out loses nothing, and both in one set would count one picture twice.
TRAIN_PHOTOGRAPHS = ("astronaut.png", "hubble_deep_field.jpg", "ihc.png", "motorcycle_left.png")
HELD_OUT_PHOTOGRAPHS = ("chelsea.png", "coffee.png", "rocket.jpg")
LARGE_PHOTOGRAPH = "retina.jpg"
"""The only bundled photograph of more than 1024 px per side, held out too: what the demo upscales to 4096 px."""
FLAT_CROPS = {"rocket-sky": ("rocket.jpg", 0, 336), "retina-plain": ("retina.jpg", 520, 888)}
"""The flattest 256 px crops of the held-out photographs: name -> (photograph, top, left)."""
FLAT_CROP_SIDE = 256
FLAT_KINDS = ("sky", "water", "lawn")


def bundled_path(name: str) -> Path:
    """Path of a photograph inside scikit-image's wheel; FileNotFoundError where the installation lacks it."""
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        raise FileNotFoundError(
            "scikit-image is not installed, whose photographs are the default data: run make install"
        )
    path = Path(spec.origin).parent / "data" / name
    if not path.is_file():
        raise FileNotFoundError(f"scikit-image holds no {path}: set data.train and data.val to folders of images")
    return path


def flat_crop(name: str) -> Tensor:
    """One of FLAT_CROPS, (3,256,256) float32 in [0,1]."""
    photograph, top, left = FLAT_CROPS[name]
    return read_image(bundled_path(photograph)).rgb[:, top : top + FLAT_CROP_SIDE, left : left + FLAT_CROP_SIDE]


def procedural_image(size: int, generator: torch.Generator) -> Tensor:
    """A (3,size,size) float32 image in [0,1]: dead leaves with textures, or a smooth gradient with slight noise.

    Three in four are dead leaves (Lee, Mumford, Huang, "Occlusion models for natural images", IJCV 2001): opaque
    discs and polygons, radii with density r^-3, each with a colour, a shading and one texture (1/f noise,
    band-limited noise, a bent grating). Half of these leave gradient ground free. The rest is gradient alone, like
    sky. Frequencies and angles are continuous: no period, 32 px among them, is preferred.
    """
    layout = float(_uniform(generator, 1)[0])
    image = _gradient(size, generator)
    if layout < 0.75:
        cover = 1.0 if layout < 0.375 else float(_uniform(generator, 1, 0.05, 0.6)[0])
        labels, count = _dead_leaves(size, cover, generator)
        image = np.where(labels == 0, image, _paint(labels, count, generator))
        image = _soften(image)
    noise = _normal(generator, 3, size, size) * float(_uniform(generator, 1, 0.0, 0.008)[0])
    return torch.from_numpy(np.clip(image + noise, 0.0, 1.0, dtype=np.float32))


def flat_image(size: int, generator: torch.Generator, kind: str = "sky") -> Tensor:
    """A held-out (3,size,size) flat region in [0,1]: "sky" (clouds), "water" (ripples) or "lawn" (fine grass).

    Made by other rules than `procedural_image`: low contrast and no edges, where a periodic pattern shows first.
    """
    if kind not in FLAT_KINDS:
        raise ValueError(f"unknown kind of flat image {kind!r}, expected one of {', '.join(FLAT_KINDS)}")
    top, bottom, aspect, slope, contrast = {
        "sky": ((0.36, 0.55, 0.80), (0.72, 0.82, 0.90), 1.5, 1.9, 0.025),
        "water": ((0.30, 0.45, 0.50), (0.16, 0.30, 0.38), 5.0, 1.3, 0.030),
        "lawn": ((0.36, 0.48, 0.20), (0.30, 0.42, 0.15), 0.7, 0.8, 0.045),
    }[kind]
    ramp = np.linspace(0.0, 1.0, size, dtype=np.float32)[None, :, None]
    colours = np.array([top, bottom], np.float32) + 0.05 * _normal(generator, 2, 1)
    ground = colours[0][:, None, None] * (1 - ramp) + colours[1][:, None, None] * ramp
    texture = contrast * _noise_field(size, slope, 0.0, 0.5, generator, aspect)
    tint = 1.0 + 0.15 * _normal(generator, 3)[:, None, None]
    sensor = 0.004 * _normal(generator, 3, size, size)
    return torch.from_numpy(np.clip(ground + tint * texture + sensor, 0.0, 1.0, dtype=np.float32))


def _uniform(generator: torch.Generator, count: int, low: float = 0.0, high: float = 1.0) -> np.ndarray:
    return (low + (high - low) * torch.rand(count, generator=generator)).numpy()


def _normal(generator: torch.Generator, *shape: int) -> np.ndarray:
    return torch.randn(shape, generator=generator).numpy()


def _colours(count: int, generator: torch.Generator) -> np.ndarray:
    """(count,3): spread luminance, little chroma and more of it from blue to orange than from green to magenta."""
    luma = _uniform(generator, count, 0.08, 0.92)[:, None]
    chroma = _normal(generator, count, 2) * np.array([0.13, 0.05], np.float32)
    axes = np.array([[1.0, 0.1, -1.0], [0.6, -0.6, 0.6]], np.float32)
    return np.clip(luma + chroma @ axes, 0.02, 0.98)


def _gradient(size: int, generator: torch.Generator) -> np.ndarray:
    """(3,size,size): a linear ramp between two near colours, bent by a second, weaker one."""
    first = _colours(1, generator)[0]
    second = first + 0.5 * (_colours(1, generator)[0] - first)
    angle = float(_uniform(generator, 1, 0.0, 2 * math.pi)[0])
    axis = np.linspace(-0.5, 0.5, size, dtype=np.float32)
    along = math.cos(angle) * axis[None, :] + math.sin(angle) * axis[:, None]
    across = math.cos(angle) * axis[:, None] - math.sin(angle) * axis[None, :]
    bend = float(_normal(generator, 1)[0]) * 0.5
    ramp = np.clip(0.5 + along + bend * across * across, 0.0, 1.0)
    return first[:, None, None] * (1 - ramp) + second[:, None, None] * ramp


def _dead_leaves(size: int, cover: float, generator: torch.Generator) -> tuple[np.ndarray, int]:
    """(size,size) int16 labels, 0 is free ground; and the number of leaves."""
    count = int(30 + 270 * cover)
    smallest, largest = 3.0, 0.35 * size
    # inverse transform of the density r^-3 between the two radii; a few large ones first, to cover the ground
    u = _uniform(generator, count)
    radii = 1.0 / np.sqrt(u / smallest**2 + (1 - u) / largest**2)
    big = np.arange(count) < count // 8
    radii[big] = _uniform(generator, int(big.sum()), 0.1 * size, largest)
    centres = _uniform(generator, 2 * count, -0.1 * size, 1.1 * size).reshape(count, 2)
    turns = _uniform(generator, count, 0.0, 2 * math.pi)
    corners = torch.randint(2, 7, (count,), generator=generator).numpy()  # 2 stands for a disc
    squash = _uniform(generator, count, 0.4, 1.0)
    labels = np.zeros((size, size), np.int16)
    for i in range(count):
        _stamp(labels, i + 1, centres[i], radii[i], corners[i], turns[i], squash[i])
    return labels, count


def _stamp(
    labels: np.ndarray, label: int, centre: np.ndarray, radius: float, corners: int, turn: float, squash: float
) -> None:
    """Write a label inside an ellipse, or a regular polygon of 3-6 corners, squashed and turned."""
    size = labels.shape[0]
    top, left = (max(0, int(c - radius)) for c in centre)
    bottom, right = (min(size, int(c + radius) + 2) for c in centre)
    if top >= bottom or left >= right:
        return
    y = np.arange(top, bottom, dtype=np.float32)[:, None] - centre[0]
    x = np.arange(left, right, dtype=np.float32)[None, :] - centre[1]
    u = math.cos(turn) * x + math.sin(turn) * y
    v = (math.cos(turn) * y - math.sin(turn) * x) / squash
    if corners < 3:
        inside = u * u + v * v <= radius * radius
    else:
        inside = np.ones(u.shape, bool)
        apothem = radius * math.cos(math.pi / corners)
        for k in range(corners):
            side = (2 * k + 1) * math.pi / corners
            inside &= math.cos(side) * u + math.sin(side) * v <= apothem
    labels[top:bottom, left:right][inside] = label


def _paint(labels: np.ndarray, count: int, generator: torch.Generator) -> np.ndarray:
    """(3,H,W): every label's colour, shading and texture."""
    size = labels.shape[0]
    colours = _colours(count + 1, generator).T[:, labels]
    axis = np.linspace(-1.0, 1.0, size, dtype=np.float32)
    slopes = (0.15 * _normal(generator, 2, count + 1)).astype(np.float32)
    shading = slopes[0][labels] * axis[None, :] + slopes[1][labels] * axis[:, None]
    low = float(_uniform(generator, 1, 0.02, 0.15)[0])
    fields = (
        _noise_field(size, 1.0, 0.0, 0.5, generator),
        _noise_field(size, 0.0, low, 2 * low, generator),
        _gratings(labels, count, generator),
    )
    kind = torch.randint(0, 3, (count + 1,), generator=generator).numpy()
    strength = 0.12 * _uniform(generator, count + 1) ** 2
    texture = sum(
        np.where(kind == k, strength, 0.0).astype(np.float32)[labels] * field for k, field in enumerate(fields)
    )
    return colours * (1.0 + shading) + texture


def _gratings(labels: np.ndarray, count: int, generator: torch.Generator) -> np.ndarray:
    """(H,W) of unit variance: per label a sine of 3-40 px at any angle, its phase bent so that it is not exact."""
    size = labels.shape[0]
    wavelength = 3.0 * (40.0 / 3.0) ** _uniform(generator, count + 1)
    angle = _uniform(generator, count + 1, 0.0, math.pi)
    axis = np.arange(size, dtype=np.float32)
    step_x = (2 * math.pi * np.cos(angle) / wavelength).astype(np.float32)[labels]
    step_y = (2 * math.pi * np.sin(angle) / wavelength).astype(np.float32)[labels]
    bend = 1.5 * _noise_field(size, 2.0, 0.0, 0.5, generator)
    return math.sqrt(2.0) * np.sin(step_x * axis[None, :] + step_y * axis[:, None] + bend)


def _noise_field(
    size: int, slope: float, low: float, high: float, generator: torch.Generator, aspect: float = 1.0
) -> np.ndarray:
    """(size,size) noise of unit variance: amplitude f^-slope between two frequencies in cycles per px.

    aspect > 1 stretches it along x. It is made on a larger torus and cut, so that it does not close on itself.
    """
    torus = size + size // 8
    fx = torch.fft.rfftfreq(torus)[None, :] * aspect
    fy = torch.fft.fftfreq(torus)[:, None]
    f = torch.sqrt(fx * fx + fy * fy)
    gain = torch.where((f >= low) & (f <= high) & (f > 0), f.clamp(min=1.0 / torus) ** -slope, 0.0)
    spectrum = torch.complex(*torch.randn(2, torus, torus // 2 + 1, generator=generator).unbind())
    field = torch.fft.irfft2(spectrum * gain, s=(torus, torus))[:size, :size]
    return ((field - field.mean()) / field.std().clamp(min=1e-9)).numpy()


def _soften(image: np.ndarray) -> np.ndarray:
    """A 3-tap binomial-like blur along both axes, as of a lens: drawn edges would alias."""
    for axis in (1, 2):
        ends = [(0, 0)] * 3
        ends[axis] = (1, 1)
        padded = np.pad(image, ends, mode="edge")
        length = image.shape[axis]
        taps = [np.take(padded, range(k, k + length), axis=axis) for k in range(3)]
        image = 0.2 * taps[0] + 0.6 * taps[1] + 0.2 * taps[2]
    return image
