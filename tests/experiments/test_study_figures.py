"""Figures of a study: they open, have the width, and fixed rows do not squeeze the arms."""

import math

import numpy as np
import pytest
from PIL import Image

from experiments import study_options, study_report
from experiments.paired import compare
from experiments.study_figures import BLUE, VERMILION, axis_range, save_figures
from experiments.study_report import Report
from experiments.study_scores import ArmScore, Group


def score(values, baseline=None, ratio=False, verdict=""):
    scores = {seed: {"a": value} for seed, value in enumerate(values)}
    against = baseline and compare(scores, {seed: {"a": value} for seed, value in enumerate(baseline)}, ratio)
    return ArmScore(dict(enumerate(values)), float(np.mean(values)), against, verdict)


def bundled(group, base="base", metrics=None):
    test = study_options.TestOptions()
    return study_report.TestReport("bundled", test, base, metrics or {"psnr_y": "higher", "comb_32": "lower"}, [group])


def group_of(**arms):
    fixed = {"bicubic": {"psnr_y": 27.0, "comb_32": 0.5}, "codec(hr)": {"psnr_y": 46.0, "comb_32": 0.6}}
    return Group("photo", 3, fixed, arms)


BASE = {"psnr_y": score([24.0, 24.2, 24.4]), "comb_32": score([2.0, 2.2, 2.4])}
WORSE = {
    "psnr_y": score([23.0, 23.2, 23.5], [24.0, 24.2, 24.4], verdict="worse"),
    "comb_32": score([1.0, 1.1, 1.3], [2.0, 2.2, 2.4], ratio=True, verdict="better"),
}


def colours(path):
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    return {f"#{value:06x}" for value in np.unique(pixels @ [65536, 256, 1])}


def test_a_figure_per_metric_of_900_px_in_colours_that_can_be_told_apart(tmp_path):
    paths = save_figures(Report("", [bundled(group_of(base=BASE, new=WORSE))]), tmp_path / "figures")
    assert [path.name for path in paths] == ["bundled-psnr_y.png", "bundled-comb_32.png"]
    for path in paths:
        with Image.open(path) as image:
            assert image.size[0] == 900
            assert 250 < image.size[1] < 600
    assert VERMILION in colours(paths[0])
    assert VERMILION not in colours(paths[1])
    assert BLUE in colours(paths[1])


def test_equal_content_gives_equal_bytes_and_more_arms_more_height(tmp_path):
    few = Report("", [bundled(group_of(base=BASE, new=WORSE))])
    many = Report("", [bundled(group_of(base=BASE, **{f"arm {n}": WORSE for n in range(8)}))])
    (one, *_), (two, *_) = save_figures(few, tmp_path / "1"), save_figures(few, tmp_path / "2")
    assert one.read_bytes() == two.read_bytes()
    (tall, *_) = save_figures(many, tmp_path / "3")
    assert Image.open(tall).size[1] > Image.open(one).size[1] + 300


@pytest.mark.parametrize(
    "group",
    [
        group_of(base={"psnr_y": score([24.0])}),
        group_of(base={"psnr_y": score([24.0])}, new={"psnr_y": score([24.0], [24.0])}),
        group_of(base=BASE, new={"comb_32": score([1e-6, 1.0, 1e6], [2.0, 2.2, 2.4], ratio=True)}),
        Group("photo", 1, {}, {"trial000": {"psnr_y": score([-1.0])}, "a" * 40: {"psnr_y": score([1.0])}}),
    ],
    ids=["one value", "equal values", "hardly any overlap", "no fixed rows"],
)
def test_unusual_values_are_drawn(group, tmp_path):
    for path in save_figures(Report("", [bundled(group)]), tmp_path):
        with Image.open(path) as image:
            assert image.size[0] == 900


def test_nothing_to_draw_gives_no_file(tmp_path):
    assert save_figures(Report("", [bundled(group_of(), metrics={"ssim_y": "higher"})]), tmp_path) == []


def test_fixed_rows_far_away_are_left_off_the_axis():
    (low, high), drawn = axis_range((24.0, 25.0), {"bicubic": 26.0, "codec(hr)": 46.0, "hr": math.inf})
    assert drawn == ["bicubic"]
    assert low < 24.0
    assert 26.0 < high < 26.5
    (low, high), drawn = axis_range((2.0, 8.0), {"hr": 0.5, "bicubic": 0.01}, log=True)
    assert drawn == ["hr"]
    assert 0.3 < low < 0.5
