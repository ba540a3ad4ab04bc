"""A tournament on the terminal: the win matrix, the players, and a summary in a few sentences."""

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from alignrun.evaluation.results import Bound, Estimate, TournamentResult
from alignrun.evaluation.settled import caution, verdict
from alignrun.reports.fitted import Column, fitted
from alignrun.reports.headline import abilities_in_words, headline, ratings_in_words
from alignrun.security.text import counted

ABSENT = "–"
NAME = 24
"""A name wider than this is listed once above the tables, with a number."""


def show(result: TournamentResult, console: Console) -> None:
    """Print it in tables that fit the console; long names are replaced by numbers."""
    names = [player.name for player in result.players]
    if max(map(cell_len, names)) > NAME:
        for key, name in enumerate(names, start=1):
            console.print(Text(f"{key}  {name}"), soft_wrap=True)
        names = [str(key) for key in range(1, len(names) + 1)]
    for table in (*_matrix(result, names, console.width), *_players(result, names, console.width)):
        console.print(table, highlight=False)
    for line in (*headline(result), ratings_in_words(result), *abilities_in_words(result), *result.notes):
        console.print(Text(line), soft_wrap=True)


def _matrix(result: TournamentResult, names: list[str], width: int) -> list[Table]:
    columns = [
        Column(
            name,
            [
                "" if row == column else f"{entries[column].value:.3f}{_mark(entries[column])}"
                for row, entries in enumerate(result.matrix)
            ],
        )
        for column, name in enumerate(names)
    ]
    tables = fitted("P(row ≻ column): the row beats the column", names, columns, width)
    tables[-1].caption = _caption(result)
    return tables


def _caption(result: TournamentResult) -> str | None:
    """The meaning of a star, or why there are none."""
    if not result.samples_per_prompt:
        return None
    return caution(result.prompts) or f"* ½ is outside the {result.confidence:.0%} interval"


def _mark(cell: Estimate) -> str:
    exact = cell.low == cell.high
    return "" if exact else "*" if verdict(cell) else " "


def _players(result: TournamentResult, names: list[str], width: int) -> list[Table]:
    named = dict(zip((player.name for player in result.players), names, strict=True))
    reference = "own reference" if result.reference is None else named.get(result.reference, result.reference)
    own = [ABSENT if result.reference else named.get(player.reference or "", ABSENT) for player in result.players]
    columns = [
        ("reference", own),
        (f"≻ {reference}", [_interval(player.win_rate) for player in result.players]),
        ("Elo", [_points(player.rating) for player in result.players]),
        ("Elo by ability", [_points(player.by_ability) for player in result.players]),
        ("equilibrium", [f"{player.share.value:.3f}" for player in result.players]),
        ("exploitable ≥", [_bound(player.exploitability) for player in result.players]),
        (f"½ gap ≥, τ={result.kl_tau}", [_bound(player.regularised) for player in result.players]),
        (f"KL to {reference}", [_number(player.kl, 2) for player in result.players]),
        ("tokens", [_number(player.length, 1) for player in result.players]),
        ("ends", [_number(player.eos_rate, 2) for player in result.players]),
        ("distinct-2", [f"{player.distinct[1]:.2f}" if player.distinct else ABSENT for player in result.players]),
        ("hacking gap", [_interval(player.hacking_gap) for player in result.players]),
    ]
    shown = [Column(title, cells) for title, cells in columns if set(cells) != {ABSENT}]
    return fitted(f"{result.preference}, {counted(result.prompts, 'prompt')}", names, shown, width)


def _points(value: Estimate | None) -> str:
    return ABSENT if value is None else f"{value.value:+.0f}"


def _number(value: Estimate | None, digits: int) -> str:
    return ABSENT if value is None else f"{value.value:.{digits}f}"


def _interval(value: Estimate | None) -> str:
    if value is None:
        return ABSENT
    return f"{value.value:.3f}" + ("" if value.low == value.high else f" ({value.low:.3f} to {value.high:.3f})")


def _bound(bound: Bound | None) -> str:
    return ABSENT if bound is None else _interval(bound.gain)
