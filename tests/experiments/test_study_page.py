"""The page of a study, from folders of results to what its reader sees."""

import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from callbacks.spectrum import autocorrelation_picture
from experiments.study_options import StudyOptions, TestOptions, arm_trials
from experiments.study_page import MOST_ARMS, MOST_IMAGES, write_page
from experiments.study_report import Report, TestReport
from experiments.study_scores import ArmScore, Group
from experiments.study_views import (
    PART,
    SPECTRUM_SIDE,
    autocorrelation_map,
    enlarged,
    flat_part,
    shown_trials,
    spectrum,
)

NASTY = "<b>&'\""
FIXED = ("bicubic", "codec(hr)", "hr")
TEST = TestOptions()


def study(arms=("base", NASTY), seeds=(0, 1)):
    return StudyOptions(
        base="op4ksr/mini_lora",
        overrides=["trainer.steps=3"],
        arms={arm: [f"seed={number}"] for number, arm in enumerate(arms)},
        seeds=list(seeds),
        tests={"whole": TEST},
        method="student",
        metrics={"psnr_y": "higher", "comb_32": "lower"},
        look_at=["Whether <i> is escaped."],
    )


def picture(seed, side=128):
    return Image.fromarray(np.random.default_rng(seed).integers(96, 104, (side, side, 3), dtype=np.uint8))


def evaluated(trial, images=("sky", "a/b"), comb=True, side=128):
    """Results of a trial as `make evaluate ARGS=--pictures` leaves them; pictures of a trial are of its own seed."""
    folder = trial.results("whole", TEST) / "pictures"
    folder.mkdir(parents=True)
    rows, listed = [], []
    for number, image in enumerate(images):
        for method in (*FIXED, "student", "student, ids shuffled"):
            values = {"psnr_y": 30.0, **({"comb_32": 1.5 + number + trial.seed} if comb else {})}
            rows.append({"group": "flat", "image": image, "method": method, "values": values})
            if "shuffled" not in method:
                file = f"{len(listed)}.png"
                seed = trial.seed + 10 * len(trial.arm) if method == "student" else 1000
                picture(100 * seed + len(listed), side).save(folder / file)
                listed.append({"group": "flat", "image": image, "method": method, "file": file})
    (folder / "pictures.json").write_text(json.dumps(listed))
    (folder.parent / "results.json").write_text(json.dumps({"images": rows}))


def report_of(options):
    score = {metric: ArmScore({0: 1.25, 1: 1.75}, 1.5) for metric in options.metrics}
    group = Group("flat", 2, {"bicubic": {"psnr_y": 27.125}}, dict.fromkeys(options.arms, score))
    test = TestReport("whole", TEST, "base", options.metrics, [group], "A machine, 2026. The protocol.")
    return Report("", [replace(test, notes=["A note."])])


@pytest.fixture
def folder(tmp_path):
    """A study with all of its evaluations."""
    for trial in arm_trials(study(), tmp_path / "study"):
        evaluated(trial)
    return tmp_path / "study"


@pytest.fixture
def small(tmp_path):
    """The same with one image."""
    for trial in arm_trials(study(), tmp_path / "study"):
        evaluated(trial, images=("sky",))
    return tmp_path / "study"


def written(folder, options=None, figures=()):
    options = options or study()
    path = write_page("artifact", options, arm_trials(options, folder), report_of(options), figures, folder)
    assert path == folder / "report" / "index.html"
    return Reader(path)


class Reader(HTMLParser):
    """Headings, text, the pictures of each slider by name, and of each strip by the label below."""

    def __init__(self, path):
        super().__init__()
        self.path, self.headings, self.text, self.sliders, self.strips, self.figures = path, [], [], [], [], []
        self._open = []
        self.feed(path.read_text(encoding="utf-8"))
        assert not self._open

    def handle_starttag(self, tag, pairs):
        attributes = dict(pairs)
        kind = attributes.get("class", "")
        if kind == "slider":
            self.sliders.append({"left": attributes["data-left"], "right": attributes["data-right"], "shown": {}})
        elif kind == "strip" and "slider" not in [kind for _, kind in self._open]:
            self.strips.append({})
        if "data-name" in attributes:
            self.sliders[-1]["shown"][attributes["data-name"]] = None
        if tag == "img":
            kinds = [kind for _, kind in self._open]
            if "slider" in kinds:
                *_, name = self.sliders[-1]["shown"]
                self.sliders[-1]["shown"][name] = attributes
            elif "strip" in kinds:
                self._strip = attributes
            else:
                self.figures.append(attributes)
        elif tag != "meta":
            self._open.append((tag, kind))
            if tag in ("h1", "h2", "h3", "h4"):
                self.headings.append("")

    def handle_endtag(self, tag):
        assert self._open.pop()[0] == tag

    def handle_data(self, data):
        tags = [tag for tag, _ in self._open]
        if not tags or tags[-1] in ("style", "script"):
            return
        self.text.append(data)
        if tags[-1] in ("h1", "h2", "h3", "h4"):
            self.headings[-1] += data
        if tags[-1] == "small":
            self.strips[-1][data] = self._strip

    def pixels(self, attributes):
        with Image.open(self.path.parent / attributes["src"]) as image:
            assert image.size == (int(attributes["width"]), int(attributes["height"]))
            return np.asarray(image)


