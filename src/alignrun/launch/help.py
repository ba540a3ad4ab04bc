"""`alignrun --help` and `alignrun COMMAND --help`: what alignrun is, and what each command takes."""

from collections.abc import Iterable, Iterator

from rich.console import Console
from rich.padding import Padding
from rich.table import Table

from alignrun.config import Config
from alignrun.config.keys import keys, summary
from alignrun.config.roots import ROOTS
from alignrun.launch.choices import choices, groups
from alignrun.launch.commands import COMMANDS, OPTIONS
from alignrun.launch.key_help import short, show_topic, table
from alignrun.launch.key_table import flat_keys, sections

SHORT = """\
alignrun fine-tunes language models on preferences as a game, and measures whether the result is an equilibrium.

  alignrun experiment=demo              train a 135M model with Nash-MD on a CPU, in minutes
  alignrun algo=nash_md model=llama-8b  train: any algorithm, model, data and preference of `alignrun ls`
  alignrun plan model=llama-8b          memory, and which batches fit, before anything is loaded
  alignrun eval runs='[runs/A,runs/B]'  a tournament between runs
  alignrun help algo.kl_tau             what a key means; also a group, a choice or a command

`alignrun --help` lists all commands.
"""


def show_short(console: Console) -> None:
    """Print what alignrun is, with five commands."""
    console.print(SHORT, end="", highlight=False)


def show_usage(console: Console) -> None:
    """Print the usage of all commands."""
    _titled("", ((f"alignrun {command.usage}", command.summary) for command in COMMANDS.values()), console)
    console.print(
        "\n`alignrun COMMAND --help` explains one of them; `alignrun help` lists the keys, and `alignrun help KEY` "
        "explains one.",
        highlight=False,
    )


def show_help(topic: str, console: Console) -> None:
    """Print the help on a topic: a command, a key, a group or a choice; without one, an overview of the keys.

    Raises:
        InputError: there is no such topic.
    """
    if not topic:
        show_usage(console)
        _titled("Groups and sections of keys, each explained by `alignrun help NAME`", overview(), console)
    elif topic in COMMANDS:
        show_command(topic, console)
        if topic in groups():  # `data` is both
            console.print()
            show_topic(topic, console)
    else:
        show_topic(topic, console)


def show_command(verb: str, console: Console) -> None:
    """Print the usage, options, keys and examples of a command."""
    command = COMMANDS[verb]
    console.print(f"alignrun {command.usage}", style="bold", highlight=False)
    console.print(f"  {command.summary}", highlight=False)
    options = ((_option(name), OPTIONS[name].meaning) for name in (*command.options, *command.files))
    _titled("Options", options, console)
    _titled("Keys of this command alone", command.own_keys.items(), console)
    if command.keys == "own":
        root = ROOTS[verb]
        borrowed = "; what is null is taken from the runs" if verb in ("eval", "generate", "chat") else ""
        console.print(f"\nKeys{borrowed}", style="bold", highlight=False)
        (section,) = sections(root)
        table(((path, short(key.default), key) for path, key in flat_keys(section)), console)
        shared = [key.name for key in keys(root) if key.name in groups()]
        _titled("", ((name, f"`alignrun help {name}`") for name in shared), console)
    elif command.keys:
        _titled("Groups and sections of keys, each explained by `alignrun help NAME`", overview(), console)
    examples = ((line if "alignrun " in line else f"alignrun {line}", what) for line, what in command.examples)
    _titled("Examples", examples, console)


def _option(name: str) -> str:
    return "-m, --multirun" if name == "--multirun" else f"{name} {OPTIONS[name].value}".rstrip()


def overview() -> Iterator[tuple[str, str]]:
    """(name, meaning) of every group and section of a run's keys."""
    yield "algo", f"what is trained, and how: {', '.join(choices('algo'))}"
    yield "preference", f"what judges the completions: {', '.join(choices('preference'))}"
    for section in sections(Config):
        if section.prefix and not section.choice:
            yield section.prefix.rstrip("."), summary(section.kind).removesuffix(".")
    yield "recipe", f"what a model is trained on where no experiment is chosen: {', '.join(choices('recipe'))}"
    yield "experiment", f"presets: {', '.join(choices('experiment'))}"
    yield "seed", "seed of everything random"


def _titled(title: str, rows: Iterable[tuple[str, str]], console: Console) -> None:
    rows = list(rows)
    if not rows:
        return
    if title:
        console.print(f"\n{title}", style="bold", highlight=False)
    if max(len(name) for name, _ in rows) > console.width // 2 - 4:  # too wide for two columns
        for name, meaning in rows:
            console.print(f"  {name}", highlight=False, markup=False, soft_wrap=True)
            console.print(Padding(meaning, (0, 0, 0, 6)), highlight=False)
        return
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column()
    for name, meaning in rows:
        grid.add_row(f"  {name}", meaning)
    console.print(grid, highlight=False)
