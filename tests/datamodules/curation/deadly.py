"""What a process measures in tests of the engines; it dies over some images, as a decoder may."""

import itertools
import os
import resource
import signal
from pathlib import Path

from datamodules.curation.measure import ending_after, measure_image


def measure(path, relative, settings, known, judging):
    first_time = Path(path).with_suffix(".seen")
    if relative.startswith("deadly") or (relative.startswith("once") and not first_time.exists()):
        first_time.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    threads = [os.environ.get(name) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")]
    if relative == "endless":
        with ending_after(0.2):
            sum(itertools.repeat(0))  # as in a decoder, no line of Python is reached again
    return {**known, "path": relative, "fingerprint": relative, "process": os.getpid(), "threads": threads}


def die_when_asked_to_judge(path, relative, settings, known, judging):
    if judging:
        os.kill(os.getpid(), signal.SIGKILL)
    return measure_image(path, relative, settings, known, judging)


def refuse(path, relative, settings, known, judging):
    raise ValueError(f"judge.folder=here: no model can be loaded for {relative}")


def measure_in_little_memory(path, relative, settings, known, judging):
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 64 * 1024**2,) * 2)
    return measure_image(path, relative, settings, known, judging)
