import os
import pickle

import numpy as np
import pytest

from datamodules.shards.index import index_bytes, read_index
from datamodules.shards.manifest import (
    Manifest,
    PackedFile,
    ShardError,
    checksum_of,
    parse_manifest,
    sample_checksum,
)


def written(path, rows, names):
    data = index_bytes(rows, names)
    path.write_bytes(data)
    return PackedFile(path.name, len(data), checksum_of(data))


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    most = (2**32 - 1, 2**63, 2**40, 2**31, 2**31, 2**64 - 1)
    return [tuple(int(rng.integers(0, limit, dtype=np.uint64)) for limit in most) for _ in range(50)] + [most]


@pytest.fixture
def names(rows):
    odd = ["", "ä/ö.jpg", os.fsdecode(b"latin-\xe4.png"), "x" * 5000]
    return odd + [f"folder {i}/{i}.jpg" for i in range(len(rows) - len(odd))]


def test_entries_names_and_sizes_are_those_written_also_after_pickling(tmp_path, rows, names):
    index = read_index(tmp_path / "index.bin", written(tmp_path / "index.bin", rows, names))
    for found in (index, pickle.loads(pickle.dumps(index))):
        assert len(found) == len(rows)
        assert [found.name(i) for i in range(len(found))] == names
        entries = [found.entry(i) for i in range(len(found))]
        assert [(e.shard, e.offset, e.length, e.height, e.width, e.checksum) for e in entries] == rows
        assert found.sizes()[:-1].tolist() == [list(row[3:5]) for row in rows[:-1]]


def test_a_fingerprint_is_that_of_names_and_images_wherever_they_lie(tmp_path, rows, names):
    def fingerprint(rows, names, chosen=None):
        return read_index(tmp_path / "index.bin", written(tmp_path / "index.bin", rows, names)).fingerprint(chosen)

    whole = fingerprint(rows, names)
    moved = [(shard ^ 1, offset ^ 512, *rest) for shard, offset, *rest in rows]
    assert fingerprint(moved, names) == whole
    assert fingerprint(rows, names, np.arange(len(rows))) == whole
    assert fingerprint(rows[1:], names[1:]) == fingerprint(rows, names, np.arange(1, len(rows)))
    others = [fingerprint(rows, [*names[:-1], "other"]), fingerprint(rows[::-1], names), fingerprint(rows, names[::-1])]
    for column in (2, 3, 4, 5):
        changed = list(rows[0])
        changed[column] ^= 1
        others.append(fingerprint([tuple(changed), *rows[1:]], names))
    assert len({whole, *others}) == 1 + len(others)


def test_every_flipped_bit_and_every_other_length_is_found(tmp_path, rows, names):
    path = tmp_path / "index.bin"
    packed = written(path, rows, names)
    data = path.read_bytes()
    rng = np.random.default_rng(1)
    for place in [0, 8, 16, 63, len(data) - 1, *rng.integers(0, len(data), 20)]:
        damaged = bytearray(data)
        damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        with pytest.raises(ShardError, match=r"index\.bin was altered: .* checksum .* dataset\.json; copy"):
            read_index(path, packed)
    for length, kind in ((0, "truncated"), (100, "truncated"), (len(data) - 1, "truncated")):
        path.write_bytes(data[:length])
        with pytest.raises(ShardError, match=f"is {kind}: found {length} bytes, expected the {len(data)}"):
            read_index(path, packed)
    path.write_bytes(data + b"x")
    with pytest.raises(ShardError, match=r"index\.bin is too long"):
        read_index(path, packed)
    path.unlink()
    with pytest.raises(ShardError, match=r"index\.bin is missing, the index of the shards"):
        read_index(path, packed)


def test_what_happens_to_the_file_later_changes_nothing(tmp_path, rows, names):
    path = tmp_path / "index.bin"
    index = read_index(path, written(path, rows, names))
    before = index.fingerprint()
    with path.open("r+b") as file:
        file.write(bytes(1000))
        file.truncate(1000)
    for found in (index, pickle.loads(pickle.dumps(index))):
        assert found.fingerprint() == before
        assert [found.name(i) for i in range(len(found))] == names


FILE = {"name": "index.bin", "bytes": 5, "checksum": "0" * 32}


def test_dataset_json_is_read_as_written():
    shards = (PackedFile("shard-000000.tar", 10, "1" * 32), PackedFile("shard-000001.tar", 20, "2" * 32))
    manifest = Manifest(7, 1000, "3" * 32, PackedFile(**FILE), shards)
    assert parse_manifest(manifest.to_bytes(), "here") == manifest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[:-20], "is damaged or describes no shards"),
        (lambda text: "<html>not found</html>", "is damaged or describes no shards"),
        (lambda text: "[]", "is damaged or describes no shards"),
        (lambda text: text.replace('"version": 1', '"version": 2'), "of format version 2, expected 1"),
        (lambda text: text.replace('"samples"', '"sample"'), "is damaged; copy it anew"),
        (lambda text: text.replace('"index.bin"', '"../index.bin"'), "is damaged; copy it anew"),
        (lambda text: text.replace("0" * 32, "../../../../" + "0" * 20), "is damaged; copy it anew"),
    ],
)
def test_another_dataset_json_is_refused_with_one_sentence(change, message):
    text = Manifest(7, 1000, "3" * 32, PackedFile(**FILE), ()).to_bytes().decode()
    with pytest.raises(ShardError, match=f"^here/dataset.json.*{message}"):
        parse_manifest(change(text).encode(), "here/dataset.json")


def test_checksums_are_blake2b():
    # the first half of RFC 7693's way of hashing "abc" depends on the digest's length: known values from b2sum -l
    assert checksum_of(b"abc") == "cf4ab791c62b8d2b2109c90275287816"
    assert f"{sample_checksum(b'abc').to_bytes(8, 'little').hex()}" == "d8bb14d833d59559"
