"""`alignrun ls`: the available choices, one line each."""

from rich.console import Console
from rich.table import Table

from alignrun.errors import InputError, suggestion
from alignrun.launch.choices import choice_files, choices, first_comment, groups


def show(group: str | None, console: Console) -> None:
    """Print the choices of one group, or of all.

    Raises:
        InputError: there is no such group.
    """
    known = [name for name in groups() if choices(name)]
    if group is not None and group not in known:
        raise InputError(f"ls: there is no group {group}{suggestion(group, known)}")
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column()
    for name in [group] if group else known:
        for choice, file in sorted(choice_files(name).items()):
            table.add_row(f"{name}={choice}", first_comment(file))
    console.print(table, highlight=False)
