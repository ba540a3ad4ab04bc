"""The groups of the configuration and their choices: those shipped, and those in the user's own folders."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from alignrun.config.shipped import config_folder

_own_folders: ContextVar[tuple[Path, ...]] = ContextVar("own_folders", default=())


@contextmanager
def searching(folders: Sequence[Path]) -> Iterator[None]:
    """Within the context, the choices of these folders are found too."""
    token = _own_folders.set(tuple(folders))
    try:
        yield
    finally:
        _own_folders.reset(token)


def own_folders() -> tuple[Path, ...]:
    """The user's folders of choices."""
    return _own_folders.get()


def groups() -> list[str]:
    """The configuration groups, sorted."""
    return sorted(path.name for path in config_folder().iterdir() if path.is_dir())


def choices(group: str) -> list[str]:
    """The choices of a group, sorted."""
    return sorted(choice_files(group))


def choice_files(group: str) -> dict[str, Path]:
    """Choice of a group → its file."""
    return {
        file.stem: file
        for folder in (*own_folders(), config_folder())  # a shipped choice comes last and stays
        for file in sorted((folder / group).glob("*.yaml"))
    }


def first_comment(file: Path) -> str:
    """The first comment of a YAML file that is neither one of Hydra's directives nor a launch line."""
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.startswith("#") and "@package" not in line and not line.startswith("# alignrun "):
            return line.lstrip("# ")
    return ""
