import multiprocessing
import time

import fsspec
import pytest
import torch
from torch.utils.data import DataLoader

from datamodules.image_cache import ImageCache
from datamodules.shards import storage
from datamodules.shards.manifest import ShardError
from datamodules.shards.reader import open_shards
from datamodules.shards.storage import ByteRange, RemoteFolder

OPTIONS = ("data.train", "data.crop")


@pytest.fixture(autouse=True)
def no_long_waits(monkeypatch):
    monkeypatch.setattr(storage, "WAITS", (0.01, 0.02, 0.02))
    monkeypatch.setattr(storage, "FIRST_WAITS", (0.01,))


@pytest.fixture
def local(shards):
    return open_shards(str(shards), "", 0, 32, *OPTIONS)


def opened(address, cache, cache_bytes=10**6):
    return open_shards(address, str(cache), cache_bytes, 32, *OPTIONS)


def copies(folder):
    return [path for path in folder.glob("*/samples/*/*") if not path.name.startswith(".")]


def check_same(ours, theirs):
    assert ours.fingerprint() == theirs.fingerprint()
    assert ours.sizes().tolist() == theirs.sizes().tolist()
    for i in range(len(theirs)):
        assert ours.name(i) == theirs.name(i)
        assert ours.read(i) == theirs.read(i)
        assert torch.equal(ours.load(i), theirs.load(i))


def test_an_address_gives_what_the_folder_gives_and_asks_once(serve, shards, local, tmp_path):
    address, server = serve(shards)
    source = opened(address, tmp_path / "cache")
    check_same(source, local)
    asked = server.requests
    check_same(opened(address + "/", tmp_path / "cache"), local)
    assert asked == 2 + 1 + 12  # a look at dataset.json and all of it, the index, the samples
    assert server.requests == asked + 2  # dataset.json again


def test_any_address_of_fsspec_will_do(shards, local, tmp_path):
    memory = fsspec.filesystem("memory")
    memory.put(str(shards), "/bucket/shards", recursive=True)
    source = opened("memory://bucket/shards", tmp_path / "cache")
    source.prefetch(range(12))
    check_same(source, local)
    check_same(opened(f"file:{'//'}{shards}", tmp_path / "unused"), local)
    assert not (tmp_path / "unused").exists()


@pytest.mark.parametrize("bound", [0, 1000, 30_000])
def test_a_cache_smaller_than_the_data_holds_its_bound(serve, shards, local, tmp_path, bound):
    source = opened(serve(shards)[0], tmp_path / "cache", bound)
    for _ in range(2):
        for start in range(0, 12, 4):
            source.prefetch(range(start, start + 4))
            for i in range(start, start + 4):
                assert source.read(i) == local.read(i)
                assert sum(path.stat().st_size for path in copies(tmp_path / "cache")) <= bound
    assert bool(copies(tmp_path / "cache")) == (bound == 30_000)


def test_prefetch_fetches_at_the_same_time_and_once(serve, shards, local, tmp_path):
    address, server = serve(shards, lambda path, number: time.sleep(0.2) if "shard" in path else "")
    source = opened(address, tmp_path / "cache")
    before, start = server.requests, time.perf_counter()
    source.prefetch([3, 1, 7, 3, 5, 0, 9])
    assert time.perf_counter() - start < 0.6
    assert server.requests == before + 6
    source.prefetch([0, 1])
    for i in (3, 1, 7, 5, 0, 9):
        assert source.read(i) == local.read(i)
    assert server.requests == before + 6


def test_a_full_disk_ends_prefetching_and_costs_no_second_transfer(serve, shards, local, tmp_path):
    address, server = serve(shards)
    source = opened(address, tmp_path / "cache")
    (tmp_path / "cache" / source.cache.dataset / "samples").touch()  # no folder can be made there
    asked = server.requests
    with pytest.warns(UserWarning, match=r"no local copies are kept in .*set data\.cache to another folder"):
        source.prefetch([0, 1])
    assert server.requests == asked + 2
    source.prefetch([2, 3, 4])
    assert server.requests == asked + 2
    with pytest.warns(UserWarning, match="no local copies are kept"):
        assert [source.read(i) for i in (2, 3)] == [local.read(i) for i in (2, 3)]
    (tmp_path / "cache" / source.cache.dataset / "samples").unlink()  # there is room again
    source.read(4)
    asked = server.requests
    source.prefetch([5, 6])
    assert [source.read(i) for i in (5, 6)] == [local.read(i) for i in (5, 6)]
    assert server.requests == asked + 2


def test_a_cache_that_cannot_be_written_is_told_with_both_options(serve, shards, tmp_path):
    (tmp_path / "file").touch()
    address, _ = serve(shards)
    with pytest.raises(ShardError, match=rf"^data\.train={address}: cannot write to .*set data\.cache to another"):
        opened(address, tmp_path / "file")


@pytest.mark.parametrize("fault", ["error", "reset", "cut", "flip"])
def test_failures_now_and_then_are_overcome(serve, shards, local, tmp_path, fault):
    address, server = serve(shards, lambda path, number: fault if number % 3 == 0 and number > 3 else "")
    source = opened(address, tmp_path / "cache")
    source.prefetch(range(6))
    check_same(source, local)
    assert server.requests > 17


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("error", r"could not be read in 4 attempts \(500.*\); check the server"),
        ("reset", r"could not be read in 4 attempts \(.*\); check the server"),
        ("flip", r"was altered: .* has another checksum than when packed; .*make shards-check"),
        ("no range", r"the server ignores requests for a range .* sends whole files; serve the shards with one"),
    ],
)
def test_failures_that_stay_end_with_one_sentence(serve, shards, tmp_path, fault, message):
    address, _ = serve(shards, lambda path, number: fault if "shard" in path else "")
    source = opened(address, tmp_path / "cache")
    with pytest.raises(ShardError, match=rf"^{address}/shard-\d+\.tar.*{message}") as raised:
        source.load(4)
    assert "\n" not in str(raised.value)
    assert not copies(tmp_path / "cache")


