"""Whether a feedback model was trained on the rows that it is evaluated on."""

import contextlib
from pathlib import Path
from typing import Any

from alignrun.config import DataConfig
from alignrun.errors import InputError
from alignrun.run.directory import RunDirectory
from alignrun.security.files import read_yaml

SAME = ("source", "path", "subset", "split", "game")
"""The keys by which two data sets have the same rows to train on."""


def trained_on(section: Any, data: DataConfig) -> list[str]:
    """The `path` of a preference, and of a panel's members, where the run that it names has trained on these data."""
    paths = [getattr(section, "path", None)]
    found = [str(path) for path in paths if path and _has_trained(path, data)]
    return found + [path for one in getattr(section, "members", {}).values() for path in trained_on(one, data)]


def _has_trained(path: str, data: DataConfig) -> bool:
    """Whether the run at a path, or above it, has trained on these data."""
    folder = Path(path).expanduser()
    with contextlib.suppress(InputError, OSError, LookupError, TypeError, AttributeError):
        for place in (folder, folder.parent):
            if (file := RunDirectory(place).config_file).is_file():
                stored = read_yaml(file)["data"]
                return all(_placed(stored.get(key)) == _placed(getattr(data, key)) for key in SAME)
    return False


def _placed(value: Any) -> Any:
    """A path as an absolute one, whatever folder it is seen from."""
    if isinstance(value, str) and Path(value).expanduser().exists():
        return str(Path(value).expanduser().resolve())
    return value
