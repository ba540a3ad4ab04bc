"""A tournament on an open wandb run: the panels of its page as native charts and tables."""

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from alignrun.evaluation.results import Bound, Estimate, PlayerResult, TournamentResult
from alignrun.reports.headline import favourite
from alignrun.reports.page import COMPLETION_LIMIT
from alignrun.security.text import visible

IN_SUMMARY = {"win_rate", "average", "share", "rating", "exploitability", "regularised", "hacking_gap", "kl"}
"""The fields of a player in the run's overview; the rest is in the table."""
COMPARISON_COLUMNS = {
    "prompt": "prompt",
    "first_player": "player",
    "first": "player's completion",
    "second_player": "opponent",
    "second": "opponent's completion",
}
"""The texts of a comparison and their column names."""


def log_tournament(run: Any, result: TournamentResult) -> None:
    """Log the matrix, the players, their ratings, the frontier, the bounds and the comparisons; fill the summary."""
    panels = dict(_tables(result)) | dict(_charts(result))
    run.log({f"tournament/{name}": panel for name, panel in panels.items()})
    run.summary.update({f"tournament/{name}": value for name, value in _summary(result)})


def _tables(result: TournamentResult) -> Iterator[tuple[str, Any]]:
    import wandb

    names = [name for name, _ in _named(result)]
    rows = list(zip(names, result.matrix, strict=True))
    yield (
        "row_beats_column",
        wandb.Table(["row beats column", *names], [[name, *(entry.value for entry in row)] for name, row in rows]),
    )
    pairs = [
        [name, other, entry.value, entry.low, entry.high]
        for name, row in rows
        for other, entry in zip(names, row, strict=True)
        if other != name
    ]
    yield "row_beats_column_intervals", wandb.Table(["row", "beats column", "P", "low", "high"], pairs)
    players = [dict(_measured(player)) for player in result.players]
    columns = list(dict.fromkeys(column for values in players for column in values))
    yield (
        "players",
        wandb.Table(
            ["player", *columns],
            [[name, *map(values.get, columns)] for name, values in zip(names, players, strict=True)],
        ),
    )
    if result.separating:
        found = [[visible(one.prompt[:COMPLETION_LIMIT]), one.separation] for one in result.separating]
        yield "separating_prompts", wandb.Table(["prompt", "separation"], found)
    if result.comparisons:
        texts = [
            [visible(getattr(pair, name)[:COMPLETION_LIMIT]) for name in COMPARISON_COLUMNS]
            for pair in result.comparisons
        ]
        judged = [[*row, pair.preference] for row, pair in zip(texts, result.comparisons, strict=True)]
        yield "comparisons", wandb.Table([*COMPARISON_COLUMNS.values(), "P(player beats opponent)"], judged)


def _charts(result: TournamentResult) -> Iterator[tuple[str, Any]]:
    import wandb

    ratings = wandb.Table(["player", "Elo"], [[name, player.rating.value] for name, player in _named(result)])
    yield "ratings", wandb.plot.bar(ratings, "player", "Elo", title="Elo")
    placed = [
        [name, player.kl.value, player.win_rate.value]
        for name, player in _named(result)
        if player.kl is not None and player.win_rate is not None
    ]
    if placed:
        table = wandb.Table(["player", "KL", "win rate"], placed)
        yield "frontier", wandb.plot.scatter(table, "KL", "win rate", title="win rate against the reference by KL")
    curves = [(name, player.exploitability.curve) for name, player in _named(result) if player.exploitability]
    curves = [(name, curve) for name, curve in curves if curve]
    if curves:
        yield (
            "bounds",
            wandb.plot.line_series(
                xs=[[count for count, _ in curve] for _, curve in curves],
                ys=[[gain for _, gain in curve] for _, curve in curves],
                keys=[name for name, _ in curves],
                title="exploitability, lower bound",
                xname="proposals",
            ),
        )


def _summary(result: TournamentResult) -> Iterator[tuple[str, float | str]]:
    yield "most_preferred", visible(favourite(result).name)
    yield "value", result.value
    yield "misfit", result.misfit
    yield "cycles", len(result.cycles)
    yield from ((f"ability/{visible(one.name)}", one.ability.value) for one in result.judges)
    for name, player in _named(result):
        yield from ((f"{key}/{name}", value) for key, value in _measured(player) if key in IN_SUMMARY)


def _named(result: TournamentResult) -> list[tuple[str, PlayerResult]]:
    return [(visible(player.name), player) for player in result.players]


def _measured(player: PlayerResult) -> Iterator[tuple[str, float | str]]:
    """Every field of a player that fits a table, with two more columns for an interval."""
    for field in fields(player):
        value = getattr(player, field.name)
        if isinstance(value, Bound):
            yield f"{field.name}_proposals", value.proposals
            value = value.gain
        if isinstance(value, Estimate):
            yield field.name, value.value
            yield f"{field.name}_low", value.low
            yield f"{field.name}_high", value.high
        elif field.name == "distinct":
            yield from ((f"distinct_{size}", share) for size, share in enumerate(value, start=1))
        elif field.name != "name" and value is not None:
            yield field.name, visible(value) if isinstance(value, str) else value