def test_a_server_that_ignores_ranges_is_refused_at_the_start(serve, shards, tmp_path):
    address, server = serve(shards, lambda path, number: "no range")
    with pytest.raises(ShardError, match=r"^data\.train=.*dataset\.json: the server ignores requests for a range"):
        opened(address, tmp_path / "cache")
    assert server.requests == 1


def test_what_is_not_there_is_told_in_one_sentence(serve, shards, tmp_path):
    address, server = serve(shards)
    with pytest.raises(ShardError, match=r"nowhere/dataset\.json is missing; check the address"):
        opened(f"{address}/nowhere", tmp_path / "cache")
    with pytest.raises(ShardError, match=r"cannot be opened: .*; expected an address that fsspec knows"):
        opened("nosuch://bucket", tmp_path / "cache")
    source = opened(address, tmp_path / "cache")
    (shards / "shard-000000.tar").unlink()
    last = sorted(shards.glob("shard-*.tar"))[-1]
    with last.open("r+b") as file:
        file.truncate(100)
    with pytest.raises(ShardError, match=r"shard-000000\.tar is missing"):
        source.load(0)
    with pytest.raises(ShardError, match=rf"{last.name} is truncated: "):
        source.load(11)
    server.shutdown()
    server.server_close()
    with pytest.raises(ShardError, match=r"dataset\.json could not be read in 2 attempts \(.*\); check the server"):
        opened(address, tmp_path / "other")


def test_a_truncated_index_is_fetched_once_more_and_then_told(serve, shards, local, tmp_path):
    address, _ = serve(shards)
    opened(address, tmp_path / "cache")
    (kept,) = (tmp_path / "cache").glob("*/index.bin")
    kept.write_bytes(kept.read_bytes()[:70])
    check_same(opened(address, tmp_path / "cache"), local)
    kept.unlink()
    (shards / "index.bin").write_bytes((shards / "index.bin").read_bytes()[:-1])
    with pytest.raises(ShardError, match=rf"{address}/index\.bin is truncated: found"):
        opened(address, tmp_path / "cache")


def test_a_damaged_copy_is_fetched_anew(serve, shards, local, tmp_path):
    source = opened(serve(shards)[0], tmp_path / "cache")
    for i in range(12):
        source.read(i)
    for number, path in enumerate(sorted(copies(tmp_path / "cache"))):
        data = path.read_bytes()
        path.write_bytes([data[:-1], data[:-1] + b"x", b"", data + b"x"][number % 4])
    check_same(source, local)
    assert all(path.read_bytes() == local.read(int(path.name)) for path in copies(tmp_path / "cache"))


def test_a_changed_dataset_has_copies_of_its_own(serve, images, shards, packer, tmp_path):
    address, _ = serve(tmp_path)
    old = opened(f"{address}/shards", tmp_path / "cache")
    first = old.read(0)
    (images / "new first.png").write_bytes((images / "3.png").read_bytes())
    (images / "0.png").unlink()
    packer["pack"](images, tmp_path / "new")
    shards.rename(tmp_path / "moved")
    (tmp_path / "new").rename(shards)
    new = opened(f"{address}/shards", tmp_path / "cache")
    assert new.fingerprint() != old.fingerprint()
    assert new.read(0) != first
    assert old.read(0) == first
    with pytest.raises(ShardError, match=r"shard-\d+\.tar"):  # never another image under an old name
        [old.read(i) for i in range(12)]


class Sums(torch.utils.data.Dataset):
    def __init__(self, source):
        self.source = source

    def __len__(self):
        return 4 * len(self.source)

    def __getitems__(self, numbers):
        indices = [number % len(self.source) for number in numbers]
        self.source.prefetch(indices)
        return [int(self.source.load(index).long().sum()) for index in indices]


def read_all(source, expected):
    sums = torch.cat(list(DataLoader(Sums(source), batch_size=3, num_workers=2, multiprocessing_context="fork")))
    assert sums.tolist() == 4 * expected


def test_processes_with_workers_read_from_a_faulty_server_with_a_small_cache(serve, shards, local, tmp_path):
    expected = [int(local.load(i).long().sum()) for i in range(12)]
    address, server = serve(shards, lambda path, number: "error" if number % 7 == 6 else "")
    source = opened(address, tmp_path / "cache", 40_000)
    source._images = ImageCache(1)
    source.load(0)  # connections of this process are open when the others start
    fork = multiprocessing.get_context("fork")
    ranks = [fork.Process(target=read_all, args=(source, expected)) for _ in range(2)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(60)
        assert rank.exitcode == 0
    assert sum(path.stat().st_size for path in copies(tmp_path / "cache")) <= 40_000
    assert source.read(1) == local.read(1)
    assert server.requests > 60


def test_a_server_that_falls_silent_is_left(serve, shards, tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "SILENCE", 0.2)
    address, _ = serve(shards, lambda path, number: time.sleep(1) if "shard" in path else "")
    start = time.perf_counter()
    with pytest.raises(ShardError, match=r"could not be read in 2 attempts"):
        RemoteFolder(address).read(ByteRange("shard-000000.tar", 0, 10), first=True)
    assert time.perf_counter() - start < 3
