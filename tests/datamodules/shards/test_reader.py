import json
import os
import pickle
import random
import shutil
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from datamodules.image_io import ImageReadError
from datamodules.shards.manifest import ShardError
from datamodules.shards.reader import is_shards, open_shards
from datamodules.sources import open_source

OPTIONS = ("data.train", "data.crop")


def opened(folder, min_size=32):
    return open_shards(str(folder), "", 0, min_size, *OPTIONS)


def test_shards_are_the_same_source_as_the_folder_they_were_packed_from(images, shards):
    ours, theirs = opened(shards), open_source(str(images), (), 32, *OPTIONS)
    assert len(ours) == len(theirs) == 12
    assert [ours.name(i) for i in range(12)] == [theirs.name(i) for i in range(12)]
    assert ours.sizes().tolist() == theirs.sizes().tolist()
    assert [80, 60] in ours.sizes().tolist()  # turned.jpg, upright
    for i in range(12):
        assert torch.equal(ours.load(i), theirs.load(i))
        assert tuple(ours.load(i).shape[1:]) == tuple(ours.sizes()[i])
    ours.prefetch(range(12))  # nothing to do


def test_real_photographs_come_out_as_they_went_in(shared, packer, tmp_path):
    (tmp_path / "photos").mkdir()
    for path in sorted((shared / "photos4k").iterdir())[:3]:
        (tmp_path / "photos" / path.name).symlink_to(path)
    packer["pack"](tmp_path / "photos", tmp_path / "shards", 3_000_000)
    ours = opened(tmp_path / "shards")
    theirs = open_source(str(tmp_path / "photos"), (), 32, *OPTIONS)
    assert [ours.name(i) for i in range(3)] == [theirs.name(i) for i in range(3)]
    assert all(ours.read(i) == theirs.paths[i].read_bytes() for i in range(3))
    assert torch.equal(ours.load(1), theirs.load(1))


def test_16_bits_stay_16_bits(shared, packer, tmp_path):
    (tmp_path / "images").mkdir()
    shutil.copy(shared / "low_quality" / "tree_alpha_16bit.png", tmp_path / "images")
    packer["pack"](tmp_path / "images", tmp_path / "shards")
    assert opened(tmp_path / "shards").load(0).dtype == torch.uint16


def test_small_images_are_left_out_as_from_a_folder(images, shards):
    with pytest.warns(UserWarning, match="images are smaller than") as ours:
        source = opened(shards, 50)
    with pytest.warns(UserWarning, match="images are smaller than") as theirs:
        folder = open_source(str(images), (), 50, *OPTIONS)
    texts = [str(found[0].message).replace(str(place), "X") for found, place in ((ours, shards), (theirs, images))]
    assert texts[0].rpartition(": ")[0] == texts[1].rpartition(": ")[0]
    assert [source.name(i) for i in range(len(source))] == [folder.name(i) for i in range(len(folder))]
    assert source.sizes().tolist() == folder.sizes().tolist()
    assert all(torch.equal(source.load(i), folder.load(i)) for i in range(len(folder)))
    assert source.fingerprint() != opened(shards).fingerprint()
    with pytest.raises(ValueError, match=r"data\.train=.*all 12 images have a side below data\.crop=500 px"):
        opened(shards, 500)


def test_the_fingerprint_follows_the_images_and_not_the_shards(images, shards, packer, tmp_path):
    before = opened(shards).fingerprint()
    manifest = packer["pack"](images, tmp_path / "one", 10**9)
    assert opened(tmp_path / "one").fingerprint() == before == manifest.fingerprint
    Image.fromarray(packer["noise"](48, 64, 99)).save(images / "0.png")
    packer["pack"](images, tmp_path / "changed")
    assert opened(tmp_path / "changed").fingerprint() != before


def edit(path, change):
    data = bytearray(path.read_bytes())
    path.write_bytes(change(data))


def flipped(data, place):
    data[place] ^= 4
    return data


