import math

import pytest
import torch

from datamodules.benchmarks import BenchmarkImage
from experiments.measure import Score, measure
from experiments.tables import Row, markdown_table, shuffle_cost, summarise

FP32 = torch.autocast("cpu", enabled=False)


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
    metrics = [Score("mean", "mean", lambda sr, hr: sr.mean(dim=(1, 2, 3)))]
    methods = {"a": lambda lr, hr: hr, "b": lambda lr, hr: hr}
    grey = torch.full((3, 8, 8), 0.5)
    images = [BenchmarkImage(*named, grey, grey) for named in (("1", "photo"), ("2", "flat"), ("3", "photo"))]
    rows = summarise(measure(methods, images, metrics, FP32), metrics)
    assert [(r.group, r.method, r.images) for r in rows] == [
        ("photo", "a", 2),
        ("photo", "b", 2),
        ("flat", "a", 1),
        ("flat", "b", 1),
    ]


def test_a_table_per_group_with_aligned_columns() -> None:
    metrics = [Score("psnr_y", "PSNR-Y", lambda sr, hr: sr, digits=2), Score("comb", "comb", lambda sr, hr: sr)]
    rows = [
        Row("photo", "bicubic", 2, {"psnr_y": 28.126, "comb": None}),
        Row("photo", "hr", 2, {"psnr_y": math.inf, "comb": 0.5}),
        Row("flat", "hr", 1, {"psnr_y": math.inf, "comb": 1.0}),
    ]
    assert markdown_table(rows, metrics).splitlines() == [
        "| photo (2) | PSNR-Y |  comb |",
        "|:----------|-------:|------:|",
        "| bicubic   |  28.13 |     - |",
        "| hr        |    inf | 0.500 |",
        "",
        "| flat (1) | PSNR-Y |  comb |",
        "|:---------|-------:|------:|",
        "| hr       |    inf | 1.000 |",
    ]


def test_shuffle_cost_is_lost_psnr_and_gained_distance() -> None:
    values = {"student": (30.0, 0.25), "student, ids shuffled": (29.5, 0.5)}
    rows = [Row("photo", name, 1, {"psnr_y": psnr, "perceptual": far}) for name, (psnr, far) in values.items()]
    assert shuffle_cost(rows) == {"photo": {"psnr_y": 0.5, "perceptual": 0.25}}
    assert shuffle_cost(rows[:1]) == {}
