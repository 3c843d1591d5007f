"""Two gloo processes on the CPU run every shipped experiment, and train what one process trains."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from experiments.options import load_options, shipped_experiments
from experiments.train import train

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.timeout(900)  # one fixture trains everything, and a machine may be busy
ON_TWO = ["trainer.devices=2", "trainer.strategy=ddp"]
# One pair of processes for all experiments: starting one costs more than its two steps.
ALL_IN_ONE = """
import sys
from experiments.train import main
for arguments in sys.stdin.read().splitlines():
    sys.argv = ["train", *arguments.split()]
    main()
"""


def overrides_for(paths, runs):
    return [f"runs={runs}", "trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.threads=1", *paths]


def environment(**more):
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def runs_on_two(bases, tmp_path_factory):
    """Folder of the runs of all shipped experiments, each on the same two processes, as a cluster would start them."""
    runs, port = tmp_path_factory.mktemp("two"), str(free_port())
    lines = [" ".join([name, "--tiny", *overrides_for(bases(name), runs), *ON_TWO]) for name in shipped_experiments()]
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", ALL_IN_ONE],
            env=environment(MASTER_ADDR="localhost", MASTER_PORT=port, LOCAL_RANK=str(rank), WORLD_SIZE="2"),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in ranks:
        process.stdin.write("\n".join(lines))
        process.stdin.close()
        process.stdin = None
    errors = [process.communicate(timeout=600)[1][-3000:] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], "\n".join(errors)
    return runs


def contents(run):
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


def scalars(run):
    accumulator = EventAccumulator(str(run)).Reload()
    tags = [tag for tag in accumulator.Tags()["scalars"] if tag.startswith(("train/", "val/"))]
    return {(tag, event.step): event.value for tag in tags for event in accumulator.Scalars(tag)}


def largest_difference(first, second):
    assert first.keys() == second.keys()
    return max((first[name] - value).abs().max().item() for name, value in second.items())


@pytest.mark.parametrize("name", shipped_experiments())
def test_two_processes_train_what_one_does(name, runs_on_two, bases, tmp_path):
    options = load_options(name, overrides_for(bases(name), tmp_path), tiny=True)
    single = train(options)
    two, one = contents(runs_on_two / f"{name}-tiny"), contents(single)
    assert two["global_step"] == one["global_step"] == 2

    # the first steps of Adam follow the sign of a gradient, also where it is little more than rounding
    limit = max(1e-5, 0.2 * options.optimizer.learning_rate)
    assert largest_difference(two["state_dict"], one["state_dict"]) < limit
    if options.ema.decay:
        shadows = [checkpoint["callbacks"]["Ema"]["shadow"] for checkpoint in (two, one)]
        assert largest_difference(*shadows) < limit
    # Adam hides the gradients' size; their first moments do not, and half a batch would give others.
    assert len(two["optimizer_states"]) == len(one["optimizer_states"])
    for side, other in zip(two["optimizer_states"], one["optimizer_states"], strict=True):
        moments, expected = side["state"], other["state"]
        for number, state in expected.items():
            size = state["exp_avg"].abs().max().item()
            # 1e-8: gradients that cancel to zero, as of a hinge loss at a head's bias, are rounding alone
            assert (moments[number]["exp_avg"] - state["exp_avg"]).abs().max().item() <= 5e-2 * size + 1e-8
        assert max(state["exp_avg"].abs().max().item() for state in expected.values()) > 1e-5

    assert scalars(runs_on_two / f"{name}-tiny") == pytest.approx(scalars(single), rel=1e-3, abs=1e-4)
    assert len(list((runs_on_two / f"{name}-tiny").glob("events.out.tfevents.*"))) == 1, "rank zero alone logs"


def test_the_command_starts_its_second_process_itself(tmp_path):
    overrides = [*overrides_for([], tmp_path), *ON_TWO, "trainer.panel_images=0"]
    command = [sys.executable, "-m", "experiments.train", "f16_vae/small", "--tiny", *overrides]
    run = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=200)
    assert run.returncode == 0, run.stderr[-3000:]
    assert contents(tmp_path / "f16_vae" / "small-tiny")["global_step"] == 2
    assert (tmp_path / "f16_vae" / "small-tiny" / "codec" / "config.json").is_file()
    assert run.stdout.count("parameters") == 1, "rank zero alone speaks"
