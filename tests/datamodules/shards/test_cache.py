import contextlib
import multiprocessing
import os
import random
import signal
import time

import pytest

from datamodules.shards import cache as cache_module
from datamodules.shards.cache import SampleCache
from datamodules.shards.manifest import ShardError

FORK = multiprocessing.get_context("fork")
DATASET = "0123456789abcdef" * 2


@pytest.fixture
def cache(tmp_path):
    made = SampleCache(tmp_path, DATASET, 1000)
    made.open()
    return made


def copies(folder):
    found = {}
    for path in folder.glob("*/samples/*/*"):
        with contextlib.suppress(FileNotFoundError):  # removed by another process
            if not path.name.startswith("."):
                found[int(path.name)] = path.stat().st_size
    return found


def age(cache, number, seconds):
    then = time.time() - seconds
    os.utime(cache.path(number), (then, then))


def test_a_copy_is_given_back_until_it_is_dropped(cache):
    assert cache.get(123456) is None
    cache.put(123456, b"abc")
    assert cache.holds(123456)
    assert cache.get(123456) == b"abc"
    cache.drop(123456)
    cache.drop(123456)
    assert cache.get(123456) is None


def test_what_was_used_longest_ago_goes_first(cache, tmp_path):
    for number in range(4):
        cache.put(number, bytes(240))
        age(cache, number, 100 - number)
    cache.get(0)
    cache.put(4, bytes(240))
    assert sorted(copies(tmp_path)) == [0, 2, 3, 4]


def test_the_bound_holds_over_all_datasets_in_the_folder(cache, tmp_path):
    other = SampleCache(tmp_path, DATASET[::-1], 1000)
    other.open()
    for number in range(20):
        (cache if number % 2 else other).put(number, bytes(100))
        assert sum(copies(tmp_path).values()) <= 1000
    assert len(copies(tmp_path)) > 5


def test_a_sample_larger_than_the_bound_is_not_kept(cache, tmp_path):
    cache.put(0, bytes(1001))
    cache.put(1, bytes(1000))
    assert copies(tmp_path) == {1: 1000}
    SampleCache(tmp_path, DATASET, 0).put(2, b"x")
    assert copies(tmp_path) == {1: 1000}


def test_a_smaller_bound_holds_from_the_start_on(cache, tmp_path):
    for number in range(10):
        cache.put(number, bytes(100))
    SampleCache(tmp_path, DATASET, 300).open()
    assert sum(copies(tmp_path).values()) <= 300


def test_files_of_others_are_never_touched(cache, tmp_path):
    for name in ("thesis.txt", "photos/samples/0000/0000001", f"{DATASET}/index.bin"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(bytes(5000))
    for number in range(30):
        cache.put(number, bytes(100))
    SampleCache(tmp_path, DATASET, 0).open()
    assert not copies(tmp_path / DATASET)
    assert all((tmp_path / name).stat().st_size == 5000 for name in ("thesis.txt", "photos/samples/0000/0000001"))


def test_what_killed_processes_left_is_removed_after_a_while(cache, tmp_path):
    cache.put(1, bytes(100))
    for name, seconds in ((".0000002.1.part.0a", 0), (".0000003.1.part.0b", cache_module.UNFINISHED_SECONDS + 5)):
        part = cache.path(1).with_name(name)
        part.write_bytes(bytes(700))
        os.utime(part, (time.time() - seconds,) * 2)
    index = tmp_path / DATASET / ".index.bin.1.part.0c"
    index.touch()
    os.utime(index, (1, 1))
    cache.open()
    assert not index.exists()
    assert sorted(path.name for path in cache.path(1).parent.iterdir()) == [".0000002.1.part.0a", "0000001"]


def test_a_lost_or_damaged_count_is_made_anew(cache, tmp_path):
    for number in range(9):
        cache.put(number, bytes(100))
    (counter,) = [path for path in tmp_path.iterdir() if path.is_file()]
    for damage in (b"", b"abc"):
        counter.write_bytes(damage)
        cache.put(100, bytes(90))
        cache.drop(100)
        assert int.from_bytes(counter.read_bytes(), "little") <= 1000


def fill(folder, seed):
    cache = SampleCache(folder, DATASET, 20_000)
    rng = random.Random(seed)
    while True:
        number = rng.randrange(200)
        expected = number.to_bytes(2, "big") * 500
        found = cache.get(number)
        if found is None:
            cache.put(number, expected)
        elif found != expected:
            os._exit(5)


def test_processes_share_it_and_may_be_killed_at_any_moment(tmp_path):
    SampleCache(tmp_path, DATASET, 20_000).open()
    children = [FORK.Process(target=fill, args=(tmp_path, seed)) for seed in range(4)]
    for child in children:
        child.start()
    most = 0
    for _ in range(30):
        time.sleep(0.02)
        most = max(most, sum(copies(tmp_path).values()))
    for child in children:
        assert child.is_alive()
        os.kill(child.pid, signal.SIGKILL)
        child.join()
    assert 10_000 < most <= 20_000 + 4 * 1000  # each may be writing one
    cache = SampleCache(tmp_path, DATASET, 20_000)
    for number in range(200):
        cache.put(number, number.to_bytes(2, "big") * 500)
        assert cache.get(number) == number.to_bytes(2, "big") * 500
    assert sum(copies(tmp_path).values()) <= 20_000


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ShardError, match=r"cannot write to .*file.* set data\.cache to another folder"):
        SampleCache(tmp_path / "file", DATASET, 1000).open()


def test_a_full_disk_costs_the_copy_and_not_the_run(cache, tmp_path, monkeypatch):
    def full(source, target):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", full)
        with pytest.warns(UserWarning, match=r"no local copies are kept in .*No space left.*; .* data\.cache"):
            cache.put(0, b"abc")
    assert not [path for path in tmp_path.rglob("*") if "part" in path.name]
    assert cache.get(0) is None
    assert cache.failing
    cache.put(0, b"abc")
    assert not cache.failing
