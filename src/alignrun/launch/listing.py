"""`alignrun ls`: the available choices, one line each."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from alignrun.errors import InputError
from alignrun.launch.compose import choices, config_folder, groups


def show(group: str | None, console: Console) -> None:
    """Print the choices of one group, or of all.

    Raises:
        InputError: there is no such group.
    """
    known = [name for name in groups() if choices(name)]
    if group is not None and group not in known:
        raise InputError(f"ls: there is no group {group}: choose from {', '.join(known)}")
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column()
    for name in [group] if group else known:
        for choice in choices(name):
            table.add_row(f"{name}={choice}", describe(config_folder() / name / f"{choice}.yaml"))
    console.print(table, highlight=False)


def describe(file: Path) -> str:
    """The first comment of a YAML file that is not one of Hydra's directives."""
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.startswith("#") and "@package" not in line:
            return line.lstrip("# ")
    return ""
