import fcntl
import io
import json
import multiprocessing
import os
import random
import shutil
import signal
import tarfile
import time

import pytest
from PIL import Image, ImageOps

from datamodules.shards.manifest import ShardError
from datamodules.shards.writer import Packing

FORK = multiprocessing.get_context("fork")


def members(folder):
    found = {}
    for path in sorted(folder.glob("shard-*.tar")):
        with tarfile.open(path) as file:
            for member in file:
                assert (member.mtime, member.uid, member.gid, member.uname) == (0, 0, 0, "")
                assert member.name not in found
                found[member.name] = file.extractfile(member).read()
    return found


def test_python_reads_the_shards_and_finds_every_file_unchanged(images, shards):
    found = members(shards)
    keys = sorted({name.partition(".")[0] for name in found})
    files = sorted(
        (path for path in images.rglob("*") if path.is_file()), key=lambda p: p.relative_to(images).as_posix()
    )
    assert len(keys) == len(files) == len(found) / 2 == 12
    assert len(list(shards.glob("shard-*.tar"))) > 2
    for key, path in zip(keys, files, strict=True):
        facts = json.loads(found.pop(f"{key}.json"))
        (suffix,) = [name.partition(".")[2] for name in found if name.startswith(key)]
        data = found[f"{key}.{suffix}"]
        assert data == path.read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            assert {"jpg": "JPEG", "png": "PNG", "webp": "WEBP", "bmp": "BMP"}[suffix] == image.format
            assert (facts["width"], facts["height"]) == ImageOps.exif_transpose(image).size
        assert facts["name"] == path.relative_to(images).as_posix()
        assert facts["bytes"] == len(data)
        assert len(facts["checksum"]) == 16


def test_webdataset_reads_the_shards(images, shards):
    webdataset = pytest.importorskip("webdataset")
    urls = sorted(map(str, shards.glob("shard-*.tar")))
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert len(samples) == 12
    for sample in samples:
        facts = json.loads(sample["json"])
        (data,) = [value for key, value in sample.items() if key in ("jpg", "png", "webp", "bmp")]
        assert data == (images / facts["name"]).read_bytes()


def test_a_shard_ends_before_the_image_that_would_make_it_too_long(images, packer, tmp_path):
    for shard_bytes in (1, 20_000, 10**9):
        out = tmp_path / str(shard_bytes)
        manifest = packer["pack"](images, out, shard_bytes)
        sizes = [path.stat().st_size for path in sorted(out.glob("shard-*.tar"))]
        assert [shard.bytes for shard in manifest.shards] == sizes
        assert len(sizes) == {1: 12, 10**9: 1}.get(shard_bytes, len(sizes))
        if shard_bytes == 20_000:
            assert 1 < len(sizes) < 12
            assert max(sizes) <= 20_000 + 2 * 512


