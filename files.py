"""How the scripts write files, whole or not at all; how they print, and how they end.

A file is made under a temporary name and then renamed, which the operating system does in one step. If a run
is killed or the disk is full, the earlier file stays and no half file is left.
"""

import os
import signal
import sys
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path


class InputError(ValueError):
    """What the user asked for cannot be done; the message says why."""


@contextmanager
def whole_file(path):
    """Yield a temporary path to write to, which becomes `path` when the block ends without an error.

    Missing folders are made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")  # one name, so that what a killed run left is overwritten
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path, text):
    """Write `text` to `path` as UTF-8."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def say(text):
    """Print a line in ASCII, which every terminal takes; if the reader of a pipe has left, the work goes on."""
    try:
        print(text.encode("ascii", "backslashreplace").decode(), flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python's flush at exit fails again


@contextmanager
def errors_in_one_line():
    """Turn a user's errors, a diverging training and Ctrl-C into one line and an exit status."""
    program = Path(sys.argv[0]).name
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an exception, so that joblib ends its workers
    if sys.stderr is None:  # closed by 2>&-; workers need an open one
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
        os.set_inheritable(sys.stderr.fileno(), True)
    try:
        yield
    except (InputError, OSError, FloatingPointError, BrokenProcessPool) as error:
        print(f"{program}: error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"\n{program}: interrupted; finished trainings are kept for --resume", file=sys.stderr)
        sys.exit(130)
