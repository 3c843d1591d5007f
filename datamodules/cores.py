"""How many cores there are to work with."""

import os


def usable_cores() -> int:
    """Cores that this process may run on, at least 1; all of the machine where the system does not tell (macOS)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
