"""What a study's page shows of an image: the output of every arm and fixed row, as it is and as maps of periodicity."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from callbacks.image_panel import to_uint8
from callbacks.spectrum import autocorrelation_picture, log_spectrum
from experiments.pictures import raise_contrast
from experiments.protocol import JSON
from experiments.result_pictures import LEFT_OUT, read_pictures
from experiments.study_options import TestOptions, Trial
from experiments.thumbnails import place_of_part

COMB = "comb_32"
HR = "hr"
SMALLEST = 14
"""px per side that an autocorrelation map needs."""
SPECTRUM_SIDE = 288
"""px of a spectrum's picture: 9 px lie between the multiples of 1/32 cycles per px."""
PART = 96
"""px per side of the flat part: three token pitches."""
PART_ENLARGED = 3
PART_CONTRAST = 4
EVEN = 12 / 255
"""Standard deviation up to which a part is even enough to raise its contrast."""


@dataclass(frozen=True)
class View:
    """The output of an arm or a fixed row on an image; comb: its comb ratio at 1/32 over all of it, None if unknown."""

    name: str
    path: Path
    comb: float | None

    @property
    def label(self) -> str:
        return self.name if self.comb is None else f"{self.name}, comb 1/32: {self.comb:.2f}"

    def read(self) -> Image.Image | None:
        """The picture in RGB; None where it cannot be read."""
        try:
            with Image.open(self.path, formats=["PNG"]) as image:
                return image.convert("RGB")
        except (OSError, SyntaxError):  # Pillow's word for a damaged PNG
            return None


@dataclass(frozen=True)
class ImageViews:
    """All views of one image; those of the arms come first."""

    group: str
    image: str
    arms: Sequence[View]
    fixed: Sequence[View]

    @property
    def all(self) -> list[View]:
        return [*self.arms, *self.fixed]


def shown_trials(trials: Sequence[Trial], name: str, test: TestOptions) -> list[Trial]:
    """A measured trial of every arm that has one: of the first seed that is measured in all of them, else its first."""
    measured = [trial for trial in trials if (trial.results(name, test) / JSON).is_file()]
    seeds_of: dict[str, list[int]] = {}
    for trial in measured:
        seeds_of.setdefault(trial.arm, []).append(trial.seed)
    common = [trial.seed for trial in measured if all(trial.seed in seeds for seeds in seeds_of.values())]
    chosen = {(arm, common[0] if common else seeds[0]) for arm, seeds in seeds_of.items()}
    order = list(seeds_of)
    return sorted((t for t in measured if (t.arm, t.seed) in chosen), key=lambda trial: order.index(trial.arm))


def views_of(shown: Sequence[Trial], name: str, test: TestOptions, method: str) -> list[ImageViews]:
    """The images of a test set with the views of the trials shown; fixed rows are those of the first trial."""
    outputs = {trial.arm: _outputs(trial.results(name, test)) for trial in shown}
    images = dict.fromkeys((group, image) for found in outputs.values() for group, image, _ in found)
    first = next((found for found in outputs.values() if found), {})
    return [_views(place, outputs, first, method) for place in images]


_Outputs = Mapping[tuple[str, str, str], View]
"""Of one evaluation, by group, image and method."""


def _views(place: tuple[str, str], outputs: Mapping[str, _Outputs], first: _Outputs, method: str) -> ImageViews:
    arms = [replace(found[*place, method], name=arm) for arm, found in outputs.items() if (*place, method) in found]
    fixed = [view for key, view in first.items() if key[:2] == place and key[2] != method]
    return ImageViews(*place, arms, fixed)


def _outputs(folder: Path) -> _Outputs:
    pictures = read_pictures(folder)
    try:
        rows: list[Mapping[str, Any]] = json.loads((folder / JSON).read_text())["images"]
        return {
            key: View(row["method"], pictures.get(key, Path()), row["values"].get(COMB))
            for row in rows
            if row["method"] not in LEFT_OUT and (key := (row["group"], row["image"], row["method"]))
        }
    except (OSError, ValueError, KeyError, TypeError):
        return {}  # damaged, as the report says


def flat_part(image: Image.Image) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a part of little detail."""
    top, left = place_of_part(np.asarray(image), (PART, PART), "flat")
    return left, top, min(left + PART, image.width), min(top + PART, image.height)


def is_even(image: Image.Image) -> bool:
    """Whether an image has little but its mean colour."""
    return bool((np.asarray(image, dtype=np.float32) / 255).std(axis=(0, 1)).max() <= EVEN)


def enlarged(image: Image.Image) -> Image.Image:
    """Every pixel as a square."""
    size = (image.width * PART_ENLARGED, image.height * PART_ENLARGED)
    return image.resize(size, Image.Resampling.NEAREST)


def with_contrast(image: Image.Image) -> Image.Image:
    """Deviations from the mean colour raised, about mid-grey."""
    return _drawn(lambda pixels: raise_contrast(pixels[0], PART_CONTRAST)[None], image)


def spectrum(image: Image.Image) -> Image.Image:
    """The log-magnitude spectrum, grey; each pixel is the largest of its bins, so that no peak is averaged away."""
    return _drawn(lambda pixels: F.adaptive_max_pool2d(log_spectrum(pixels), SPECTRUM_SIDE), image).convert("L")


def autocorrelation_map(image: Image.Image) -> Image.Image:
    """The autocorrelation by lag."""
    return _drawn(autocorrelation_picture, image)


def _drawn(draw: Callable[[Tensor], Tensor], image: Image.Image) -> Image.Image:
    pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None].float() / 255
    return Image.fromarray(to_uint8(draw(pixels)[0]).permute(1, 2, 0).contiguous().numpy())
