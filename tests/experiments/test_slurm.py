"""experiments/slurm/study.sbatch without SLURM: what it does with signals, exit codes and a missing installation."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "experiments" / "slurm" / "study.sbatch"

MAKE = """#!/bin/bash
if [ "$1" = --question ]; then [ -e .venv/.installed ]; exit; fi
trap 'echo "study: TERM" >> said; exit 143' TERM
echo "study $STUDY" >> said
[ "$STUDY" = quick ] && exit 2
for _ in $(seq 100); do sleep 0.1; done
"""
SCONTROL = """#!/bin/bash
echo "scontrol $*" >> said
"""

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")


def start(folder, study, installed=True):
    (folder / "bin").mkdir()
    for name, text in {"make": MAKE, "scontrol": SCONTROL}.items():
        (folder / "bin" / name).write_text(text)
        (folder / "bin" / name).chmod(0o755)
    if installed:
        (folder / ".venv").mkdir()
        (folder / ".venv" / ".installed").touch()
    search = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": search, "STUDY": study, "SLURM_JOB_ID": "17"}
    return subprocess.Popen(["bash", SCRIPT], cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)


def wait_for(folder, text, seconds=10):
    end = time.monotonic() + seconds
    while not ((folder / "said").exists() and text in (folder / "said").read_text()):
        assert time.monotonic() < end, f"{text} was not said"
        time.sleep(0.05)


def test_it_is_a_script_that_bash_can_read():
    assert not subprocess.run(["bash", "-n", SCRIPT], check=False).returncode


@pytest.mark.parametrize(
    ("sent", "requeued"),
    [(signal.SIGUSR2, ["scontrol requeue 17"]), (signal.SIGTERM, [])],
    ids=["time limit", "scancel"],
)
def test_a_signal_ends_the_study_and_the_time_limit_queues_the_task_again(tmp_path, sent, requeued):
    process = start(tmp_path, "long")
    wait_for(tmp_path, "study long")
    process.send_signal(sent)
    assert process.wait(10) == 143
    assert (tmp_path / "said").read_text().splitlines() == ["study long", "study: TERM", *requeued]


def test_the_exit_code_is_the_study_s(tmp_path):
    assert start(tmp_path, "quick").wait(10) == 2
    assert (tmp_path / "said").read_text().splitlines() == ["study quick"]


def test_without_an_installation_it_says_what_to_do(tmp_path):
    process = start(tmp_path, "long", installed=False)
    assert process.wait(10) == 2
    assert "make install" in process.stderr.read()
    assert not (tmp_path / "said").exists()
