"""Create a folder with a unique name, even for two processes that start in the same second."""

from datetime import datetime
from itertools import count
from pathlib import Path

from alignrun.errors import InputError


def fresh_directory(parent: Path, suffix: str = "", key: str = "run.dir") -> Path:
    """Create PARENT/DATE_TIME plus the suffix, with a number appended if that exists; creating it reserves it.

    `key` is the configuration key that the error message recommends.

    Raises:
        InputError: it cannot be created.
    """
    stem = f"{datetime.now():%Y-%m-%d_%H-%M-%S}{suffix}"
    for number in count(1):
        path = parent / (stem if number == 1 else f"{stem}_{number}")
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            if not parent.is_dir():
                raise InputError(f"cannot create {path}: {parent} is a file; choose another {key}") from None
            continue
        except OSError as error:
            raise InputError(f"cannot create {path}: {error.strerror}; choose another {key}") from None
        return path
    raise AssertionError  # the counter is infinite
