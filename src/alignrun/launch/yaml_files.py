"""The content of configuration files: those shipped, and those that the user names."""

from pathlib import Path
from typing import Any

import yaml

from alignrun.errors import InputError, one_line

LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def contents(file: Path) -> dict[str, Any]:
    """The content of a configuration file. Raises InputError if it is not YAML with keys."""
    try:
        found = yaml.load(file.read_text(encoding="utf-8"), Loader=LOADER) or {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{file} cannot be read ({one_line(error, 120)})") from error
    if not isinstance(found, dict):
        raise InputError(f"{file} holds no keys: write KEY: VALUE")
    return found
