"""`make demo`: train the codec, then the student without and with L_AP, measure both, and upscale a photograph to 4K.

Every stage is the command that a user would type; what is done already is skipped, what was interrupted is resumed.
"""

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import torch
from tqdm import tqdm

from experiments.command_line import quiet, user_errors
from experiments.demo_report import STUDENT_L_AP, DemoReport, upscale_large_photograph
from experiments.measure import STUDENT
from experiments.options import from_yaml, load_options

STEP = re.compile(r"(\d+)/(\d+) \[")
POLL_SECONDS = 1.0
CODEC_SECTIONS = ("codec", "codec_training", "data", "perceptual", "trainer")
"""Sections of the options whose overrides reach the codec's training; all but the first two reach the students' too."""


class Stage:
    """One training of the demo: an experiment under a name, in a process of its own, its output in a log file."""

    def __init__(self, folder: Path, name: str, experiment: str, overrides: list[str], threads: int) -> None:
        self.name = name
        self.folder = folder / name
        self.checkpoint = self.folder / "checkpoints" / "last.ckpt"
        self.log = folder / f"{name}.log"
        self.experiment = experiment
        self.overrides = [f"runs={folder}", f"name={name}", f"trainer.threads={threads}", *overrides]
        self.options = load_options(experiment, self.overrides)
        self.steps = self.options.trainer.steps
        self.environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}

    def done(self) -> bool:
        """Whether it is finished; ValueError where the folder holds a training with other options."""
        saved = self.folder / "options.yaml"
        if self.checkpoint.exists() and saved.exists():
            there = from_yaml(saved.read_text(), origin=str(saved))
            there.trainer.threads = self.options.trainer.threads  # the cores of that day
            if there != self.options:
                raise ValueError(
                    f"{self.folder} holds a training with other options (seed, SET= or an older version of the demo); "
                    "give this one another folder with DEMO=, or remove that one"
                )
        return (self.folder / "done").exists()

    def start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "experiments.train"]
        if self.checkpoint.exists():
            command += ["--resume", str(self.checkpoint)]
        else:
            (self.folder / "options.yaml").unlink(missing_ok=True)  # of a run that ended before its first checkpoint
            command += [self.experiment, *self.overrides]
        with self.log.open("wb") as log:
            return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=self.environment)

    def step(self) -> int:
        """Steps done so far, read off the progress bar in the log."""
        with self.log.open("rb") as log:
            log.seek(max(0, self.log.stat().st_size - 4000))
            lines = re.split(r"[\r\n]", log.read().decode(errors="replace"))
        found = [STEP.search(line) for line in lines if line.startswith("Epoch")]
        return max((int(match[1]) for match in found if match), default=0)


def run(stages: list[Stage]) -> None:
    """Run stages side by side under one progress bar; RuntimeError with the end of the log where one fails."""
    waiting = [stage for stage in stages if not stage.done()]
    if not waiting:
        return
    processes = {stage.name: stage.start() for stage in waiting}
    try:
        _watch(waiting, processes)
    finally:
        for process in processes.values():
            process.terminate()
        finished = {name for name, process in processes.items() if process.wait() == 0}
    for stage in waiting:
        if stage.name in finished:
            (stage.folder / "done").touch()
    for stage in waiting:
        if stage.name not in finished:
            tail = stage.log.read_text(errors="replace")[-1500:]
            raise RuntimeError(f"training {stage.name} failed, see {stage.log}; its last lines:\n{tail}")


def _watch(stages: list[Stage], processes: dict[str, subprocess.Popen[bytes]]) -> None:
    names, steps = " + ".join(stage.name for stage in stages), sum(stage.steps for stage in stages)
    with tqdm(total=steps, desc=names, unit="step", mininterval=5) as bar:
        while any(process.poll() is None for process in processes.values()):
            time.sleep(POLL_SECONDS)
            bar.update(sum(stage.step() for stage in stages) - bar.n)
            if any(process.poll() for process in processes.values()):
                return


def demo(folder: Path, seed: int, overrides: list[str]) -> None:
    """Run all stages below `folder`, then measure, show and upscale."""
    started = time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    # Half of the cores for each training: the two students run side by side, and on two cores a second thread that has
    # to share its core with anything else costs far more than it brings.
    threads = max(torch.get_num_threads() // 2, 1)
    codec = Stage(folder, "codec", "f16_vae/small", [f"seed={seed}", *_of(overrides, CODEC_SECTIONS)], threads)
    print(f"1/4 The codec learns to squeeze images 16 times per side; log: {codec.log}", flush=True)
    run([codec])
    of_students = [item for item in overrides if item not in _of(overrides, ("codec", "codec_training"))]
    with_codec = [f"seed={seed}", *of_students, f"codec.path={codec.folder / 'codec'}"]
    baseline = Stage(folder, "student", "op4ksr/demo", with_codec, threads)
    with_l_ap = Stage(folder, "student_l_ap", "op4ksr/demo_l_ap", with_codec, threads)
    print("2/4 Two students learn from the same seed and batches, without and with L_AP", flush=True)
    run([baseline, with_l_ap])
    print("3/4 Both are measured beside their references", flush=True)
    results = DemoReport({STUDENT: baseline.checkpoint, STUDENT_L_AP: with_l_ap.checkpoint})
    table, picture = results.table(), folder / "comparison.png"
    (folder / "table.md").write_text(table)
    results.comparison().save(picture)
    print("4/4 A photograph of 1024 x 1024 px becomes 4096 x 4096 in one piece", flush=True)
    large = upscale_large_photograph(folder, with_l_ap.checkpoint)
    print(f"\n{table}\ncomparison   {picture}\n4096 x 4096  {large}\nTensorBoard  make board RUNS={folder}")
    print(f"{(time.perf_counter() - started) / 60:.1f} minutes in all")


def _of(overrides: list[str], sections: tuple[str, ...]) -> list[str]:
    return [item for item in overrides if item.split(".")[0] in sections]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("overrides", nargs="*", default=[], help="key=value ... (SET=)")
    parser.add_argument("--folder", type=Path, default=Path("runs/demo"), help="where everything goes (DEMO=)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the three trainings (SEED=)")
    arguments = parser.parse_intermixed_args()
    quiet()
    with user_errors():
        demo(arguments.folder, arguments.seed, arguments.overrides)


if __name__ == "__main__":
    main()
