"""What `make demo` shows: the table, the comparison picture, and a photograph at 4096 x 4096."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from datamodules.benchmarks import BenchmarkImage, open_benchmark
from datamodules.degradations.pipeline import PRESETS, DegradationPipeline
from datamodules.image_io import read_image, write_image
from datamodules.synthetic import LARGE_PHOTOGRAPH, bundled_path
from experiments.checkpoints import load_system
from experiments.checks import pitch_of
from experiments.inference import autocast, machine_name, pick_device
from experiments.measure import (
    SHUFFLED,
    STUDENT,
    Method,
    measure,
    standard_metrics,
    student_methods,
)
from experiments.pictures import crop_rows, sheet
from experiments.schema import Experiment
from experiments.tables import markdown_table, shuffle_cost, summarise
from lightning_modules.one_step_flux import OneStepFlux

STUDENT_L_AP = "student + L_AP"
SHOWN = {"chelsea": 1.0, "coffee": 1.0, "rocket-sky": 4.0, "lawn": 4.0}
"""Test images on the comparison picture, and how far their contrast is raised; 1 shows them as they are."""
SHEET_CROP = 192
LARGE_SIDE = 1024


class DemoReport:
    """The trained students of the demo beside their references, on the embedded test images.

    checkpoints: of the students STUDENT and STUDENT_L_AP. The test images and their degradation do not depend on the
    seed of the training.
    """

    def __init__(self, checkpoints: Mapping[str, Path]) -> None:
        self.checkpoints = checkpoints
        loaded = {name: load_system(path) for name, path in checkpoints.items()}
        self.options: Experiment = loaded[STUDENT][1]
        self.device = pick_device(self.options)
        self.precision = autocast(self.options, self.device)
        self.students = {
            name: system.to(self.device) for name, (system, _) in loaded.items() if isinstance(system, OneStepFlux)
        }
        data = self.options.data
        degrade = DegradationPipeline(PRESETS[data.degradation], data.scale)
        self.images = list(open_benchmark("bundled", data.scale, degrade))

    def methods(self) -> dict[str, Method]:
        """Bicubic, the codec's round trips, the students, the first one with shuffled ids, and hr."""
        return student_methods(self.students)

    def table(self) -> str:
        """The figures of every method on photographs and on flat images, and what shuffled positions cost."""
        metrics = standard_metrics(self.options.perceptual, self.options.data.scale, pitch_of(self.options))
        scores = measure(self.methods(), self.images, metrics, self.precision, self.device)
        rows = summarise(scores, metrics)
        groups = {image.group: [i.name for i in self.images if i.group == image.group] for image in self.images}
        lines = [f"{group}: {', '.join(names)}" for group, names in groups.items()]
        lines += [machine_name(self.device), "", markdown_table(rows, metrics), ""]
        lines += [
            f"Id-shuffle cost of the student, {group}: {cost['psnr_y']:+.3f} dB PSNR-Y, "
            f"{cost['perceptual']:+.4f} perceptual distance (0: it ignores position)."
            for group, cost in shuffle_cost(rows, STUDENT, SHUFFLED).items()
        ]
        return "\n".join(lines) + "\n"

    def comparison(self) -> Image.Image:
        """A crop of each image in SHOWN by every method, of flat ones with spectrum and autocorrelation map."""
        methods = {name: method for name, method in self.methods().items() if name != SHUFFLED}
        rows: dict[str, Sequence[Tensor]] = {}
        for image in self.images:
            if image.name in SHOWN:
                crops = {name: self._crop(method, image) for name, method in methods.items()}
                rows |= crop_rows(crops, image.name, SHOWN[image.name])
        return sheet(rows, list(methods))

    def _crop(self, method: Method, image: BenchmarkImage) -> Tensor:
        lr, hr = image.lr[None].to(self.device), image.hr[None].to(self.device)
        with torch.inference_mode(), self.precision:
            sr = method(lr, hr)[0].float().cpu()
        top, left = ((side - SHEET_CROP) // 2 for side in sr.shape[-2:])
        return sr[:, top : top + SHEET_CROP, left : left + SHEET_CROP]


def upscale_large_photograph(folder: Path, checkpoint: Path) -> Path:
    """Upscale the centre of the one large bundled photograph to 4096 x 4096 by the command that a user would type."""
    small, large = folder / "large_1024.png", folder / "large_4096.png"
    pixels = read_image(bundled_path(LARGE_PHOTOGRAPH)).rgb
    top, left = ((side - LARGE_SIDE) // 2 for side in pixels.shape[-2:])
    write_image(small, pixels[:, top : top + LARGE_SIDE, left : left + LARGE_SIDE])
    subprocess.run([sys.executable, "-m", "experiments.upscale", str(checkpoint), str(small), str(large)], check=True)
    return large
