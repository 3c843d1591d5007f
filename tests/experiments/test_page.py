"""The page module: what a browser would make of its pages."""

import re
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from experiments.histogram import BINS, LEFT, RIGHT, Histogram, ticks, value_range
from experiments.page import Bar, Card, Page, Picture

VOID = {"meta", "img", "br", "line", "path"}
PLAIN = "plain words"
NASTY = "<script>alert('1')</script> & \"x\" \u202egpj.exe"


class Reader(HTMLParser):
    """Elements as (tag, attributes), text, links; fails on a tag that is closed wrongly."""

    def __init__(self, html):
        super().__init__()
        self.open, self.elements, self.text = [], [], []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def of(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def noise(seed, size=(60, 40)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))


def full_page(folder, seed=0, text=PLAIN):
    page = Page(folder, f"title {text}")
    page.facts({text: text})
    page.links({text: "there"})
    page.heading(text, "there")
    page.paragraph(text)
    page.items([text, "b"])
    page.table([text, "b"], [[text, "1"], ["c", "2"]])
    page.table([text, "b"], [[text, "1"]], numbers=True)
    page.shares([Bar("kept", 3, "kept"), Bar(text, 1)])
    page.bars([Bar(text, 3, link="there"), Bar("none", 0)], 6)
    page.histograms([Histogram(text, np.arange(9.0), np.arange(3.0), 4.0, text)])
    small = page.picture(noise(seed), text)
    page.cards([Card([small, page.picture(noise(seed + 1), text, 92, text, True)], text, [text, ""])])
    page.cards([Card([Picture("", 0, 0, text)], text)])
    exact = page.lossless(noise(seed + 2), text, text)
    page.strip([exact])
    page.figures([exact])
    page.slider({text: exact, "b": small}, text, "b")
    return page.write()


def files_of(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_page_is_well_formed_and_needs_nothing_from_outside(tmp_path):
    path = full_page(tmp_path / "report")
    html = path.read_text(encoding="utf-8")
    page = Reader(html)
    for image in page.of("img"):
        with Image.open(path.parent / image["src"]) as picture:
            assert picture.size == (int(image["width"]), int(image["height"]))
        assert image["alt"]
    anchors = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    assert {link["href"] for link in page.of("a")} <= {f"#{anchor}" for anchor in anchors}
    assert "//" not in html
    assert page.of("script") == [{}]
    assert not page.of("link")


def test_text_is_shown_and_never_markup(tmp_path):
    plain, nasty = (
        Reader(full_page(tmp_path / name, text=text).read_text()) for name, text in (("plain", PLAIN), ("nasty", NASTY))
    )
    assert [tag for tag, _ in nasty.elements] == [tag for tag, _ in plain.elements]
    assert nasty.text == [text.replace(PLAIN, NASTY) for text in plain.text]
    assert all(image["alt"] == NASTY for image in nasty.of("img"))


def test_equal_pages_are_equal_bytes_and_another_replaces_pictures(tmp_path):
    full_page(tmp_path / "a")
    full_page(tmp_path / "b")
    first = files_of(tmp_path / "a")
    assert first == files_of(tmp_path / "b")
    (tmp_path / "a" / "pictures" / "mine.jpg").write_bytes(b"not ours")
    (tmp_path / "a" / "pictures" / ".0123456789abcdef.jpg.1.part").write_bytes(b"left by a kill")
    (tmp_path / "a" / "pictures" / "0123456789abcdef.png").write_bytes(b"of an older page")
    (tmp_path / "a" / ".index.html.1.part.0a1b").write_bytes(b"left by a kill")
    full_page(tmp_path / "a", seed=1)
    second = files_of(tmp_path / "a")
    assert second.pop("pictures/mine.jpg") == b"not ours"
    shown = set(re.findall(r'src="([^"]+)"', second["index.html"].decode()))
    assert set(second) == {"index.html", *shown}
    assert len(shown) == 3


def test_a_page_that_is_not_finished_leaves_the_old_one_whole(tmp_path):
    full_page(tmp_path)
    before = files_of(tmp_path)
    page = Page(tmp_path, "another")
    page.picture(noise(7), "new")
    after = files_of(tmp_path)
    assert {name: after[name] for name in before} == before


def test_the_same_picture_is_one_file(tmp_path):
    page = Page(tmp_path, "title")
    first, second = page.picture(noise(0), "a"), page.picture(noise(0), "b")
    assert first.link == second.link
    assert len(files_of(tmp_path)) == 1


def test_lossless_pictures_and_copied_files_keep_every_value(tmp_path):
    page = Page(tmp_path / "page", "title")
    image = noise(0)
    image.save(tmp_path / "a.png")
    for picture in (page.lossless(image, "a"), page.file(tmp_path / "a.png", "a")):
        with Image.open(tmp_path / "page" / picture.link) as kept:
            np.testing.assert_array_equal(np.asarray(kept), np.asarray(image))
        assert (picture.width, picture.height) == image.size


def test_a_file_that_is_no_picture_becomes_a_placeholder(tmp_path):
    (tmp_path / "text.png").write_text("text")
    noise(0).save(tmp_path / "photo.jpg")
    noise(0).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:3000])
    page = Page(tmp_path / "page", "title")
    for name in ("text.png", "photo.jpg", "cut.png", "missing.png", ""):
        assert page.file(tmp_path / name, "the file") == Picture("", 0, 0, "the file")
    assert not (tmp_path / "page").exists()


