"""How the bundle writes files: whole or not at all.

A file is made under a temporary name and then renamed, which the operating system does in one step. So neither a run
that is killed nor a full disk leaves half a file, or takes away the file that was there before.
"""

import os
import sys
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path


class InputError(ValueError):
    """A file or folder of the user's cannot be used; the message is one line that names it."""


@contextmanager
def whole_file(path):
    """Yield a temporary path to write to, which becomes `path` when the block ends without an error.

    Missing folders are made. Raises `OSError`, which names the file, if it cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")  # a fixed name: what a killed run left is written over
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:  # that of a full disk does not say which file it met
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path, text):
    """Write `text` to `path` as UTF-8."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def say(text):
    """Print a line in ASCII, which every terminal takes; a reader who leaves (`main.py | head -1`) ends no work."""
    try:
        print(text.encode("ascii", "backslashreplace").decode(), flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python's flush at exit fails again


@contextmanager
def errors_in_one_line():
    """End the program with one line where a user's file or folder will not do, a training diverges, or on Ctrl-C."""
    program = Path(sys.argv[0]).name
    try:
        yield
    except (InputError, OSError, FloatingPointError, BrokenProcessPool) as error:
        print(f"{program}: error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"\n{program}: interrupted; with --resume it takes over what is trained", file=sys.stderr)
        sys.exit(130)
