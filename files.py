"""How the bundle writes files: whole or not at all.

Each file is made under a temporary name and then renamed, which the operating system does in one step. A run that is
killed, or a disk that is full, can therefore not leave half a file, nor take away the one that was there before.
"""

import json
import os
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

TEMPORARY = ".{}.whole-or-not.part"  # one fixed name for each file: what a killed run left is written over
LOCK = ".whole-or-not.lock"  # held by the run that writes to a folder; the system lets it go when that run ends


class InputError(ValueError):
    """An argument or a file of the user's cannot be used; the message is one line that names it."""


@contextmanager
def whole_file(path):
    """Yield a temporary path to write to, which becomes `path` when the block ends without an error.

    Missing folders are made. After an error the temporary file is gone and `path` is as it was.

    Raises
    ------
    OSError
        If the folder cannot be made or the file not be written; it names the file.
    InputError
        If `path` has no file name.
    """
    path = Path(path)
    if not path.name:
        raise InputError(f"{path}: found a folder, expected the name of a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(TEMPORARY.format(path.name))
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:  # that of a full disk does not say which file it met
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def writing_alone_in(*folders):
    """Make the folders to write to, and keep other runs out of them for the length of a block.

    Raises
    ------
    InputError
        If a folder cannot be written to, or another run is writing to it.
    """
    with ExitStack() as locks:
        for folder in {Path(folder).resolve(): folder for folder in folders}.values():
            try:
                Path(folder).mkdir(parents=True, exist_ok=True)
                (Path(folder) / LOCK).touch()  # or a folder that may not be written to would count as locked
                locks.enter_context(FileLock(Path(folder) / LOCK, timeout=0))
            except Timeout:
                raise InputError(f"{folder}: found another run writing to it, expected a folder of its own") from None
            except OSError as error:
                raise InputError(f"{folder}: {error.strerror}, expected a folder that can be written to") from error
        yield


def write_text(path, text):
    """Write `text` to `path` as UTF-8."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path, values):
    """Write a dict to `path` as JSON; a NaN or an infinity is a `ValueError`, since JSON has neither."""
    write_text(path, json.dumps(values, indent=2, allow_nan=False) + "\n")


def read_json(path):
    """Return the dict that `write_json` wrote to `path`; `InputError` if it holds something else."""
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise InputError(f"{path}: found something else, expected JSON as written by main.py")
    return values