def test_the_page_has_all_sections(folder, tmp_path):
    picture(0).save(tmp_path / "whole-psnr_y.png")
    picture(1).save(tmp_path / "other-psnr_y.png")
    page = written(folder, figures=[tmp_path / "whole-psnr_y.png", tmp_path / "other-psnr_y.png"])
    views = ["Flat part", "Contrast raised", "Spectrum", "Autocorrelation"]
    assert page.headings == [
        *["Study artifact", "What to look at", "Arms", "How to read it", "Test set whole", "Outputs on whole"],
        *["sky (flat)", *views, "a/b (flat)", *views],
    ]
    text = " ".join(page.text)
    for said in ("Whether <i> is escaped.", "seed=1", "27.125", "1.500", "A note.", "The protocol.", "of seed 0"):
        assert said in text
    assert [np.array_equal(page.pixels(figure), np.asarray(picture(0))) for figure in page.figures] == [True]
    html = page.path.read_text()
    assert "//" not in html
    assert html.count("<script>") == 1


def test_a_slider_shows_every_arm_and_fixed_row_bit_by_bit(folder):
    page = written(folder)
    names = ["base", NASTY, *FIXED]
    assert [list(slider["shown"]) for slider in page.sliders] == [names, names]
    assert all((slider["left"], slider["right"]) == ("base", NASTY) for slider in page.sliders)
    trials = {trial.arm: trial for trial in arm_trials(study(), folder) if trial.seed == 0}
    for number, slider in enumerate(page.sliders):
        for place, name in ((3, "base"), (3, NASTY), *enumerate(FIXED)):
            source = trials.get(name, trials["base"]).results("whole", TEST) / "pictures"
            with Image.open(source / f"{place + 4 * number}.png") as image:
                np.testing.assert_array_equal(page.pixels(slider["shown"][name]), np.asarray(image))


def test_names_are_escaped(small):
    html = written(small).path.read_text()
    assert NASTY not in html
    assert "&lt;b&gt;&amp;" in html


def test_strips_show_the_maps_of_every_output_with_its_comb_ratio(folder):
    page = written(folder)
    assert len(page.strips) == 8
    for number, strip in enumerate(page.strips):
        ratio = "1.50" if number < 4 else "2.50"
        assert list(strip) == [f"{name}, comb 1/32: {ratio}" for name in ("base", NASTY, *FIXED)]
    base = Image.fromarray(page.pixels(page.sliders[0]["shown"]["base"]))
    flat, _, power, lags = (page.pixels(strip["base, comb 1/32: 1.50"]) for strip in page.strips[:4])
    hr = Image.fromarray(page.pixels(page.sliders[0]["shown"]["hr"]))
    np.testing.assert_array_equal(flat, np.asarray(enlarged(base.crop(flat_part(hr)))))
    np.testing.assert_array_equal(power, np.asarray(spectrum(base)))
    np.testing.assert_array_equal(lags, np.asarray(autocorrelation_map(base)))


def test_a_system_without_tokens_has_no_comb_ratios(tmp_path):
    for trial in arm_trials(study(), tmp_path):
        evaluated(trial, images=("sky",), comb=False)
    page = written(tmp_path)
    assert list(page.strips[2]) == ["base", NASTY, *FIXED]
    assert "comb 1/32: " not in " ".join(page.text)


