"""Training from shards on a server: what is damaged or missing there ends the run in one sentence."""

import sys

import pytest

from experiments import train as program


@pytest.fixture
def train(shards, serve, tmp_path, monkeypatch):
    """train(misbehave, options) from an address, which is given back."""

    def start(misbehave=lambda path, number: "", *more):
        address, _ = serve(shards, misbehave)
        options = [f"data.train={address}", f"data.cache={tmp_path / 'cache'}", f"runs={tmp_path / 'runs'}", *more]
        options += ["data.procedural_share=0", "data.batch_size=12", "trainer.threads=1"]
        arguments = ["rt4ksr/s_x2_mini", "--tiny", "trainer.accelerator=cpu", "network.start=random", *options]
        monkeypatch.setattr(sys, "argv", ["train", *arguments])
        program.main()
        return address

    return start


def refused(train, capfd, misbehave, *more):
    with pytest.raises(SystemExit) as ended:
        train(misbehave, *more)
    assert ended.value.code == 2
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


def test_whole_shards_train_and_are_kept_for_the_next_run(train, tmp_path):
    train()
    assert len(list(tmp_path.glob("cache/*/samples/*/*"))) == 6


@pytest.mark.parametrize("workers", [0, 1])
def test_a_flipped_byte_ends_the_training(train, capfd, tmp_path, workers):
    said = refused(
        train, capfd, lambda path, number: "flip" if "shard-000001" in path else "", f"data.workers={workers}"
    )
    assert "/shard-000001.tar was altered: " in said
    assert "make shards-check" in said
    assert not list(tmp_path.glob("runs/*/*/checkpoints/*.ckpt"))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_missing_shard_ends_the_training(train, shards, capfd, workers):
    (shards / "shard-000001.tar").unlink()
    said = refused(train, capfd, lambda path, number: "", f"data.workers={workers}")
    assert "/shard-000001.tar is missing; check the address, or" in said


def test_a_cache_that_cannot_be_written_names_its_option(train, capfd, tmp_path):
    (tmp_path / "cache").touch()
    said = refused(train, capfd, lambda path, number: "")
    assert said.startswith("error: data.train=http://127.0.0.1:")
    assert said.endswith("; set data.cache to another folder")
