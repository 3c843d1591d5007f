from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from datamodules import sources
from datamodules.image_io import read_image
from datamodules.randomness import generator_for
from datamodules.sampling import (
    CropDataset,
    ResumableBatchSampler,
    ValidationCrops,
    even_batches,
    random_symmetry,
    sample_key,
    single_batches,
)
from datamodules.sources import open_source


@pytest.fixture
def source(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(5):
        Image.fromarray(rng.integers(0, 256, (40 + i, 50, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    return open_source(str(tmp_path), (), 32, "data.train", "data.crop")


def test_generators_are_stable_across_versions_and_apart_by_purpose():
    # a frozen value: a change of the hash would silently change every resumed run
    assert generator_for((1, 2, 3, 4), "crop").initial_seed() == generator_for([1, 2, 3, 4], "crop").initial_seed()
    assert generator_for((0, -1, 5, 0), "degradation").initial_seed() == 6534949836420965208
    seeds = {generator_for(key, purpose).initial_seed() for key in ((0, 1), (1, 0), (0,)) for purpose in ("a", "b")}
    assert len(seeds) == 6


def test_an_epoch_holds_every_crop_once_and_the_next_is_ordered_anew():
    keys = [sample_key(n, images=5, crops_per_image=3, seed=9) for n in range(30)]
    first, second = keys[:15], keys[15:]
    assert {key[2:] for key in first} == {(i, c) for i in range(5) for c in range(3)} == {key[2:] for key in second}
    assert {key[:2] for key in first} == {(9, 0)}
    assert {key[:2] for key in second} == {(9, 1)}
    assert [key[2:] for key in first] != [key[2:] for key in second]


def test_crops_of_one_image_follow_one_another_and_come_once_per_epoch():
    keys = [sample_key(n, images=5, crops_per_image=6, seed=9, crops_per_decode=3) for n in range(60)]
    groups = [keys[first : first + 3] for first in range(0, 60, 3)]
    assert all(len({key[:3] for key in group}) == 1 for group in groups)
    for epoch in range(2):
        seen = [key for key in keys if key[1] == epoch]
        assert sorted(key[2:] for key in seen) == [(i, c) for i in range(5) for c in range(6)]
        assert keys[30 * epoch] == seen[0]
    order = [[key[2] for key in keys[30 * epoch : 30 * epoch + 30 : 3]] for epoch in range(2)]
    assert order[0] != order[1]
    assert all(images != sorted(images) for images in order)


def test_one_crop_per_decode_keeps_the_order_that_runs_had_before_the_option():
    keys = [sample_key(n, images=3, crops_per_image=4, seed=5) for n in range(6)]
    order = torch.randperm(12, generator=generator_for((5, 0), "order")).tolist()
    assert keys == [(5, 0, slot // 4, slot % 4) for slot in order[:6]]


@pytest.mark.parametrize("world_size", [1, 2, 3, 6])
def test_global_batches_do_not_depend_on_the_number_of_ranks(world_size):
    ranks = [list(ResumableBatchSampler(4, 6, rank, world_size)) for rank in range(world_size)]
    joined = [[n for share in shares for n in share] for shares in zip(*ranks, strict=True)]
    assert joined == [list(range(6 * b, 6 * b + 6)) for b in range(4)]


def test_resumed_sampler_continues_and_keeps_the_length_of_the_run():
    whole, rest = ResumableBatchSampler(10, 4), ResumableBatchSampler(10, 4, start_batch=7)
    assert list(rest) == list(whole)[7:]
    assert len(rest) == len(whole) == 10
    assert list(rest) == list(rest)


def test_batch_not_divisible_by_ranks_names_the_option():
    with pytest.raises(ValueError, match=r"data\.batch_size=6 .* 4 ranks"):
        ResumableBatchSampler(10, 6, 0, 4)


@pytest.mark.parametrize("count", [3, 4, 7, 12])
@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_validation_is_seen_once_in_equally_many_batches(count, world_size, batch_size):
    ranks = [even_batches(count, batch_size, rank, world_size) for rank in range(world_size)]
    assert len({len(batches) for batches in ranks}) == 1
    assert sorted(n for batches in ranks for batch in batches for n in batch) == list(range(count))
    sizes = [len(batch) for batches in ranks for batch in batches]
    assert min(sizes) >= 1
    assert max(sizes) - min(sizes) <= 1
    if world_size == 1:
        assert max(sizes) <= batch_size


def test_fewer_validation_images_than_ranks_is_said():
    with pytest.raises(ValueError, match=r"data\.val_count=2"):
        even_batches(2, 1, 0, 3)


@pytest.mark.parametrize(("count", "world_size"), [(3, 1), (5, 2), (3, 3), (14, 4)])
def test_single_batches_are_shared_out_once_and_evenly(count, world_size):
    ranks = [single_batches(count, rank, world_size) for rank in range(world_size)]
    assert [batch for batches in ranks for batch in batches] == [[i] for i in range(count)]
    assert max(map(len, ranks)) - min(map(len, ranks)) <= 1


def test_fewer_pairs_than_ranks_is_said():
    with pytest.raises(ValueError, match=r"data\.val holds 2 pairs.* 3 ranks"):
        single_batches(2, 0, 3)


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
    source.cache_bytes = 1  # one image stays
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


def test_cache_is_bounded_and_returns_the_same_pixels(source):
    source.cache_bytes = 1
    fresh = source.load(0).clone()
    source.load(1)
    assert len(source._cache) == 1
    assert torch.equal(source.load(0), fresh)