def files_of(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_equal_content_gives_equal_bytes(small):
    written(small)
    first = files_of(small / "report")
    written(small)
    assert files_of(small / "report") == first
    shutil.rmtree(small / "report")
    written(small)
    assert files_of(small / "report") == first
    shown = set(re.findall(r'src="([^"]+)"', first["index.html"].decode()))
    assert set(first) == {"index.html", *shown}


@pytest.mark.parametrize("damage", ["gone", "cut", "all gone", "no list"])
def test_a_missing_picture_leaves_a_placeholder(small, damage):
    results = arm_trials(study(), small)[1].results("whole", TEST) / "pictures"
    if damage == "gone":
        (results / "3.png").unlink()
    elif damage == "cut":
        (results / "3.png").write_bytes((results / "3.png").read_bytes()[:2000])
    elif damage == "no list":
        (results / "pictures.json").unlink()
    else:
        shutil.rmtree(results)
    page = written(small)
    assert page.sliders[0]["shown"][NASTY] is None
    assert page.sliders[0]["shown"]["base"] is not None
    assert f"sky by {NASTY}" in page.text
    assert len(page.strips[0]) == 4


def test_a_study_without_results_has_a_page(tmp_path):
    page = written(tmp_path)
    assert "No run is measured on it yet." in page.text
    broken = arm_trials(study(), tmp_path)[0].results("whole", TEST)
    broken.mkdir(parents=True)
    (broken / "results.json").write_text("[]")
    assert "No run is measured on it yet." in written(tmp_path).text


def test_tiny_pictures_have_no_maps(tmp_path):
    for trial in arm_trials(study(), tmp_path):
        evaluated(trial, side=12)
    page = written(tmp_path)
    assert len(page.sliders) == 2
    assert page.strips == []


def test_the_seed_shown_is_the_first_that_all_arms_have(tmp_path):
    options = study(("base", "other", "none"), (0, 1, 2))
    trials = arm_trials(options, tmp_path)
    for trial in trials:
        if (trial.arm, trial.seed) in {("base", 0), ("base", 2), ("other", 2), ("other", 1)}:
            evaluated(trial, images=("sky",), side=12)
    assert [(t.arm, t.seed) for t in shown_trials(trials, "whole", TEST)] == [("base", 2), ("other", 2)]
    (second,) = (trial for trial in trials if (trial.arm, trial.seed) == ("base", 2))
    shutil.rmtree(second.results("whole", TEST))
    assert [(t.arm, t.seed) for t in shown_trials(trials, "whole", TEST)] == [("base", 0), ("other", 1)]
    assert "base, seed 0; other, seed 1" in " ".join(written(tmp_path, options).text)


def test_many_arms_and_images_are_a_choice_and_it_says_so(tmp_path):
    options = study([f"arm{number}" for number in range(MOST_ARMS + 2)], [0])
    for trial in arm_trials(options, tmp_path):
        evaluated(trial, images=[str(number) for number in range(MOST_IMAGES + 1)], side=8)
    page = written(tmp_path, options)
    assert len(page.sliders) <= MOST_IMAGES
    assert len(page.sliders[0]["shown"]) == MOST_ARMS + len(FIXED)
    text = " ".join(page.text)
    assert f"The first {MOST_ARMS} of {MOST_ARMS + 2} arms." in text
    assert f"{len(page.sliders)} of {MOST_IMAGES + 1} images" in text


def grid_on(side, pitch, strength):
    """A mid-grey image with lines `pitch` px apart."""
    pixels = np.full((side, side, 3), 128.0)
    pixels[::pitch] += strength
    return Image.fromarray(pixels.astype(np.uint8))


@pytest.mark.parametrize("side", [256, 288, 512])
def test_no_line_of_a_spectrum_is_lost_by_its_size(side):
    found = np.asarray(spectrum(grid_on(side, 32, 4)))
    assert found.shape == (SPECTRUM_SIDE, SPECTRUM_SIDE)
    column = found[:, SPECTRUM_SIDE // 2].astype(int)
    peaks = [SPECTRUM_SIDE * k / 32 for k in range(1, 32)]
    near = [column[round(peak) - 1 : round(peak) + 2].max() for peak in peaks]
    between = [column[round(peak + SPECTRUM_SIDE / 64)] for peak in peaks[:-1]]
    assert min(near) > max(between) + 40


def test_maps_are_those_of_the_panel():
    image = picture(0, 200)
    pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None] / 255
    expected = autocorrelation_picture(pixels)[0].permute(1, 2, 0).mul(255).round()
    np.testing.assert_array_equal(np.asarray(autocorrelation_map(image)), expected.numpy())


def test_the_flat_part_is_where_nothing_is():
    pixels = np.random.default_rng(0).integers(50, 200, (3 * PART, 4 * PART, 3), dtype=np.uint8)
    pixels[PART : 2 * PART, 2 * PART : 3 * PART] = 100
    pixels[:PART, 3 * PART :] = 120
    left, top, right, bottom = flat_part(Image.fromarray(pixels))
    assert (left, top) in {(2 * PART, PART), (3 * PART, 0)}
    assert (right - left, bottom - top) == (PART, PART)
    assert flat_part(Image.fromarray(pixels[:50, :70])) == (0, 0, 70, 50)
    assert enlarged(Image.fromarray(pixels[:2, :3])).size == (9, 6)
