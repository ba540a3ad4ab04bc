"""The user's own configuration: `--config FILE`, `--config-dir DIR`, and Hydra's `hydra.searchpath`.

Hydra composes a file last, on top of the defaults and an experiment, and the command line overrides it. A whole
configuration, such as the config.yaml of a run, is data: `${…}` in it is text.
"""

import hashlib
import importlib.util
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from alignrun.config.shipped import config_folder
from alignrun.errors import InputError
from alignrun.launch.choices import choice_files, groups, searching
from alignrun.launch.commands import BOTH, COMMANDS

SEARCHPATH = "hydra.searchpath"
PASSED_ON = "ALIGNRUN_OWN_FILES"
"""The environment variable that passes the files of a sweep to its runs, with any launcher."""


@dataclass(frozen=True, slots=True)
class OwnFiles:
    """What the command line names."""

    configs: tuple[Path, ...] = ()
    """Files, or folders of runs."""
    folders: tuple[Path, ...] = ()
    verb: str = ""

    def arguments(self) -> list[str]:
        """The options that name the same files from any folder."""
        files = [f"--config={file.absolute()}" for file in self.configs]
        return files + [f"--config-dir={folder.absolute()}" for folder in self.folders]

    def digests(self) -> dict[str, str]:
        """Option → its files, each with a digest of its content: of a folder, of its choices."""
        contents = {path: [file_of(path)] for path in self.configs}
        contents |= {folder: sorted(folder.glob("*/*.yaml")) for folder in self.folders}

        def digest(path: Path) -> str:
            whole = hashlib.sha256(b"".join(file.read_bytes() for file in contents[path]))
            return f"{path.absolute()} ({whole.hexdigest()[:12]})"

        named = zip(BOTH, (self.configs, self.folders), strict=True)
        return {option: " ".join(map(digest, files)) for option, files in named if files}


_named: ContextVar[OwnFiles] = ContextVar("own_files", default=OwnFiles())  # noqa: B039 - it is frozen


def named() -> OwnFiles:
    """The files of this command."""
    return _named.get()


def split(arguments: Sequence[str]) -> tuple[OwnFiles, list[str]]:
    """The files that the arguments name, and the other arguments.

    Raises:
        InputError: a file or folder is missing, or the command takes none.
    """
    configs: list[Path] = []
    folders: list[Path] = []
    others: list[str] = []
    waiting = list(arguments)
    while waiting:
        argument = waiting.pop(0)
        option, given, value = argument.partition("=")
        if option.lstrip("+") == SEARCHPATH and given:
            folders += [folder_of(entry.strip(" '\"")) for entry in value.strip("[]").split(",") if entry.strip()]
        elif option not in BOTH:
            others.append(argument)
        else:
            if not given:
                value = waiting.pop(0) if waiting else ""
            if not value or value.startswith("-"):
                raise InputError(
                    f"{option} needs a value: write {option} {'FILE.yaml' if option == BOTH[0] else 'DIR'}"
                )
            if option == BOTH[0]:
                configs.append(_file(value))
            else:
                folders.append(folder_of(value))
    verb = others[0] if others and others[0] in COMMANDS else ""
    own = OwnFiles(tuple(configs), tuple(folders), verb)
    for option, files in zip(BOTH, (own.configs, own.folders), strict=True):
        if files and option not in COMMANDS[verb].files:
            raise InputError(f"alignrun {verb} does not take {option}: see `alignrun {verb} --help`")
    return own, others


def _file(value: str) -> Path:
    path = Path(value).expanduser()
    if file_of(path).is_file():
        return path
    if path.is_dir():
        raise InputError(f"--config {value}: {path} is not a run: it has no config.yaml")
    if path.stem in choice_files("experiment"):
        raise InputError(f"--config {value}: there is no such file: did you mean experiment={path.stem}?")
    raise InputError(f"--config {value}: there is no such file")


def file_of(path: Path) -> Path:
    """The file of a `--config` path, which may be the folder of a run."""
    return path / "config.yaml" if path.is_dir() else path


def folder_of(value: str) -> Path:
    """The folder that a search path names: a path, `file://PATH`, or `pkg://PACKAGE`.

    Raises:
        InputError: there is no such folder, it holds no choices, or one of them has the name of a shipped one.
    """
    if value.startswith("pkg://"):
        folder = _package(value.removeprefix("pkg://"))
    else:
        folder = Path(value.removeprefix("file://")).expanduser()
    if not folder.is_dir():
        raise InputError(f"{value} is not a folder: name one with choices, such as DIR/algo/mine.yaml")
    found = [(group, file) for group in groups() for file in (folder / group).glob("*.yaml")]
    if not found:
        raise InputError(f"{value} has no choices: put them into folders called {', '.join(groups())}")
    for group, file in found:
        if (config_folder() / group / file.name).is_file():
            raise InputError(f"{file} has the name of a shipped choice, {group}={file.stem}: rename it")
    return folder


def _package(name: str) -> Path:
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"pkg://{name} is not an installed package")
    return Path(next(iter(spec.submodule_search_locations)))


@contextmanager
def using(own: OwnFiles) -> Iterator[None]:
    """Within the context, configurations are composed with these files."""
    from alignrun.launch.own_config import searchpath

    found = tuple(folder_of(entry) for file in own.configs for entry in searchpath(file))
    own = OwnFiles(own.configs, (*own.folders, *found), own.verb)
    token = _named.set(own)
    try:
        with searching(own.folders):
            yield
    finally:
        _named.reset(token)


def passed_on() -> list[str]:
    """The options of a sweep's files, in one of its runs."""
    return os.environ.get(PASSED_ON, "").splitlines()
