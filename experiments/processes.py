"""Processes that belong together, wherever they were started: found by a mark in their environment, and ended."""

import os
import signal
from pathlib import Path

import psutil

MARK = "SR_TRIAL"
"""Environment variable that holds the folder of the run for which a process works."""


def marked(folder: Path) -> list[psutil.Process]:
    """This machine's processes that work for a run, without the calling one.

    Their parents do not tell: torchrun starts its workers in sessions of their own, and they outlive it.
    """
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(MARK) == str(folder.resolve()):
                found.append(process)
        except (psutil.Error, OSError):  # of another user, or gone
            continue
    return found


def end_marked(folder: Path, seconds: float = 10.0) -> int:
    """Kill the processes that work for a run, those that they start meanwhile too; how many there were."""
    count = 0
    while processes := marked(folder):
        for process in processes:
            try:
                process.send_signal(signal.SIGKILL)
            except psutil.NoSuchProcess:
                continue
        _, left = psutil.wait_procs(processes, seconds)
        count += len(processes)
        if left:
            raise OSError(f"{folder}: process {left[0].pid} works for this run and does not end")
    return count
