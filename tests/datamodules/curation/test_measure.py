import os

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.curation.measure import lacks, measure_image
from datamodules.curation.scan import scan
from datamodules.curation.settings import Curation, JudgeModel, PreliminaryBounds, QualityBounds
from datamodules.curation.verdicts import decide
from datamodules.image_io import write_image

SMALL = Curation(PreliminaryBounds(short_side=512, pixels=512 * 512))
ANY_PRELIMINARY = PreliminaryBounds(short_side=1, pixels=1, chroma=0, high_band=-1e9, flat_share=1)
ANY_QUALITY = QualityBounds(sharpness=0, noise=1, blockiness=1e9, dark_share=1, bright_share=1, saturated_share=1)


def measured(path, settings=SMALL, known=None):
    return measure_image(path, path.name, settings, known or {}, False)


def reasons(folder, settings=SMALL):
    files, _ = scan(folder, folder / "out")
    rows = decide([measured(file.path, settings) for file in files], settings)
    return {row["path"]: row["reason"] for row in rows}


@pytest.fixture
def photographs(shared):
    """Parts of 1024 x 768 px of two real photographs."""
    names = ("pop-os__sean-afnan-244576.jpg", "buddiesofbudgie__the-spices-of-life.jpg")
    images = [Image.open(shared / "photos4k" / name).convert("RGB") for name in names]
    return [image.crop((1400, 1000, 2424, 1768)) for image in images]


def test_each_unfit_file_is_dropped_with_its_reason(tmp_path, write_unfit, photographs):
    expected = write_unfit(tmp_path, *photographs)
    assert reasons(tmp_path) == expected
    assert len([reason for reason in expected.values() if reason]) > 12


def test_a_broken_file_is_a_row_with_what_could_be_had(tmp_path, write_broken):
    generator = np.random.default_rng(0)
    image = Image.fromarray(generator.integers(0, 256, (96, 128, 3), dtype=np.uint8))
    expected = write_broken(tmp_path, image)
    rows = {name: measured(tmp_path / name) for name in expected}
    assert {row["path"]: row["reason"] for row in decide(rows.values(), SMALL)} == expected
    assert (rows["truncated.jpg"]["width"], rows["bomb.png"]["width"]) == (128, 60_000)
    assert rows["empty.jpg"]["bytes"] == 0
    assert "fingerprint" not in rows["dangling.jpg"]
    assert not [row for row in rows.values() if str(tmp_path) in str(row)]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_a_row(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "a.png").chmod(0)
    assert measured(tmp_path / "a.png")["failure_detail"] == "the file could not be read: Permission denied"


def test_an_image_of_one_pixel_is_measured(tmp_path):
    for mode in ("RGB", "L", "1", "LA", "RGBA", "P", "CMYK"):
        suffix = "jpg" if mode == "CMYK" else "png"
        Image.new(mode, (1, 1)).save(tmp_path / f"{mode}.{suffix}")
        row = measured(tmp_path / f"{mode}.{suffix}", Curation(PreliminaryBounds(0, 0, 0, chroma=0)))
        assert "failure" not in row, row


def test_the_row_tells_size_and_form_of_the_file_upright(tmp_path):
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (600, 700, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=exif)
    row = measured(tmp_path / "a.jpg")
    assert (row["width"], row["height"], row["format"], row["mode"], row["bit_depth"]) == (600, 700, "JPEG", "RGB", 8)
    assert row["bytes"] == (tmp_path / "a.jpg").stat().st_size
    write_image(tmp_path / "b.png", torch.from_numpy(pixels).permute(2, 0, 1) / 255, bit_depth=16)
    assert measured(tmp_path / "b.png")["bit_depth"] == 16


def test_later_stages_are_measured_where_the_earlier_ones_pass(tmp_path):
    generator = np.random.default_rng(0)
    Image.fromarray(generator.integers(0, 256, (600, 700, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    strict = Curation(PreliminaryBounds(short_side=601))
    row = measured(tmp_path / "a.png", strict)
    assert "chroma" in row
    assert "sharpness" not in row
    assert not lacks(row, strict)
    assert lacks(row, SMALL)
    assert measured(tmp_path / "a.png", SMALL, row) == measured(tmp_path / "a.png", SMALL)
    assert not lacks(measured(tmp_path / "a.png", SMALL, row), SMALL)


@pytest.mark.parametrize(
    "error", [RuntimeError("sizes of\ntensors"), KeyError("token"), ValueError("odd"), MemoryError()]
)
def test_a_judge_that_fails_over_an_image_leaves_its_scores(tmp_path, monkeypatch, error):
    def fail(pixels, model):
        raise error

    monkeypatch.setattr("datamodules.curation.measure.judge", fail)
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    settings = Curation(ANY_PRELIMINARY, ANY_QUALITY, judge=JudgeModel(endpoint="http://localhost:1/v1"))
    known = measured(tmp_path / "a.png", settings)
    row = measure_image(tmp_path / "a.png", "a.png", settings, known, True)
    judged = {name: row.pop(name) for name in list(row) if name.startswith("judge_")}
    assert row == known
    assert judged["judge_keep"] is None
    assert judged["judge_error"].startswith(f"not judged: {type(error).__name__}: ")
    assert "\n" not in judged["judge_error"]
    assert decide([row | judged], settings)[0]["verdict"] == "keep"
    (tmp_path / "a.png").unlink()  # as over a network that fails for a moment
    assert measure_image(tmp_path / "a.png", "a.png", settings, known, True)["judge_error"].startswith("not judged: ")
    assert "fingerprint" not in measure_image(tmp_path / "a.png", "a.png", settings, known, False)


def test_a_judge_that_cannot_be_loaded_is_an_error_of_the_run(tmp_path, monkeypatch):
    def fail(folder):
        raise RuntimeError("out of memory")

    monkeypatch.setattr("datamodules.curation.measure.load_judge", fail)
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    settings = Curation(ANY_PRELIMINARY, ANY_QUALITY, judge=JudgeModel(folder="here"))
    with pytest.raises(ValueError, match=r"judge.folder=here: the model cannot be loaded: RuntimeError: out of memory"):
        measure_image(tmp_path / "a.png", "a.png", settings, {}, True)


def test_scores_of_another_file_are_not_taken_over(tmp_path):
    Image.new("RGB", (600, 700)).save(tmp_path / "a.png")
    row = measured(tmp_path / "a.png", SMALL, {"fingerprint": "00", "hash": "00", "sharpness": 9.0})
    assert row == measured(tmp_path / "a.png", SMALL)
