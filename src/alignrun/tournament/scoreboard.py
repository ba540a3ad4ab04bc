"""A tournament on the terminal: the win matrix, the players, and what both say in a few sentences."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from alignrun.evaluation.results import Bound, Estimate, TournamentResult
from alignrun.evaluation.settled import caution, verdict
from alignrun.reports.headline import headline, ratings_in_words
from alignrun.security.text import counted

ABSENT = "–"


def show(result: TournamentResult, console: Console) -> None:
    """Print it."""
    console.print(_matrix(result), highlight=False)
    console.print(_players(result), highlight=False)
    for line in (*headline(result), ratings_in_words(result), *result.notes):
        console.print(Text(line), soft_wrap=True)


def _matrix(result: TournamentResult) -> Table:
    table = Table(
        title="P(row ≻ column): the row beats the column",
        caption=_caption(result),
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("")
    for player in result.players:
        table.add_column(Text(player.name), justify="right")
    for place, (player, row) in enumerate(zip(result.players, result.matrix, strict=True)):
        cells = ["" if column == place else f"{cell.value:.3f}{_mark(cell)}" for column, cell in enumerate(row)]
        table.add_row(Text(player.name), *cells)
    return table


def _caption(result: TournamentResult) -> str | None:
    """What a star means, or why there is none."""
    if not result.samples_per_prompt:
        return None
    return caution(result.prompts) or f"* ½ is outside the {result.confidence:.0%} interval"


def _mark(cell: Estimate) -> str:
    exact = cell.low == cell.high
    return "" if exact else "*" if verdict(cell) else " "


def _players(result: TournamentResult) -> Table:
    table = Table(title=Text(f"{result.preference}, {counted(result.prompts, 'prompt')}"), title_justify="left")
    table.add_column("")
    reference = "own reference" if result.reference is None else result.reference
    own = [ABSENT if result.reference else player.reference or ABSENT for player in result.players]
    columns = [
        ("reference", own),
        (f"≻ {reference}", [_interval(player.win_rate) for player in result.players]),
        ("Elo", [f"{player.rating.value:+.0f}" for player in result.players]),
        ("equilibrium", [f"{player.share.value:.3f}" for player in result.players]),
        ("exploitable ≥", [_bound(player.exploitability) for player in result.players]),
        (f"½ gap ≥, τ={result.kl_tau}", [_bound(player.regularised) for player in result.players]),
        (f"KL to {reference}", [_number(player.kl, 2) for player in result.players]),
        ("tokens", [_number(player.length, 1) for player in result.players]),
        ("ends", [_number(player.eos_rate, 2) for player in result.players]),
        ("distinct-2", [f"{player.distinct[1]:.2f}" if player.distinct else ABSENT for player in result.players]),
        ("hacking gap", [_interval(player.hacking_gap) for player in result.players]),
    ]
    shown = [(title, cells) for title, cells in columns if set(cells) != {ABSENT}]
    for title, _ in shown:
        table.add_column(Text(title), justify="right")
    for place, player in enumerate(result.players):
        table.add_row(Text(player.name), *(cells[place] for _, cells in shown))
    return table


def _number(value: Estimate | None, digits: int) -> str:
    return ABSENT if value is None else f"{value.value:.{digits}f}"


def _interval(value: Estimate | None) -> str:
    if value is None:
        return ABSENT
    return f"{value.value:.3f}" + ("" if value.low == value.high else f" ({value.low:.3f} to {value.high:.3f})")


def _bound(bound: Bound | None) -> str:
    return ABSENT if bound is None else _interval(bound.gain)
