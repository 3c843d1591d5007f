import os

import pytest

from datamodules.cores import usable_cores
from datamodules.files import opened_beside, target_of, write_whole, written_beside


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_at_the_end_under_its_name(tmp_path):
    path = tmp_path / ".state.json"
    with written_beside(path) as part:
        part.write_text("all")
        assert names(tmp_path) == [part.name]
        assert part.name.startswith(".")
        assert target_of(part.name) == "state.json"
    assert path.read_text() == "all"
    write_whole(path, b"other", sync=True)
    assert path.read_bytes() == b"other"
    assert names(tmp_path) == [".state.json"]
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask():
    os.umask(mask := os.umask(0))
    return mask


def test_a_block_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.png"
    path.write_text("old")

    def fail():
        with opened_beside(path) as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.png"]


def test_writers_of_the_same_file_do_not_meet_though_their_process_numbers_are_equal(tmp_path):
    with opened_beside(tmp_path / "a") as first, opened_beside(tmp_path / "a") as second:
        first.write(b"first")
        second.write(b"second")
    assert (tmp_path / "a").read_bytes() == b"first"  # the last to end
    assert names(tmp_path) == ["a"]


def test_other_hidden_files_are_not_taken_for_unfinished_ones():
    assert target_of(".frame.0001.png.77.part.0123abcd") == "frame.0001.png"
    assert target_of(".a.tar.part") == "a.tar"  # as earlier versions named them
    assert not any(map(target_of, (".packing.json", "a.part", ".part", ".thesis.partial")))


def test_there_is_a_core_to_work_on():
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)
