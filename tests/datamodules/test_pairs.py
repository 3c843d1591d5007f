import pytest
import torch

from datamodules.image_io import read_image, write_image
from datamodules.pairs import ValidationPairs, find_pairs, has_pairs, read_pair


def layout(root, files):
    for name, (width, height) in files.items():
        write_image(root / name, torch.rand(3, height, width, generator=torch.Generator().manual_seed(width)))


@pytest.mark.parametrize(
    ("hr", "lr"),
    [
        ("HR/a.png", "LR/a.png"),
        ("HR/a.png", "LR_bicubic/X4/ax4.png"),
        ("GT/a.png", "LRx4/a_x4.png"),
        ("DIV2K_valid_HR/0801.png", "DIV2K_valid_LR_bicubic/X4/0801x4.png"),
        ("HR/ax4.png", "LR/ax4.png"),
        ("original/a.png", "LRbicx4/a.png"),
        ("GTmod12/a.png", "LRbicx4/a.png"),
        ("test_HR/a.png", "test_LR/a.png"),
        ("HR/000/a.png", "LR_bicubic/X4/000/ax4.png"),
        ("HR/Canon_001_LR4.png", "LR/Canon_001_LR4.png"),
        ("Canon_001_HR.png", "Canon_001_LR4.png"),
        ("img_001_SRF_4_HR.png", "img_001_SRF_4_LR.png"),
    ],
)
def test_pairs_are_found_by_the_usual_names(tmp_path, hr, lr):
    layout(tmp_path, {hr: (16, 8), lr: (4, 2)})
    assert has_pairs(tmp_path)
    (pair,) = find_pairs(tmp_path, 4)
    assert (pair.hr, pair.lr) == (tmp_path / hr, tmp_path / lr)


def test_the_folder_of_the_scale_is_chosen(tmp_path):
    layout(tmp_path, {"HR/a.png": (16, 8), "LR_bicubic/X4/ax4.png": (4, 2), "LR_bicubic/X2/ax2.png": (8, 4)})
    assert find_pairs(tmp_path, 2)[0].lr.name == "ax2.png"
    with pytest.raises(ValueError, match="one LR folder for scale 3"):
        find_pairs(tmp_path, 3)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"HR/a.png": (16, 8)}, r"DATA=.*found HR; found 1 entries \(HR/\)"),
        ({"LR/a.png": (16, 8)}, r"DATA=.*expected one HR folder"),
        ({"a.png": (16, 8)}, r"DATA=.*found neither; found 1 entries"),
        ({"HR/a.png": (16, 8), "HR/ax4.png": (16, 8), "LR/a.png": (4, 2)}, r"several images in HR/ are named a"),
        ({"a_HR.png": (16, 8), "a_LR2.png": (8, 4)}, r"files _HR and _LR4 hold 1 and 0 images .* without partner: a"),
        ({"HR/a.png": (16, 8), "LR_a/X4/a.png": (4, 2), "LR_b/X4/a.png": (4, 2)}, r"found HR, LR_a/X4, LR_b/X4"),
        ({"HR/a.png": (16, 8), "LR/b.png": (4, 2)}, r"do not pair by name; without partner: a, b"),
    ],
)
def test_missing_ambiguous_and_single_files_are_said(tmp_path, files, message):
    layout(tmp_path, files)
    with pytest.raises(ValueError, match=message):
        find_pairs(tmp_path, 4)


def test_the_mod_12_images_are_preferred_to_the_originals_and_these_are_cut(tmp_path):
    layout(tmp_path, {"original/a.png": (35, 26), "LRbicx2/a.png": (12, 12), "LRbicx3/a.png": (8, 8)})
    (pair,) = find_pairs(tmp_path, 2)
    lr, hr = read_pair(pair, 2)
    assert lr.shape == (3, 12, 12)
    assert torch.equal(hr, read_image(tmp_path / "original" / "a.png").rgb[:, :24, :24])
    layout(tmp_path, {"GTmod12/a.png": (24, 24)})
    (pair,) = find_pairs(tmp_path, 2)
    assert pair.hr == tmp_path / "GTmod12" / "a.png"


def test_frames_of_the_same_name_in_several_clips_stay_apart(tmp_path):
    names = [f"{clip}/0001.png" for clip in ("city", "walk")]
    layout(tmp_path, {f"HR/{name}": (16, 8) for name in names} | {f"LR/{name}": (4, 2) for name in names})
    pairs = find_pairs(tmp_path, 4)
    assert [pair.name for pair in pairs] == ["city/0001", "walk/0001"]
    assert pairs[1].lr == tmp_path / "LR" / "walk" / "0001.png"


def test_pairs_of_another_scale_are_said(tmp_path):
    layout(tmp_path, {"HR/a.png": (18, 8), "LR/a.png": (4, 2)})
    (pair,) = find_pairs(tmp_path, 2)
    with pytest.raises(ValueError, match=r"pair a: LR 4 x 2 and HR 18 x 8 do not differ by the scale 2"):
        read_pair(pair, 2)


def test_what_is_no_folder_of_pairs(tmp_path):
    layout(tmp_path, {"HR/a.png": (16, 8), "b_HR.png": (16, 8)})
    assert not has_pairs(tmp_path)
    assert not has_pairs("bundled")
    assert not has_pairs(tmp_path / "nowhere")


def test_validation_pairs_are_the_files_whole(tmp_path):
    layout(tmp_path, {"HR/a.png": (17, 8), "LR/a.png": (4, 2), "HR/b.png": (12, 20), "LR/b.png": (3, 5)})
    pairs = ValidationPairs(str(tmp_path), 4, seed=7, option="data.val")
    assert len(pairs) == 2
    first, second = pairs[0], pairs[1]
    assert torch.equal(first["hr"], read_image(tmp_path / "HR/a.png").rgb[:, :, :16])
    assert torch.equal(second["lr"], read_image(tmp_path / "LR/b.png").rgb)
    assert (second["name"], second["key"].tolist()) == ("b", [7, -1, 1, 0])
    layout(tmp_path, {"HR/c.png": (12, 20)})
    with pytest.raises(ValueError, match=r"data\.val=.*without partner: c"):
        ValidationPairs(str(tmp_path), 4, seed=7, option="data.val")
