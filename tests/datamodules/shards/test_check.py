import tarfile

import pytest

from datamodules.shards.check import check_shards, open_dataset
from datamodules.shards.manifest import ShardError


def problems(location):
    dataset = open_dataset(str(location))
    seen = []
    found = [*dataset.problems, *check_shards(dataset, 2, seen.append)]
    return found, sum(seen)


def edit(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def test_whole_shards_have_no_problem_and_every_byte_is_read(shards, serve):
    total = sum(path.stat().st_size for path in shards.glob("shard-*.tar"))
    assert problems(shards) == ([], total)
    assert problems(serve(shards)[0]) == ([], total)


@pytest.mark.parametrize("remote", [False, True])
def test_each_damage_is_one_line(shards, serve, remote):
    names = sorted(path.name for path in shards.glob("shard-*.tar"))
    assert len(names) >= 5
    with tarfile.open(shards / names[1]) as file:
        first, description = file.getmembers()[:2]
    edit(shards / names[1], first.offset_data + 100)
    edit(shards / names[1], description.offset_data + 3)
    edit(shards / names[2], 0)
    (shards / names[3]).unlink()
    data = (shards / names[4]).read_bytes()
    (shards / names[4]).write_bytes(data[: len(data) // 2])
    location = serve(shards)[0] if remote else str(shards)
    found, _ = problems(location)
    image = open_dataset(location).index
    expected = [
        rf"{location}/{names[1]}: the image '{image.name(_first_of(image, 1))}' was altered or lies elsewhere",
        rf"{location}/{names[2]} was altered outside of its images, in a header or a description",
        rf"{location}/{names[3]} is missing" + ("; check the address" if remote else ""),
        rf"{location}/{names[4]} is truncated",
    ]
    assert len(found) == len(expected)
    assert all(line.startswith(start) for line, start in zip(found, expected, strict=True)), found


def _first_of(index, shard):
    return next(i for i in range(len(index)) if index.entry(i).shard == shard)


def test_what_does_not_belong_there_is_told(shards):
    (shards / "shard-000099.tar").write_bytes((shards / "shard-000000.tar").read_bytes())
    with (shards / "shard-000000.tar").open("ab") as file:
        file.write(b"more")
    found, _ = problems(shards)
    assert "shard-000099.tar is no part of the dataset" in found[0]
    assert "shard-000000.tar is too long" in found[1]
    assert len(found) == 2


def test_shards_are_checked_as_a_whole_where_the_index_is_damaged(shards):
    edit(shards / "index.bin", 100)
    edit(shards / "shard-000002.tar", 1000)
    found, _ = problems(shards)
    assert len(found) == 2
    assert "index.bin was altered" in found[0]
    assert "shard-000002.tar was altered" in found[1]


def test_an_altered_fingerprint_is_told(shards):
    path = shards / "dataset.json"
    text = path.read_text()
    at = text.index('"fingerprint": "') + len('"fingerprint": "')
    path.write_text(text[:at] + ("0" if text[at] != "0" else "1") + text[at + 1 :])
    found, _ = problems(shards)
    assert len(found) == 1
    assert "dataset.json was altered: its fingerprint" in found[0]


def test_without_dataset_json_nothing_can_be_said(shards):
    (shards / "dataset.json").unlink()
    with pytest.raises(ShardError, match="is unfinished"):
        open_dataset(str(shards))
