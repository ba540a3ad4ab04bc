"""`alignrun cp`: a copy of a configuration to edit."""

import shlex
from pathlib import Path

from rich.console import Console

from alignrun.errors import InputError, did_you_mean
from alignrun.launch.choices import choice_files, groups

PREFIX = "my_"
"""Precedes the name of a choice that is copied into a folder: it may not have the name of a shipped one."""


def copy(source: str, destination: str, console: Console) -> None:
    """Copy a choice to a file or into a folder, and say how to use it.

    Raises:
        InputError: there is no such choice, the file exists, or no run could use it there.
    """
    group, _, name = source.replace("=", "/", 1).partition("/")
    if group not in groups():
        raise InputError(
            f"cp: there is no group {group}{did_you_mean(group, groups())}: write GROUP/CHOICE, as in experiment/panel"
        )
    files = choice_files(group)
    if name not in files:
        raise InputError(
            f"cp: {group}={name} does not exist{did_you_mean(name, list(files)) or f': see `alignrun ls {group}`'}"
        )
    target = _target(group, name, destination)
    text = files[name].read_text(encoding="utf-8")
    use = ["--config", str(target)]
    if group != "experiment":
        use = ["--config-dir", str(target.parent.parent), f"{group}={target.stem}"]
    command = f"alignrun {shlex.join(use)}"
    text = text.replace(f"# alignrun {group}={name}", f"# {command}", 1)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise InputError(f"cp: {target} exists, and is not overwritten: name another file") from None
    except OSError as error:
        raise InputError(f"cp: {target} cannot be written ({error.strerror})") from None
    console.print(f"{target}: edit it, then {command}", highlight=False)


def _target(group: str, name: str, destination: str) -> Path:
    """The file to write. Raises InputError if a choice would not be found there."""
    target = Path(destination).expanduser()
    if target.is_dir() or destination.endswith("/"):
        return target / f"{name}.yaml" if group == "experiment" else target / group / f"{PREFIX}{name}.yaml"
    if target.suffix != ".yaml":
        raise InputError(
            f"cp: {destination} is neither a folder nor a .yaml file: write {destination}/ or {destination}.yaml"
        )
    if group != "experiment" and target.parent.name != group:
        raise InputError(
            f"cp: choices of {group} are found in a folder of that name: write {target.parent / group / target.name}"
        )
    if group != "experiment" and target.stem in choice_files(group):
        raise InputError(f"cp: {group}={target.stem} exists: choose another name than {target.name}")
    return target
