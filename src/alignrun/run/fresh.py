"""A folder of one's own: two that start in one second never get the same."""

from datetime import datetime
from itertools import count
from pathlib import Path

from alignrun.errors import InputError


def fresh_directory(parent: Path, suffix: str = "", key: str = "run.dir") -> Path:
    """Make PARENT/DATE_TIME followed by the suffix, numbered where that is taken; making it is what takes it.

    `key` is the configuration key that names another folder, for messages.

    Raises:
        InputError: it cannot be made.
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
    raise AssertionError  # the numbers do not end