def test_the_bytes_depend_on_the_images_alone(images, shards, packer, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(images, other, copy_function=shutil.copyfile)
    for path in other.rglob("*"):
        os.utime(path, (1, 1))
    packer["pack"](other, tmp_path / "again")
    assert packer["contents"](tmp_path / "again") == packer["contents"](shards)


@pytest.fixture
def many(packer, tmp_path):
    """Forty images of 30 kB, to be packed by three."""
    folder = tmp_path / "many"
    folder.mkdir()
    for i in range(40):
        Image.fromarray(packer["noise"](100, 100, i)).save(folder / f"{i:02d}.png")
    return folder


@pytest.mark.parametrize("attempts", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_killed_at_random_moments_the_shards_are_equal_in_every_byte(many, packer, tmp_path, attempts):
    packer["pack"](many, tmp_path / "whole", 100_000)
    expected = packer["contents"](tmp_path / "whole")
    draw = random.Random(0)
    unfinished = 0
    for attempt in range(attempts):
        out = tmp_path / f"killed-{attempt}"
        for shards_first in sorted(draw.sample(range(10), 2)):
            child = FORK.Process(target=packer["pack"], args=(many, out, 100_000))
            child.start()
            while child.is_alive() and len(list(out.glob("shard-*.tar"))) < shards_first:
                time.sleep(0.001)
            time.sleep(draw.uniform(0, 0.01))
            os.kill(child.pid, signal.SIGKILL)
            child.join()
            unfinished += not (out / "dataset.json").exists()
        packer["pack"](many, out, 100_000)
        assert packer["contents"](out) == expected
    assert unfinished


def die_at_replacement(images, out, number, pack):
    """Pack, and end like a killed process just before or after the number-th file gets its name."""
    replace, calls = os.replace, iter(range(1000))

    def dying(source, target):
        if (call := next(calls)) == number // 2:
            if number % 2:
                replace(source, target)
            os._exit(9)
        replace(source, target)
        return call

    os.replace = dying
    pack(images, out, 60_000)
    os._exit(0)


def test_killed_around_every_renaming_the_shards_are_equal_in_every_byte(images, packer, tmp_path):
    shards = packer["pack"](images, tmp_path / "whole", 60_000).shards
    expected = packer["contents"](tmp_path / "whole")
    for number in range(100):
        out = tmp_path / f"out-{number}"
        child = FORK.Process(target=die_at_replacement, args=(images, out, number, packer["pack"]))
        child.start()
        child.join()
        if child.exitcode == 0:
            break
        packer["pack"](images, out, 60_000)
        assert packer["contents"](out) == expected
    # the state, shards and what is beside them, index, dataset.json
    assert number == 2 * (1 + 2 * len(shards) + 2)


def stop_after(count):
    left = iter(range(count))

    def progress(_):
        if next(left, None) is None:
            raise KeyboardInterrupt

    return progress


def test_finished_shards_are_kept(images, shards, packer, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        packer["pack"](images, out, progress=stop_after(9))
    assert not (out / "dataset.json").exists()
    finished = {path.name: path.stat().st_ino for path in out.glob("shard-*.tar")}
    assert finished
    packer["pack"](images, out)
    assert {name: (out / name).stat().st_ino for name in finished} == finished
    assert packer["contents"](out) == packer["contents"](shards)


def test_an_image_removed_in_between_leaves_nothing_of_the_earlier_plan(images, packer, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        packer["pack"](images, out, 1, stop_after(11))
    (images / "3.png").unlink()
    packer["pack"](images, out, 1)
    packer["pack"](images, tmp_path / "fresh", 1)
    assert packer["contents"](out) == packer["contents"](tmp_path / "fresh")


def change_at(path, action):
    """As progress: act on a file as soon as the first image is packed."""

    def progress(_):
        if path.exists():
            action(path)

    return progress


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (lambda path: path.unlink(), r"z\.webp has vanished since packing began"),
        (lambda path: path.write_bytes(b"other"), r"z\.webp has changed since packing began"),
        (lambda path: os.utime(path, (5, 5)), r"z\.webp has changed since packing began"),
    ],
)
def test_a_source_that_changes_while_packing_ends_it_with_one_sentence(images, packer, tmp_path, action, message):
    with pytest.raises(ValueError, match=message):
        packer["pack"](images, tmp_path / "out", progress=change_at(images / "z.webp", action))
    assert not (tmp_path / "out" / "dataset.json").exists()
    assert not list((tmp_path / "out").glob("*.part*"))


def test_a_file_that_is_no_image_is_named(images, packer, tmp_path):
    (images / "y.png").write_text("no image")
    with pytest.raises(ValueError, match=r"images/y\.png holds text.*make curate"):
        packer["pack"](images, tmp_path / "out")


def test_an_image_damaged_further_in_is_named(images, packer, tmp_path):
    data = (images / "turned.jpg").read_bytes()
    (images / "turned.jpg").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"images/turned\.jpg begins as a JPEG but is truncated.*make curate"):
        packer["pack"](images, tmp_path / "out")


def test_what_killed_packings_left_is_removed_and_nothing_else(images, shards, packer, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        packer["pack"](images, out, progress=stop_after(9))
    for name in ("shard-000001.tar", "shard-000001.tar.json", "index.bin", "dataset.json", "packing.json"):
        (out / f".{name}.77.part.0123abcd").write_bytes(b"half")
    (out / ".notes.txt.77.part.0123abcd").touch()
    packer["pack"](images, out)
    (out / ".notes.txt.77.part.0123abcd").unlink()
    assert packer["contents"](out) == packer["contents"](shards)


def test_a_folder_with_anything_else_is_refused(images, shards, packer, tmp_path):
    with pytest.raises(ValueError, match=r"holds another dataset \(12 images in shards of 0\.025 MB\)"):
        packer["pack"](images, shards, 50_000)
    (images / "0.png").rename(images / "renamed.png")
    with pytest.raises(ValueError, match="holds another dataset"):
        packer["pack"](images, shards)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / ".thesis.txt.part").touch()
    with pytest.raises(ValueError, match=r"full is not empty and holds no shards; give another folder with OUT="):
        packer["pack"](images, tmp_path / "full")
    assert (tmp_path / "full" / ".thesis.txt.part").exists()
    with pytest.raises(KeyboardInterrupt):
        packer["pack"](images, tmp_path / "out", progress=stop_after(9))
    with pytest.raises(ValueError, match=r"holds an unfinished packing of .*images with shards of 25000 bytes"):
        packer["pack"](images / "a.b", tmp_path / "out")


def test_a_finished_dataset_is_left_as_it_is(images, shards, packer):
    before = {path.name: path.stat().st_mtime_ns for path in shards.iterdir()}
    packer["pack"](images, shards)
    assert {path.name: path.stat().st_mtime_ns for path in shards.iterdir()} == before
    os.utime(images / "0.png")  # touched: its bytes are compared
    packer["pack"](images, shards)
    data = bytearray((images / "0.png").read_bytes())
    data[-1] ^= 1
    (images / "0.png").write_bytes(data)
    with pytest.raises(ValueError, match="holds another dataset"):
        packer["pack"](images, shards)


def test_a_deleted_shard_is_packed_again(images, shards, packer):
    before = packer["contents"](shards)
    (shards / "shard-000001.tar").unlink()
    packer["pack"](images, shards)
    assert packer["contents"](shards) == before


def changed_content(path):
    """Other pixels, of the same length in bytes."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_a_shard_of_changed_images_never_gets_its_name(images, shards, packer):
    (shards / "shard-000000.tar").unlink()
    before = packer["contents"](shards)
    with Packing(packer["plan_of"](images), shards) as packing:
        changed_content(images / "0.png")  # after it was compared
        packing.plan = packer["plan_of"](images)
        with pytest.raises(ValueError, match="the images have changed since they were packed"):
            packing.run(lambda count: None)
    assert packer["contents"](shards) == before


def test_a_change_is_found_also_where_the_images_clock_runs_behind(images, shards, packer):
    changed_content(images / "0.png")
    late = time.time() + 3600
    os.utime(shards / "dataset.json", (late, late))
    with pytest.raises(ValueError, match="holds another dataset"):
        packer["pack"](images, shards)


def test_a_damaged_dataset_is_not_taken_for_the_same(images, shards, packer):
    (shards / "index.bin").write_bytes((shards / "index.bin").read_bytes()[:-1])
    with pytest.raises(ShardError, match=r"index\.bin is truncated"):
        packer["pack"](images, shards)


def test_a_second_packing_at_the_same_time_is_refused(images, packer, tmp_path):
    out = tmp_path / "out"
    with (
        Packing(packer["plan_of"](images), out),
        pytest.raises(ValueError, match="another packing is at work there"),
    ):
        packer["pack"](images, out)
    packer["pack"](images, out)
    lock = os.open(out, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(lock)


def test_a_full_disk_is_told_before_anything_is_packed(images, shards, packer, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(100, 90, 10))
    with pytest.raises(ValueError, match=r"has 0\.0 GB free and 0\.0 GB are needed; make room"):
        packer["pack"](images, tmp_path / "out")
    assert not list((tmp_path / "out").glob("shard-*"))
    packer["pack"](images, shards)  # nothing is to be written