def test_a_flipped_byte_in_any_image_is_never_data(shards):
    source = opened(shards)
    rng = random.Random(0)
    for i in range(len(source)):
        entry = source.index.entry(i)
        shard = shards / source.manifest.shards[entry.shard].name
        place = entry.offset + rng.randrange(entry.length)
        edit(shard, lambda data, place=place: flipped(data, place))
        with pytest.raises(ShardError, match=rf"{shard.name} was altered: '.*{source.name(i)}.*' .*make shards-check"):
            opened(shards).load(i)
        edit(shard, lambda data, place=place: flipped(data, place))
        opened(shards).load(i)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "shard-000001.tar").unlink(), r"shard-000001\.tar is missing; .*make shards-check"),
        (lambda f: edit(f / "shard-000001.tar", lambda d: d[:-1]), r"shard-000001\.tar is truncated: found \d+ bytes"),
        (lambda f: edit(f / "shard-000000.tar", lambda d: d + b"x"), r"shard-000000\.tar is too long: found \d+ bytes"),
        (lambda f: edit(f / "index.bin", lambda d: d[:-9]), r"index\.bin is truncated: found \d+ bytes, expected"),
        (lambda f: edit(f / "index.bin", lambda d: flipped(d, 99)), r"index\.bin was altered"),
        (lambda f: (f / "index.bin").unlink(), r"index\.bin is missing"),
        (lambda f: (f / "dataset.json").unlink(), r"is unfinished: .*no dataset\.json.* run `make shards` again"),
        (lambda f: edit(f / "dataset.json", lambda d: d.replace(b'"version": 1', b'"version": 9')), "version 9, exp"),
        (lambda f: edit(f / "dataset.json", lambda d: d[:50]), r"dataset\.json is damaged"),
        (
            lambda f: edit(f / "dataset.json", lambda d: d.replace(b'"samples": 12', b'"samples": 13')),
            r"names 13 samples and .*index\.bin holds 12",
        ),
    ],
)
def test_damage_is_told_at_the_start_in_one_sentence(shards, damage, message):
    damage(shards)
    assert is_shards(str(shards))
    with pytest.raises(ShardError, match=rf"^data\.train=.*{message}") as raised:
        opened(shards)
    assert "\n" not in str(raised.value)


def test_damage_done_while_a_source_is_open_is_found_too(shards):
    source = opened(shards)
    entry = source.index.entry(5)
    shard = shards / source.manifest.shards[entry.shard].name
    with shard.open("r+b") as file:
        file.truncate(entry.offset + 10)
    with pytest.raises(ShardError, match=f"{shard.name} is truncated: it ends before byte"):
        source.load(5)
    shard.unlink()
    with pytest.raises(ShardError, match=f"{shard.name} is missing"):
        source.load(5)


def test_an_image_damaged_before_it_was_packed_is_told_with_what_to_do(images, packer, tmp_path):
    data = (images / "turned.jpg").read_bytes()
    (images / "turned.jpg").write_bytes(data[: len(data) // 2])
    packer["pack"](images, tmp_path / "out", curated=True)
    source = opened(tmp_path / "out")
    number = [source.name(i) for i in range(12)].index("turned")
    with pytest.raises(ImageReadError, match=r"turned\.jpg of .*truncated.*leave it out with `make curate` and pack"):
        source.load(number)


def test_what_is_a_folder_of_shards(images, shards, tmp_path):
    assert is_shards(str(shards))
    assert is_shards("s3://bucket/photos")
    assert not any(map(is_shards, (str(images), str(tmp_path / "nowhere"), "bundled", "")))
    with pytest.raises(ShardError, match=r"dataset\.json is missing; expected a folder that `make shards`"):
        opened(images)


class Sums(torch.utils.data.Dataset):
    """One number per image."""

    def __init__(self, source):
        self.source = source

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        return int(self.source.load(index).long().sum())


@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_read_the_same_images(shards, start):
    source = opened(shards)
    source.load(0)
    expected = [int(source.load(i).long().sum()) for i in range(12)]
    loader = DataLoader(Sums(source), num_workers=2, multiprocessing_context=start, batch_size=4)
    assert torch.cat(list(loader)).tolist() == expected


def test_a_pickled_source_is_small_and_reads_the_same(shards):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        source = opened(shards, 50)
    source.load(3)
    data = pickle.dumps(source)
    assert len(data) < 5000
    copy = pickle.loads(data)
    assert torch.equal(copy.load(3), source.load(3))
    assert copy.fingerprint() == source.fingerprint()
    assert copy.name(2) == source.name(2)


def test_an_image_is_decoded_once_while_it_is_kept(shards):
    source = opened(shards)
    assert source.load(2) is source.load(2)


def test_facts_of_dataset_json_are_those_of_the_files(shards):
    found = json.loads((shards / "dataset.json").read_bytes())
    for entry in [*found["shards"], found["index"]]:
        assert os.path.getsize(shards / entry["name"]) == entry["bytes"]
    assert found["samples"] == 12
    records = np.frombuffer((shards / "index.bin").read_bytes()[64 : 64 + 12 * 48], "<u8").reshape(12, 6)
    source = opened(shards)
    assert records[:, :2].tolist() == [list(source.index.entry(i)[:2]) for i in range(12)]
