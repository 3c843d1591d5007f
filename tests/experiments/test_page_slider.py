"""The slider in a real browser, in which its divide is moved and another picture chosen."""

import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from experiments.page import Page

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
MOVE = """
var range = document.querySelector("input"), right = document.querySelectorAll("select")[1];
range.value = 25;
range.dispatchEvent(new Event("input"));
right.value = "blue";
right.dispatchEvent(new Event("change"));
"""


def seen(path, folder, *flags):
    """How many pixels of each colour a window of 600 x 600 px shows."""
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("no program chromium on the PATH, which this test looks at the page with")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=600,600", *flags]
    command = [program, *flags, f"--user-data-dir={folder / 'profile'}", f"--screenshot={folder / 'seen.png'}"]
    subprocess.run([*command, path.as_uri()], capture_output=True, timeout=120, check=True)
    with Image.open(folder / "seen.png") as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    return {name: int((pixels == colour).all(axis=1).sum()) for name, colour in COLOURS.items()}


def test_the_divide_and_the_choice_decide_what_is_seen(tmp_path):
    page = Page(tmp_path / "page", "title")
    pictures = {name: page.lossless(Image.new("RGB", (200, 80), colour), name) for name, colour in COLOURS.items()}
    for _ in range(2):
        page.slider(pictures, "red", "green")
    path = page.write()
    area = 400 * 160  # twice enlarged; a few percent are the divide's and the names'
    path.write_text(path.read_text().replace("</body>", f"<script>{MOVE}</script></body>"))
    found = seen(path, tmp_path)
    assert found["red"] == pytest.approx(area * (0.25 + 0.5), rel=0.1)
    assert found["blue"] == pytest.approx(area * (0.75 + 0.5), rel=0.1), "the choice holds for both sliders"
    assert found["green"] == 0


def test_without_scripts_all_pictures_are_shown(tmp_path):
    page = Page(tmp_path / "page", "title")
    pictures = {name: page.lossless(Image.new("RGB", (200, 80), colour), name) for name, colour in COLOURS.items()}
    page.slider(pictures, "red", "green")
    path = page.write()
    path.write_text(path.read_text().replace("<script>", '<script type="text/plain">'))
    found = seen(path, tmp_path)
    assert min(found.values()) > 10_000
    assert max(found.values()) == pytest.approx(min(found.values()), rel=0.05)
