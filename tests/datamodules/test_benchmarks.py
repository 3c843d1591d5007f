import pytest
import torch
import torch.nn.functional as F

from datamodules.benchmarks import find_pairs, open_benchmark
from datamodules.image_io import write_image


def degrade(hr, generators):
    noise = torch.randn(1, 3, 1, 1, generator=generators[0])
    return F.avg_pool2d(hr, 4) + 0.01 * noise


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
    ],
)
def test_pairs_are_found_by_the_usual_names(tmp_path, hr, lr):
    layout(tmp_path, {hr: (16, 8), lr: (4, 2)})
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
        ({"HR/a.png": (16, 8), "LR_a/X4/a.png": (4, 2), "LR_b/X4/a.png": (4, 2)}, r"found HR, LR_a/X4, LR_b/X4"),
        ({"HR/a.png": (16, 8), "LR/b.png": (4, 2)}, r"do not pair by name; without partner: a, b"),
    ],
)
def test_missing_ambiguous_and_single_files_are_said(tmp_path, files, message):
    layout(tmp_path, files)
    with pytest.raises(ValueError, match=message):
        open_benchmark(str(tmp_path), 4, degrade)


def test_pairs_are_cut_to_the_scale_and_a_wrong_scale_is_said(tmp_path):
    layout(tmp_path, {"HR/a.png": (18, 8), "LR/a.png": (4, 2)})
    benchmark = open_benchmark(str(tmp_path), 4, degrade)
    image = benchmark.load(0)
    assert benchmark.paired
    assert (image.lr.shape, image.hr.shape) == ((3, 2, 4), (3, 8, 16))
    with pytest.raises(ValueError, match=r"LR 4 x 2 and HR 18 x 8 do not differ by the scale 2"):
        open_benchmark(str(tmp_path), 2, degrade).load(0)


def test_plain_folder_is_degraded_by_seed_and_index(tmp_path):
    layout(tmp_path, {"a.png": (19, 21), "sub/b.png": (30, 17)})
    images = list(open_benchmark(str(tmp_path), 4, degrade))
    assert [image.name for image in images] == ["a", "sub/b"]
    assert (images[0].hr.shape, images[0].lr.shape) == ((3, 20, 16), (3, 5, 4))
    again, other = (open_benchmark(str(tmp_path), 4, degrade, seed=seed).load(1) for seed in (0, 1))
    assert torch.equal(again.lr, images[1].lr)
    assert not torch.equal(other.lr, images[1].lr)


def test_crop_takes_the_centre(tmp_path):
    layout(tmp_path, {"a.png": (40, 24)})
    whole = open_benchmark(str(tmp_path), 4, degrade).load(0).hr
    centre = open_benchmark(str(tmp_path), 4, degrade, crop=16).load(0).hr
    assert torch.equal(centre, whole[:, 4:20, 12:28])


def test_embedded_benchmark_has_photographs_and_flat_images():
    benchmark = open_benchmark("bundled", 4, degrade)
    assert benchmark.names == ["chelsea", "coffee", "rocket", "rocket-sky", "retina-plain", "sky", "water", "lawn"]
    images = list(benchmark)
    assert [image.group for image in images] == ["photo"] * 3 + ["flat"] * 5
    assert all(i.hr.shape[1] == 4 * i.lr.shape[1] and i.hr.shape[2] == 4 * i.lr.shape[2] for i in images)
    other_seed = open_benchmark("bundled", 4, degrade, seed=1).load(5)
    assert torch.equal(other_seed.hr, images[5].hr)


def test_missing_empty_and_too_small(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"DATA=.*nowhere is no folder"):
        open_benchmark(str(tmp_path / "nowhere"), 4, degrade)
    with pytest.raises(ValueError, match=r"DATA=.* holds no images: it is empty"):
        open_benchmark(str(tmp_path), 4, degrade)
    layout(tmp_path, {"dot.png": (1, 1)})
    with pytest.raises(ValueError, match="dot of 1 x 1 px is smaller than the scale 4"):
        open_benchmark(str(tmp_path), 4, degrade).load(0)


def test_real_sets(shared):
    for folder, scale, count in (("set5", 2, 5), ("set5", 4, 5), ("realsr", 4, 10)):
        benchmark = open_benchmark(str(shared / folder), scale, degrade)
        assert len(benchmark) == count
        assert benchmark.load(0).hr.shape[1] == benchmark.load(0).lr.shape[1] * scale
