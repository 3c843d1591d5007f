"""Run a command until its parent dies: `python -m experiments.guard COMMAND ...`, standard input a pipe of the parent.

The parent cannot see to it when it is killed outright: the pipe closes then, and the guard ends whatever works for the
run. It ends with the command's exit code, 128 + signal where that was killed.
"""

import os
import subprocess
import sys
import threading
from pathlib import Path

from experiments.processes import MARK, end_marked


def main() -> None:
    process = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    code = process.wait()
    end_marked(Path(os.environ[MARK]))  # what a rank has left behind
    os._exit(code if code >= 0 else 128 - code)  # the thread, still reading, would keep the interpreter from ending


def _end_with_parent() -> None:
    while os.read(0, 1):
        pass
    end_marked(Path(os.environ[MARK]))
    os._exit(1)


if __name__ == "__main__":
    main()
