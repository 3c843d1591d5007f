import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from datamodules.benchmarks import BenchmarkImage
from experiments.checkpoints import load_system
from experiments.measure import (
    STUDENT,
    Score,
    as_written,
    bicubic,
    measure,
    real_time_methods,
    shuffled_method,
    standard_metrics,
    student_method,
    student_methods,
)
from experiments.schema import PerceptualOptions
from experiments.tables import markdown_table, shuffle_cost, summarise
from lightning_modules.networks.rt4ksr_folded import FoldedRT4KSR
from lightning_modules.one_step_flux import OneStepFlux
from lightning_modules.real_time_cnn import RealTimeCnn

FP32 = torch.autocast("cpu", enabled=False)


def image(name: str, group: str, side: int, seed: int = 0) -> BenchmarkImage:
    hr = torch.rand(3, side, side, generator=torch.Generator().manual_seed(seed))
    return BenchmarkImage(name, group, hr[:, ::4, ::4].contiguous(), hr)


@pytest.fixture(scope="module")
def student(tiny_student_run: Path) -> OneStepFlux:
    system, _ = load_system(tiny_student_run / "checkpoints" / "last.ckpt")
    assert isinstance(system, OneStepFlux)
    return system


def chosen(*names: str) -> list[Score]:
    return [metric for metric in standard_metrics(PerceptualOptions(), 4, period=32) if metric.name in names]


def test_the_columns_of_systems_with_and_without_a_token_grid() -> None:
    fidelity = ["PSNR", "SSIM", "PSNR-Y", "SSIM-Y", "untrained-feature distance"]
    on_grid = ["periodicity", "comb 1/32", "comb 1/16", "comb 1/8"]
    metrics = {period: standard_metrics(PerceptualOptions(), 4, period) for period in (32, None)}
    assert [metric.heading for metric in metrics[32]] == [*fidelity, *on_grid, "colour"]
    assert [metric.heading for metric in metrics[None]] == [*fidelity, "colour"]


def test_psnr_of_a_known_error_and_infinite_for_hr() -> None:
    metrics = chosen("psnr_y", "psnr_rgb")
    grey = torch.full((3, 64, 64), 128 / 255)
    one = BenchmarkImage("grey", "photo", grey[:, :16, :16], grey)
    methods = {"brighter": lambda lr, hr: hr + 4 / 255, "hr": lambda lr, hr: hr}
    brighter, hr = (s.values for s in measure(methods, [one], metrics, FP32))
    # Y spans 219 of 255 steps: an error of 4 in each colour is one of 4 * 219 / 255 in Y
    assert brighter["psnr_y"] == pytest.approx(20 * math.log10(255 / (4 * 219 / 255)), abs=1e-3)
    assert brighter["psnr_rgb"] == pytest.approx(20 * math.log10(255 / 4), abs=1e-3)
    assert hr["psnr_y"] == hr["psnr_rgb"] == math.inf


def test_border_is_left_out() -> None:
    metrics = chosen("psnr_y", "psnr_rgb", "ssim_y", "ssim_rgb")

    def broken_border(lr: Tensor, hr: Tensor) -> Tensor:
        sr = torch.zeros_like(hr)
        sr[..., 4:-4, 4:-4] = hr[..., 4:-4, 4:-4]
        return sr

    (scores,) = measure({"border": broken_border}, [image("a", "photo", 32)], metrics, FP32)
    assert scores.values["psnr_y"] == scores.values["psnr_rgb"] == math.inf
    assert scores.values["ssim_y"] == pytest.approx(1)
    assert scores.values["ssim_rgb"] == pytest.approx(1)


def test_images_are_rounded_as_written_files_are() -> None:
    values = torch.tensor([-1.0, 0.4999 / 255, 0.5001 / 255, 2.0])
    torch.testing.assert_close(as_written(values) * 255, torch.tensor([0.0, 0.0, 1.0, 255.0]))


