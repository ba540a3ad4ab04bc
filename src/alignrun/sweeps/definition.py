"""The definition of a sweep, recorded in its directory on first use so that no other sweep is mixed into it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from hydra.core.override_parser.types import Override

from alignrun.errors import InputError, one_line
from alignrun.run.directory import write_text_atomic
from alignrun.security.files import read_json

FILE = "definition.json"


def join(directory: Path, overrides: Sequence[Override], files: Mapping[str, str] = MappingProxyType({})) -> None:
    """Record the sweep's definition, or extend the recorded one by more values of a swept key, or more swept keys.

    Args:
        directory: of the sweep.
        overrides: what it sets and sweeps.
        files: option → the user's own files with their digests.

    Raises:
        InputError: a key that is not swept has another value there, or is missing.
    """
    fixed = {**files, **{_key(override): _value(override) for override in overrides if _belongs(override)}}
    swept = {_key(override) for override in overrides if _belongs(override) and override.is_sweep_override()}
    fixed = {key: value for key, value in fixed.items() if key not in swept}
    before = _read(directory / FILE)
    if before is not None:
        known, known_swept = before
        for key in (*fixed, *known):
            ours, theirs = fixed.get(key), known.get(key)
            if ours != theirs and key not in swept | known_swept:
                there, here = (f"no {key}" if value is None else f"{key}={value}" for value in (theirs, ours))
                raise InputError(
                    f"{directory} holds another sweep, with {there}, and this one has {here}: choose another "
                    f"hydra.sweep.dir, or sweep over {key} to compare both"
                )
        swept |= known_swept
        fixed = {key: value for key, value in {**known, **fixed}.items() if key not in swept}
    content = json.dumps({"fixed": fixed, "swept": sorted(swept)}, indent=2)
    write_text_atomic(directory / FILE, content)


def _belongs(override: Override) -> bool:
    """Whether the override configures the runs, not their launcher."""
    return not override.get_key_element().lstrip("+~").startswith("hydra")


def _key(override: Override) -> str:
    return override.get_key_element().lstrip("+")


def _value(override: Override) -> str:
    return str(override.input_line).partition("=")[2]


def _read(file: Path) -> tuple[dict[str, str], set[str]] | None:
    if not file.is_file():
        return None
    try:
        found = read_json(file)
        return dict(found["fixed"]), set(found["swept"])
    except (InputError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{file} cannot be read ({one_line(error, 100)}): choose another hydra.sweep.dir") from None
