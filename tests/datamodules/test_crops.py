from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from datamodules import sources
from datamodules.crops import CropDataset, ValidationCrops, detail, random_crop, random_symmetry
from datamodules.image_io import read_image
from datamodules.randomness import generator_for
from datamodules.sampling import ResumableBatchSampler
from datamodules.sources import open_source


@pytest.fixture
def source(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(5):
        Image.fromarray(rng.integers(0, 256, (40 + i, 50, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    return open_source(str(tmp_path), (), 32, "data.train", "data.crop")


@pytest.mark.parametrize("per_decode", [1, 2])
def test_samples_are_the_same_with_and_without_workers(source, per_decode):
    dataset = CropDataset(source, 32, 1, crops_per_image=2, procedural_share=0.3, crops_per_decode=per_decode)
    batches = [
        list(DataLoader(dataset, batch_sampler=ResumableBatchSampler(6, 4), num_workers=workers)) for workers in (0, 2)
    ]
    for here, there in zip(*batches, strict=True):
        assert torch.equal(here["hr"], there["hr"])
        assert torch.equal(here["key"], there["key"])
    assert batches[0][0]["hr"].shape == (4, 3, 32, 32)
    assert batches[0][0]["key"].dtype == torch.int64


@pytest.mark.parametrize(("per_decode", "decodes"), [(1, 20), (2, 10), (4, 5)])
def test_fewer_images_are_decoded_where_crops_share_one(source, per_decode, decodes, monkeypatch):
    files = []
    monkeypatch.setattr(sources, "read_image", lambda path: files.append(path) or read_image(path))
    source._images.most_bytes = 1  # one image stays
    dataset = CropDataset(source, 32, seed=2, crops_per_image=4, crops_per_decode=per_decode)
    items = [dataset[number] for number in range(20)]
    images = [int(item["key"][2]) for item in items]
    changes = 1 + sum(before != after for before, after in pairwise(images))
    assert len(files) == changes, "an image is decoded where the one before is another"
    assert changes <= decodes
    assert len(set(images)) == 5


def test_a_sample_depends_on_its_key_alone(source):
    ones, fours = (
        CropDataset(source, 32, seed=2, crops_per_image=4, procedural_share=0.3, crops_per_decode=per_decode)
        for per_decode in (1, 4)
    )
    by_key = {tuple(item["key"].tolist()): item["hr"] for item in map(ones.__getitem__, range(20))}
    for number in range(20):
        item = fours[number]
        assert torch.equal(item["hr"], by_key.pop(tuple(item["key"].tolist())))
    assert not by_key


def test_crops_per_decode_must_divide_crops_per_image(source):
    with pytest.raises(ValueError, match=r"data\.crops_per_decode=3: expected a divisor of data\.crops_per_image=4"):
        CropDataset(source, 32, seed=2, crops_per_image=4, crops_per_decode=3)


def test_samples_do_not_touch_the_global_generators(source):
    dataset = CropDataset(source, 32, seed=1, procedural_share=0.5)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    for number in range(4):
        dataset[number]
    assert torch.equal(state, torch.get_rng_state())


def test_a_crop_is_a_piece_of_its_image_up_to_symmetry(source):
    item = CropDataset(source, 32, seed=3)[2]
    pixels = source.load(int(item["key"][2])).float() / 255
    windows = pixels.unfold(1, 32, 1).unfold(2, 32, 1)
    hits = [
        (windows == torch.rot90(item["hr"].flip(-1) if flip else item["hr"], turns, (1, 2))[:, None, None]).all(0)
        for flip in (0, 1)
        for turns in range(4)
    ]
    assert sum(int(hit.all(-1).all(-1).sum()) for hit in hits) == 1


def test_all_eight_symmetries_occur():
    image = torch.arange(12.0).reshape(3, 2, 2)
    seen = {tuple(random_symmetry(image, generator_for((i,), "crop")).flatten().tolist()) for i in range(100)}
    assert len(seen) == 8


def test_procedural_share_one_needs_no_photograph_and_zero_takes_none(source):
    always, never = (CropDataset(source, 32, seed=1, procedural_share=share) for share in (1.0, 0.0))
    originals = {round(v * 255, 3) for v in never[0]["hr"].flatten().tolist()}
    assert all(value == int(value) for value in originals)
    assert any(v * 255 != round(v * 255) for v in always[0]["hr"].flatten().tolist())


def test_validation_crops_are_fixed_and_named(source):
    crops = ValidationCrops(source, 32, seed=4, count=7)
    assert [crops[i]["name"] for i in (0, 4, 5)] == ["0", "4", "0-2"]
    assert torch.equal(crops[6]["hr"], ValidationCrops(source, 32, seed=4, count=9)[6]["hr"])
    assert not torch.equal(crops[0]["hr"], crops[5]["hr"])
    assert crops[5]["key"].tolist() == [4, -1, 5, 0]


@pytest.fixture
def half_flat():
    """(3,64,256): flat on the left, noise on the right."""
    pixels = torch.full((3, 64, 256), 100, dtype=torch.uint8)
    pixels[..., 128:] = torch.randint(0, 256, (3, 64, 128), generator=torch.Generator().manual_seed(0)).byte()
    return pixels


def noisy_share(pixels, preference, candidates):
    crops = [random_crop(pixels, 32, generator_for((i,), "crop"), preference, candidates) for i in range(200)]
    return sum(float((crop != 100 / 255).float().mean()) for crop in crops) / len(crops)


def test_a_preference_moves_crops_to_detailed_or_flat_regions(half_flat):
    uniform = noisy_share(half_flat, "uniform", 1)
    assert uniform == pytest.approx(0.5, abs=0.08)
    assert noisy_share(half_flat, "detailed", 4) > 0.8
    assert noisy_share(half_flat, "flat", 4) < 0.2
    assert noisy_share(half_flat, "flat", 2) < uniform, "fewer candidates, a weaker preference"


def test_uniform_crops_do_not_depend_on_the_candidates(source):
    few, many = (CropDataset(source, 32, seed=1, preference="uniform", candidates=n) for n in (1, 9))
    assert all(torch.equal(few[n]["hr"], many[n]["hr"]) for n in range(5))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16])
def test_detail_is_the_mean_step_between_neighbours(dtype):
    scale = 255 if dtype == torch.uint8 else 65535
    steps = (torch.arange(8).float().expand(3, 8, 8) / 10 * scale).round()
    assert detail(steps.to(dtype)) == pytest.approx(0.05, rel=0.02)  # 0.1 along rows, 0 along columns