def test_small_images_have_empty_cells() -> None:
    metrics = standard_metrics(PerceptualOptions(), crop_border=4, period=32)
    rows = summarise(
        measure({"bicubic": bicubic}, [image("s", "photo", 16), image("m", "flat", 80)], metrics, FP32), metrics
    )
    small, middle = rows
    assert small.values["psnr_y"] is not None
    empty = {"ssim_y", "ssim_rgb", "perceptual", "periodicity", "comb_32", "comb_16", "comb_8"}
    assert {name for name, value in small.values.items() if value is None} == empty
    assert {name for name, value in middle.values.items() if value is None} == {"periodicity"}
    assert " - |" in markdown_table(rows, metrics)


def test_every_metric_takes_its_smallest_image() -> None:
    for metric in standard_metrics(PerceptualOptions(), crop_border=4, period=32):
        hr = torch.rand(1, 3, metric.smallest, metric.smallest)
        assert metric.score(hr, hr).shape == (1,), metric.name


def test_methods_take_any_size_and_match_the_student(student: OneStepFlux) -> None:
    lr = torch.rand(1, 3, 9, 13, generator=torch.Generator().manual_seed(0))
    hr = torch.rand(1, 3, 36, 52)
    with torch.inference_mode():
        for name, method in student_methods({STUDENT: student}).items():
            assert method(lr, hr).shape == hr.shape, name
        torch.testing.assert_close(student_method(student)(lr, hr), student.upscale(lr), atol=1e-5, rtol=0)
        # what a student does to hr's content is nothing: it sees lr alone
        assert torch.equal(student_method(student)(lr, hr), student_method(student)(lr, hr * 0))


def test_bicubic_is_pillows_at_the_same_size() -> None:
    """Pillow has the same cubic, but rounds in between and at the border leaves out what imresize mirrors."""
    levels = torch.randint(70, 186, (12, 17), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    expected = np.array(Image.fromarray(levels.numpy()).resize((51, 36), Image.Resampling.BICUBIC))
    lr = levels[None, None].expand(1, 3, -1, -1) / 255
    sr = bicubic(lr, torch.zeros(1, 3, 36, 51))
    assert sr.shape == (1, 3, 36, 51)
    found = (as_written(sr) * 255).round()[0, 1, 6:-6, 6:-6].numpy()
    assert np.abs(found - expected[6:-6, 6:-6]).max() <= 1
    assert (found != expected[6:-6, 6:-6]).mean() < 0.25


def test_a_network_is_measured_in_its_folded_form(tiny_cnn_run: Path) -> None:
    system, _ = load_system(tiny_cnn_run / "checkpoints" / "last.ckpt")
    assert isinstance(system, RealTimeCnn)
    lr, hr = torch.rand(1, 3, 11, 15, generator=torch.Generator().manual_seed(0)), torch.zeros(1, 3, 22, 30)
    with torch.inference_mode():
        trained = system.restore(lr)
        methods = real_time_methods(system)
        assert list(methods) == ["bicubic", "rt4ksr", "hr"]
        assert isinstance(system.network, FoldedRT4KSR)
        torch.testing.assert_close(methods["rt4ksr"](lr, hr), trained, atol=1e-4, rtol=0)


def test_shuffle_cost_shows_a_student_that_uses_positions(student: OneStepFlux) -> None:
    methods = {"student": student_method(student), "student, ids shuffled": shuffled_method(student, seed=0)}
    metrics = chosen("psnr_y", "perceptual")
    weight = student.transformer.proj_out.weight
    before = weight.detach().clone()
    one = [image("a", "photo", 96)]
    try:
        with torch.no_grad():
            weight.zero_()
        rows = summarise(measure(methods, one, metrics, FP32), metrics)
        assert shuffle_cost(rows)["photo"] == {"psnr_y": 0.0, "perceptual": 0.0}
        with torch.no_grad():
            weight.normal_(std=0.5, generator=torch.Generator().manual_seed(0))
        first, second = (shuffle_cost(summarise(measure(methods, one, metrics, FP32), metrics)) for _ in range(2))
        assert first["photo"]["psnr_y"] != 0
        assert first == second
    finally:
        with torch.no_grad():
            weight.copy_(before)
