import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from datamodules.benchmarks import BenchmarkImage
from experiments.checkpoints import load_system
from experiments.measure import (
    Score,
    as_written,
    codec_round_trip,
    markdown_table,
    measure,
    reference_methods,
    shuffle_cost,
    shuffled_method,
    standard_metrics,
    student_method,
    summarise,
)
from experiments.schema import PerceptualOptions
from lightning_modules.one_step_flux import OneStepFlux
from lightning_modules.super_resolution import resize_up

FP32 = torch.autocast("cpu", enabled=False)


def image(name: str, group: str, side: int, seed: int = 0) -> BenchmarkImage:
    hr = torch.rand(3, side, side, generator=torch.Generator().manual_seed(seed))
    return BenchmarkImage(name, group, hr[:, ::4, ::4].contiguous(), hr)


@pytest.fixture(scope="module")
def student(tiny_student_run: Path) -> OneStepFlux:
    system, _ = load_system(tiny_student_run / "checkpoints" / "last.ckpt")
    assert isinstance(system, OneStepFlux)
    return system


def test_psnr_of_a_known_error_and_infinite_for_hr() -> None:
    metrics = standard_metrics(PerceptualOptions(), crop_border=4, period=32)[:2]
    grey = torch.full((3, 64, 64), 128 / 255)
    one = BenchmarkImage("grey", "photo", grey[:, :16, :16], grey)
    methods = {"brighter": lambda lr, hr: hr + 4 / 255, "hr": lambda lr, hr: hr}
    brighter, hr = (s.values for s in measure(methods, [one], metrics, FP32))
    # Y spans 219 of 255 steps: an error of 4 in each colour is one of 4 * 219 / 255 in Y
    assert brighter["psnr_y"] == pytest.approx(20 * math.log10(255 / (4 * 219 / 255)), abs=1e-3)
    assert hr["psnr_y"] == math.inf


def test_border_is_left_out() -> None:
    metrics = standard_metrics(PerceptualOptions(), crop_border=4, period=32)[:1]

    def broken_border(lr: Tensor, hr: Tensor) -> Tensor:
        sr = torch.zeros_like(hr)
        sr[..., 4:-4, 4:-4] = hr[..., 4:-4, 4:-4]
        return sr

    (scores,) = measure({"border": broken_border}, [image("a", "photo", 32)], metrics, FP32)
    assert scores.values["psnr_y"] == math.inf


def test_images_are_rounded_as_written_files_are() -> None:
    values = torch.tensor([-1.0, 0.4999 / 255, 0.5001 / 255, 2.0])
    torch.testing.assert_close(as_written(values) * 255, torch.tensor([0.0, 0.0, 1.0, 255.0]))


def test_small_images_have_empty_cells() -> None:
    metrics = standard_metrics(PerceptualOptions(), crop_border=4, period=32)
    methods = {"bicubic": lambda lr, hr: resize_up(lr, (hr.shape[-2], hr.shape[-1]))}
    rows = summarise(measure(methods, [image("s", "photo", 16), image("m", "flat", 80)], metrics, FP32), metrics)
    small, middle = rows
    assert small.values["psnr_y"] is not None
    empty = {"ssim_y", "perceptual", "periodicity", "comb_32", "comb_16", "comb_8"}
    assert {name for name, value in small.values.items() if value is None} == empty
    assert {name for name, value in middle.values.items() if value is None} == {"periodicity"}
    assert " - |" in markdown_table(rows, metrics)


def test_every_metric_takes_its_smallest_image() -> None:
    for metric in standard_metrics(PerceptualOptions(), crop_border=4, period=32):
        hr = torch.rand(1, 3, metric.smallest, metric.smallest)
        assert metric.score(hr, hr).shape == (1,), metric.name


def test_mean_and_median_over_a_group() -> None:
    level = [0.0, 0.1, 0.8]
    images = [BenchmarkImage(str(v), "photo", torch.full((3, 2, 2), v), torch.full((3, 8, 8), v)) for v in level]
    metrics = [
        Score("mean", "mean", lambda sr, hr: sr.mean(dim=(1, 2, 3))),
        Score("median", "median", lambda sr, hr: sr.mean(dim=(1, 2, 3)), median=True),
    ]
    (row,) = summarise(measure({"hr": lambda lr, hr: hr}, images, metrics, FP32), metrics)
    assert row.images == 3
    assert row.values["mean"] == pytest.approx(sum(round(v * 255) for v in level) / 3 / 255)
    assert row.values["median"] == pytest.approx(26 / 255)


def test_rows_keep_groups_together() -> None:
    metrics = standard_metrics(PerceptualOptions(), crop_border=4, period=32)[:1]
    methods = {"a": lambda lr, hr: hr, "b": lambda lr, hr: hr}
    images = [image("1", "photo", 32), image("2", "flat", 32), image("3", "photo", 32)]
    rows = summarise(measure(methods, images, metrics, FP32), metrics)
    assert [(r.group, r.method, r.images) for r in rows] == [
        ("photo", "a", 2),
        ("photo", "b", 2),
        ("flat", "a", 1),
        ("flat", "b", 1),
    ]


def test_methods_take_any_size_and_match_the_student(student: OneStepFlux) -> None:
    lr = torch.rand(1, 3, 9, 13, generator=torch.Generator().manual_seed(0))
    hr = torch.rand(1, 3, 36, 52)
    with torch.inference_mode():
        for name, method in reference_methods(codec_round_trip(student.codec)).items():
            assert method(lr, hr).shape == hr.shape, name
        torch.testing.assert_close(student_method(student)(lr, hr), student.upscale(lr), atol=1e-5, rtol=0)
        # what a student does to hr's content is nothing: it sees lr alone
        assert torch.equal(student_method(student)(lr, hr), student_method(student)(lr, hr * 0))


def test_shuffle_cost_shows_a_student_that_uses_positions(student: OneStepFlux) -> None:
    methods = {"student": student_method(student), "student, ids shuffled": shuffled_method(student, seed=0)}
    metrics = standard_metrics(PerceptualOptions(), crop_border=4, period=32)[:3]
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