def test_a_page_without_a_slider_has_no_script(tmp_path):
    page = Page(tmp_path, "title")
    page.strip([page.lossless(noise(0), "a")])
    assert "script" not in page.html()


def test_threads_may_write_the_same_picture_at_the_same_time(tmp_path):
    page = Page(tmp_path, "title")
    images = [noise(0, (8, 8))] * 200
    with ThreadPoolExecutor(8) as pool:
        links = {picture.link for picture in pool.map(page.picture, images, ["a"] * 200)}
    assert {f"pictures/{path.name}" for path in (tmp_path / "pictures").iterdir()} == links
    assert len(links) == 1


def test_bars_and_shares_have_the_lengths_of_their_counts(tmp_path):
    page = Page(tmp_path, "title")
    page.bars([Bar("a", 3), Bar("b", 6)], 12)
    page.shares([Bar("a", 3, "kept"), Bar("b", 1), Bar("none", 0)])
    reader = Reader(page.html())
    styles = [attributes["style"] for _, attributes in reader.elements if "style" in attributes]
    assert styles == ["width:25.00%", "width:50.00%", "flex-grow:3", "flex-grow:1"]
    assert "(75.0%)" in "".join(reader.text)


def bars_of(html, kind):
    """Number of the bin and height of each bar of a kind."""
    (path,) = re.findall(rf'<path class="{kind}" d="([^"]*)"', html)
    bars = re.findall(r"M([\d.]+) [\d.]+v(-?[\d.]+)", path)
    return {round((float(x) - LEFT) / (RIGHT - LEFT) * BINS): float(height) for x, height in bars}


def test_a_histogram_has_the_bars_that_numpy_counts():
    random = np.random.default_rng(0)
    kept, dropped = random.uniform(0, 1, 4000), random.uniform(0.4, 1, 900)
    html = str(Histogram("score", kept, dropped, 0.5).html())
    low, high, inside = value_range(np.concatenate([kept, dropped]), 0.5)
    assert inside
    for values, kind, sign in ((kept, "kept", -1), (dropped, "dropped", 1)):
        counts = np.histogram(np.clip(values, low, high), BINS, (low, high))[0]
        heights = bars_of(html, kind)
        assert list(heights) == np.flatnonzero(counts).tolist()
        scale = max(abs(height) for height in heights.values()) / counts.max()
        shown = [heights[place] for place in heights]
        expected = [max(scale * count, 1.5) * sign for count in counts if count]
        np.testing.assert_allclose(shown, expected, atol=0.12)
    (x,) = re.findall(r'class="bound" x1="([\d.]+)"', html)
    assert float(x) == pytest.approx(LEFT + (RIGHT - LEFT) * (0.5 - low) / (high - low), abs=0.06)
    assert "4,000 kept above" in html
    assert "900 dropped below" in html


@pytest.mark.parametrize("bound", [None, -5.0, 0.0, 3.0, 1e9])
@pytest.mark.parametrize(
    "values",
    [[], [np.nan, np.inf], [3.0], [0.0, 0.0], [1e-12, 2e-12], [-4.0, 1e6], list(range(1000))],
    ids=["none", "not finite", "one", "equal", "tiny", "wide", "many"],
)
def test_a_histogram_of_any_values_stays_in_its_frame(values, bound):
    html = str(Histogram("score", np.array(values, float), np.array(values[:1], float), bound).html())
    Reader(html)
    places = [float(x) for x in re.findall(r'(?:x|x1|M)="?(-?[\d.]+)', html)]
    assert all(0 <= x <= 380 for x in places)
    assert "nan" not in html


def test_the_axis_holds_a_bound_that_values_cross_and_leaves_out_one_far_away():
    values = np.concatenate([np.full(5000, 0.01), np.linspace(0, 0.02, 5000), [0.8]])
    low, high, inside = value_range(values, 0.5)
    assert inside
    assert low <= 0.5 <= high <= 0.8
    assert value_range(values[:-1], 0.5) == (pytest.approx(0, abs=4e-4), pytest.approx(0.02, abs=4e-4), False)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.003, 0.004), (-7, 1e6), (1e-9, 2e-9), (2160, 4000)])
def test_ticks_are_few_and_inside(low, high):
    found = ticks(low, high)
    assert 3 <= len(found) <= 6
    assert found == sorted(found)
    assert low - 1e-9 * abs(low) <= found[0]
    assert found[-1] <= high * (1 + 1e-9)
