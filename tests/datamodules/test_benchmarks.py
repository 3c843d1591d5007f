import pytest
import torch
import torch.nn.functional as F

from datamodules.benchmarks import open_benchmark
from datamodules.image_io import write_image
from datamodules.synthetic import TRAIN_PHOTOGRAPHS


def degrade(hr, generators):
    noise = torch.randn(1, 3, 1, 1, generator=generators[0])
    return F.avg_pool2d(hr, 4) + 0.01 * noise


def layout(root, files):
    for name, (width, height) in files.items():
        write_image(root / name, torch.rand(3, height, width, generator=torch.Generator().manual_seed(width)))


def test_pairs_are_cut_to_the_scale_and_a_wrong_scale_is_said(tmp_path):
    layout(tmp_path, {"HR/a.png": (18, 8), "LR/a.png": (4, 2)})
    benchmark = open_benchmark(str(tmp_path), 4, degrade)
    image = benchmark.load(0)
    assert benchmark.paired
    assert (image.lr.shape, image.hr.shape) == ((3, 2, 4), (3, 8, 16))
    with pytest.raises(ValueError, match=r"LR 4 x 2 and HR 18 x 8 do not differ by the scale 2"):
        open_benchmark(str(tmp_path), 2, degrade).load(0)


def test_crop_takes_the_same_centre_of_both_sides_of_a_pair(tmp_path):
    layout(tmp_path, {"HR/a.png": (44, 28), "LR/a.png": (11, 7)})
    whole, part = (open_benchmark(str(tmp_path), 4, degrade, crop=crop).load(0) for crop in (None, 18))
    assert torch.equal(part.lr, whole.lr[:, 1:5, 3:7])
    assert torch.equal(part.hr, whole.hr[:, 4:20, 12:28])
    wide = open_benchmark(str(tmp_path), 4, degrade, crop=33).load(0)
    assert torch.equal(wide.lr, whole.lr[:, :, 1:9])
    assert torch.equal(wide.hr, whole.hr[:, :, 4:36])


def test_a_lone_side_of_pairs_is_said_and_a_folder_of_originals_is_none(tmp_path):
    layout(tmp_path, {"original/a.png": (16, 8), "photo_HR.png": (16, 8)})
    assert open_benchmark(str(tmp_path), 4, degrade).names == ["original/a", "photo_HR"]
    layout(tmp_path, {"HR/b.png": (16, 8)})
    with pytest.raises(ValueError, match=r"DATA=.*found HR; found 3 entries"):
        open_benchmark(str(tmp_path), 4, degrade)


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


def test_large_embedded_benchmark_is_held_out_and_the_same_at_every_call():
    benchmark = open_benchmark("bundled_large", 4, degrade)
    assert benchmark.names == ["retina", "sky", "water", "lawn"]
    assert not {f"{name}.{end}" for name in benchmark.names for end in ("png", "jpg")} & set(TRAIN_PHOTOGRAPHS)
    images = list(benchmark)
    assert [image.group for image in images] == ["photo"] + ["flat"] * 3
    assert [tuple(image.hr.shape) for image in images] == [(3, 1408, 1408), *[(3, 1024, 1024)] * 3]
    again = [open_benchmark("bundled_large", 4, degrade, seed=seed, crop=256).load(2) for seed in (0, 0, 1)]
    assert torch.equal(again[0].lr, again[1].lr)
    assert torch.equal(again[0].hr, again[2].hr)
    assert torch.equal(again[0].hr, images[2].hr[:, 384:640, 384:640])


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
        assert benchmark.paired
        assert benchmark.load(0).hr.shape[1] == benchmark.load(0).lr.shape[1] * scale
    photographs = open_benchmark(str(shared / "photos4k"), 4, degrade)
    assert len(photographs) == 9
    assert not photographs.paired
