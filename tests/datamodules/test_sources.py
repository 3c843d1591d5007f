import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.sources import open_source


@pytest.fixture
def source(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(5):
        Image.fromarray(rng.integers(0, 256, (40 + i, 50, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    return open_source(str(tmp_path), (), 32, "data.train", "data.crop")


def test_source_errors_name_option_and_findings(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data\.train=.*nowhere is no folder"):
        open_source(str(tmp_path / "nowhere"), (), 8, "data.train", "data.crop")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"data\.train=.* holds no .* found 1 entries \(notes\.txt\)"):
        open_source(str(tmp_path), (), 8, "data.train", "data.crop")
    Image.new("RGB", (20, 30)).save(tmp_path / "small.png")
    with pytest.raises(ValueError, match=r"all 1 images have a side below data\.crop=32"):
        open_source(str(tmp_path), (), 32, "data.train", "data.crop")
    Image.new("RGB", (40, 40)).save(tmp_path / "large.png")
    with pytest.warns(UserWarning, match=r"1 of 2 images are smaller .*small\.png"):
        kept = open_source(str(tmp_path), (), 32, "data.train", "data.crop")
    assert kept.names == ["large"]
    (tmp_path / "text.jpg").write_text("not an image")
    with pytest.raises(ValueError, match=r"text\.jpg holds text"):
        open_source(str(tmp_path), (), 32, "data.train", "data.crop")


def test_fingerprint_changes_with_the_files(source, tmp_path):
    before = source.fingerprint()
    assert before == open_source(str(tmp_path), (), 32, "data.train", "data.crop").fingerprint()
    Image.new("RGB", (50, 50)).save(tmp_path / "new.png")
    assert before != open_source(str(tmp_path), (), 32, "data.train", "data.crop").fingerprint()


def test_fingerprint_is_of_the_data_as_they_were_at_first(source, tmp_path):
    before = source.fingerprint()
    last = (tmp_path / "0.png").read_bytes()[-1]
    with (tmp_path / "0.png").open("r+b") as file:
        file.seek(-1, 2)
        file.write(bytes([last ^ 1]))
    assert source.fingerprint() == before
    changed = open_source(str(tmp_path), (), 32, "data.train", "data.crop")
    assert changed.fingerprint() != before, "of the same length, another end"


def test_cache_is_bounded_and_returns_the_same_pixels(source):
    source._images.most_bytes = 1
    fresh = source.load(0).clone()
    source.load(1)
    assert len(source._images) == 1
    assert torch.equal(source.load(0), fresh)


def test_sizes_are_those_of_the_upright_images(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 40)).save(tmp_path / "turned.jpg", exif=exif)
    source = open_source(str(tmp_path), (), 32, "data.train", "data.crop")
    assert source.sizes().tolist() == [[60, 40]]
    assert source.load(0).shape == (3, 60, 40)
