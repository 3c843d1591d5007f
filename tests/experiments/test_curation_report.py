"""The report of a curation, from a table and a folder of images to what its reader sees."""

import ast
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.curation import measure, verdicts
from datamodules.curation.table import write_table
from experiments.curation_report import LISTED, PART, SHOWN, read_bounds, write_report
from experiments.curation_words import REASONS


def photograph(path, seed=0, size=(480, 320)):
    """A smooth random picture with a noisy part, written by its suffix."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (4, 6, 3), dtype=np.uint8)
    pixels = np.array(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC))
    pixels[:100, :100] = random.integers(0, 256, (100, 100, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def row(path, reason="", detail="", stage=1, **columns):
    verdict = "drop" if reason else "keep"
    file = {"path": path, "fingerprint": "00", "bytes": 2_500_000, "width": 480, "height": 320, "format": "JPEG"}
    decided = {"stage": stage if reason else 2, "verdict": verdict, "reason": reason, "detail": detail}
    return {**file, "mode": "RGB", "bit_depth": 8, "hash": "ff", **decided, **columns}


class Cards(HTMLParser):
    """The text and the pictures of each card, by the card's title; and the text of the whole page."""

    def __init__(self, html):
        super().__init__()
        self.cards, self.text, self._path = {}, [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        if tag == "figure":
            self._pictures, self._lines, self._title = [], [], ""
        if tag == "img":
            self._pictures.append(dict(attributes)["src"])
        else:
            self._path.append(tag)

    def handle_endtag(self, tag):
        self._path.pop()
        if tag == "figure":
            self.cards[self._title] = (self._pictures, self._lines)

    def handle_data(self, data):
        if "style" not in self._path:
            self.text.append(data)
        if self._path[-2:] == ["figcaption", "b"]:
            self._title = data
        elif "figure" in self._path:
            self._lines.append(data)


@pytest.fixture
def report(tmp_path):
    """Writes rows as a table and the report on them; gives its cards, the whole text, and the HTML."""

    def made(rows, bounds=None):
        write_table(rows, tmp_path / "out" / "curation.parquet")
        path = write_report(tmp_path / "out" / "curation.parquet", tmp_path / "raw", tmp_path / "out/report", bounds)
        html = path.read_text(encoding="utf-8")
        page = Cards(html)
        return page.cards, " ".join(page.text), html

    (tmp_path / "out").mkdir()
    return made


def test_kept_and_dropped_images_are_shown_with_what_decided(report, tmp_path):
    for name in ("a.jpg", "b.png", "deep/er.webp"):
        photograph(tmp_path / "raw" / name)
    cards, text, html = report(
        [
            row("a.jpg", sharpness=50.0),
            row("b.png", "short_side", "short side 320, least 2160 (preliminary.short_side)"),
            row("deep/er.webp", "dark", "dark_share 0.7, most 0.5 (quality.dark_share)", 2, sharpness=40.0),
        ]
    )
    assert cards["a.jpg"][1] == ["480 x 320, 2.5 MB"]
    assert cards["b.png"][1][1] == "short side 320, least 2160 (preliminary.short_side)"
    assert cards["deep/er.webp"][1][1].startswith("dark_share 0.7")
    for name in ("a.jpg", "b.png", "deep/er.webp"):
        (link,) = cards[name][0]
        assert Image.open(tmp_path / "out" / "report" / link).size == (320, 213)
    assert "Stage 1, preliminary: 1 dropped" in text
    assert "Stage 2, degradation and aesthetics: 1 dropped" in text
    assert "dropped in stage 3" not in text
    assert html.index('id="kept"') < html.index('id="dropped-short_side"') < html.index('id="dropped-dark"')


def test_names_and_messages_are_no_markup(report, tmp_path):
    name = "<script>alert(1)<!--.jpg"
    photograph(tmp_path / "raw" / name)
    cards, text, html = report([row(name), row("<b>.png", "unreadable", "<i>holds text</i>")])
    assert len(cards[name][0]) == 1
    assert "<i>holds text</i>" in text
    assert not re.search(r"<(script|b>\.png|i>holds)", html)


def test_many_images_are_a_bounded_sample_ordered_by_their_distance_from_the_bound(report):
    values = np.random.default_rng(0).permutation(100) / 10
    rows = [row(f"{i:03}.jpg", "dark", f"dark_share {v}", 2, dark_share=v) for i, v in enumerate(values)]
    cards, text, _ = report([*rows, *(row(f"u{i:03}.jpg", "unreadable", "it holds text") for i in range(300))])
    shown = [float(lines[-1].split()[1]) for name, (_, lines) in cards.items() if name[0] in "0123456789"]
    assert len(shown) == SHOWN
    assert shown == sorted(shown)
    assert (shown[0], shown[-1]) == (0.0, 9.9)
    assert f"{SHOWN} of 100 shown" in text
    assert f"{LISTED} of 300 shown" in text
    assert text.count("it holds text") == LISTED


def test_what_a_thumbnail_hides_is_shown_at_full_size(report, tmp_path):
    pixels = np.full((660, 1000, 3), 128, np.uint8)
    pixels[:, :320] = np.random.default_rng(0).integers(30, 220, (660, 320, 3))  # three of nine parts have detail
    (tmp_path / "raw").mkdir()
    detailed = {"blurred.png": True, "noisy.png": False, "blocky.png": False, "upscaled.png": True}
    for name in detailed:
        Image.fromarray(pixels).save(tmp_path / "raw" / name)
    cards, _, html = report([row(name, name.removesuffix(".png")) for name in detailed])
    for name, noisy in detailed.items():
        _, link = cards[name][0]
        part = np.asarray(Image.open(tmp_path / "out" / "report" / link), float)
        assert part.shape[:2] == PART
        assert (part.std() > 40) == noisy
    assert html.count('class="full"') == 4


def test_a_near_duplicate_stands_beside_the_one_it_is_like(report, tmp_path):
    for seed, name in enumerate(["the best one.jpg", "best one.jpg", "c.jpg", "d.jpg"]):
        photograph(tmp_path / "raw" / name, seed)
    cards, _, _ = report(
        [
            row("the best one.jpg"),
            row("best one.jpg", "dark", "", 2),
            row("c.jpg", "near_duplicate", "like the best one.jpg: 4 of 64 bits of the hash differ"),
            row("d.jpg", "near_duplicate", "like one that is not in the table"),
        ]
    )
    pictures, lines = cards["c.jpg"]
    assert pictures[1:] == cards["the best one.jpg"][0]
    assert lines[:2] == ["dropped", "kept: the best one.jpg"]
    assert len(cards["d.jpg"][0]) == 1


@pytest.mark.parametrize("reason", ["unreadable", "too_many_pixels", "crashed", "out_of_memory", "name"])
def test_what_stopped_the_measurement_is_not_opened_again(report, tmp_path, reason):
    photograph(tmp_path / "raw" / "a.jpg")
    cards, text, html = report([row("a.jpg", reason, "what the decoder said", width=None, height=None)])
    assert not cards
    assert "what the decoder said" in text
    assert "<img" not in html


def test_images_that_went_away_or_broke_get_a_placeholder(report, tmp_path):
    photograph(tmp_path / "raw" / "cut.jpg")
    data = (tmp_path / "raw" / "cut.jpg").read_bytes()
    (tmp_path / "raw" / "cut.jpg").write_bytes(data[:3000])
    (tmp_path / "raw" / "text.png").write_bytes(b"text")
    (tmp_path / "raw" / "folder.png").mkdir()
    names = ("cut.jpg", "gone.jpg", "text.png", "folder.png")
    cards, text, _ = report([*(row(name) for name in names), row("noise.jpg", "noisy", "", 2)])
    assert all(not cards[name][0] for name in (*names, "noise.jpg"))
    assert text.count("cannot be read any more") == 5


def files_of(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_equal_tables_give_equal_bytes_and_another_verdict_replaces_the_pictures(report, tmp_path):
    for seed in range(6):
        photograph(tmp_path / "raw" / f"{seed}.jpg", seed)
    rows = [row(f"{i}.jpg", "noisy" if i > 3 else "", "noise 0.1", 2, noise=i / 10) for i in range(6)]
    report(rows)
    first = files_of(tmp_path / "out" / "report")
    report(rows)
    assert files_of(tmp_path / "out" / "report") == first
    report([row(f"{i}.jpg") for i in range(3)])
    assert len(files_of(tmp_path / "out" / "report")) == 1 + 3


def test_bounds_are_lines_in_the_histograms(report, tmp_path):
    rows = [row(f"{i}.jpg", "" if i > 3 else "blurred", "", 2, sharpness=float(i), judge_sharp=i % 5) for i in range(9)]
    (tmp_path / "out" / "options.yaml").write_text(
        "raw: x\npreliminary: {chroma: 0.1}\nquality:\n  sharpness: 3.5\n  pyiqa: {musiq: 50}\nworkers: 0\n"
    )
    _, text, html = report(rows)
    assert "bound 3.5" in text
    assert html.count('class="bound"') == 1
    assert "5 kept above the axis, 4 dropped below" in text
    assert "judge_sharp" in text
    assert "chroma" not in text  # no image has this score
    assert "bound 7" in report(rows, {"sharpness": 7.0})[1]
    assert "bound" not in report(rows, {})[2].split('id="scores"')[1].replace("outermost", "")
    assert read_bounds(tmp_path / "out" / "options.yaml") == {"chroma": 0.1, "sharpness": 3.5, "pyiqa_musiq": 50.0}
    assert read_bounds(tmp_path / "nothing.yaml") == {}


def test_images_that_were_not_judged_are_listed(report):
    unjudged = {"judge_keep": None, "judge_reason": None, "judge_error": "no answer in 60 s"}
    judged = {"judge_keep": True, "judge_reason": "fine", "judge_error": ""}
    cards, text, _ = report(
        [
            row("a.jpg", **unjudged) | {"detail": "no answer in 60 s"},
            row("b.jpg", **judged),
            row("c.jpg", "judge", "sharp 2, least 3 (judge.least_score): soft all over", 3, **judged),
        ]
    )
    assert "Not judged: 1" in text
    assert cards["a.jpg"][1][-1] == "no answer in 60 s"
    assert cards["c.jpg"][1][-1].endswith("soft all over")


def reasons_in(module):
    """The short codes that a module's source gives as reasons."""
    place = {"Failure": 0, "Bound": 0, "_failed": 1}
    for node in ast.walk(ast.parse(Path(module.__file__).read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in place:
            code = node.args[place[node.func.id]]
            if isinstance(code, ast.Constant):
                yield code.value


def test_every_reason_has_a_title_and_a_meaning():
    found = {*reasons_in(verdicts), *reasons_in(measure)}
    assert {"short_side", "palette", "exact_duplicate", "judge", "unreadable", "crashed", "name"} <= found
    assert found == set(REASONS)


def test_a_reason_without_a_name_of_its_own_is_shown_too(report):
    cards, text, _ = report([row("a.jpg", "pyiqa_musiq", "pyiqa.musiq 31, least 50 (quality.pyiqa.musiq)", 2)])
    assert "Pyiqa musiq: 1 dropped" in text
    assert cards["a.jpg"][1][-1].startswith("pyiqa.musiq 31")


def test_an_empty_table_and_none_at_all(report, tmp_path):
    assert "None." in report([])[1]
    with pytest.raises(ValueError, match="make curate"):
        write_report(tmp_path / "curation.parquet", tmp_path, tmp_path / "report")


def test_the_page_of_many_thousands_is_small(report, tmp_path):
    random = np.random.default_rng(0)
    reasons = np.array(["", "dark", "noisy", "near_duplicate", "unreadable"])[random.integers(0, 5, 20_000)]
    rows = [row(f"folder/{i:06}.jpg", r, "like 0.jpg", 1 + i % 3, noise=i / 1e5) for i, r in enumerate(reasons)]
    _, text, html = report(rows)
    assert "20,000" in text
    assert len(html) < 200_000
