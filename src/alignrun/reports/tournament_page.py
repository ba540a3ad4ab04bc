"""The page of a tournament: win matrix, policies, and how far each is from an equilibrium."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from alignrun.evaluation.results import Answers, Bound, Estimate, PlayerResult, TournamentResult
from alignrun.evaluation.settled import verdict
from alignrun.reports import figures
from alignrun.reports.browsing import browsable, hidden_note
from alignrun.reports.curves import Line
from alignrun.reports.headline import abilities_in_words, certainty, headline, ratings_in_words
from alignrun.reports.page import render
from alignrun.reports.text import ABSENT, EXACT, Shown, clip, number, rate, shown, signed

FULL = 0.62
"""Opacity of the strongest shade: the text on it stays readable."""
PROMPT = 200
"""The maximum length of a prompt in a list."""


@dataclass(frozen=True, slots=True)
class Cell:
    """An entry of the win matrix."""

    value: str
    """The win rate by which rows are sorted; empty where it is not known."""
    shown: Shown
    shade: str
    mark: str
    """▲ if the row beats the column beyond its interval, ▼ if it loses."""
    own: bool


@dataclass(frozen=True, slots=True)
class Property:
    """A row of the table of policies."""

    title: str
    get: Callable[[PlayerResult], Shown]


def tournament_page(result: TournamentResult, answers: Sequence[Answers] = ()) -> str:
    """The HTML of a tournament's report; if answers are given, they can be browsed."""
    browsed = browsable(answers)
    return render(
        "tournament.html",
        title="Tournament",
        result=result,
        answers=browsed,
        left_out=hidden_note(browsed, answers),
        headline=list(headline(result)),
        certainty=certainty(result),
        exact=result.samples_per_prompt == 0,
        confidence=f"{result.confidence:.0%}",
        matrix=_matrix(result),
        shades=[rate(end) for end in _range(result)],
        properties=[(row.title, [row.get(player) for player in result.players]) for row in _properties(result)],
        ratings=[ratings_in_words(result), *abilities_in_words(result)],
        separating=[(clip(one.prompt, PROMPT), shown(one.separation, rate)) for one in result.separating],
        frontier=_frontier(result),
        unplaced=[player.name for player in result.players if _mark(player, result.reference, "") is None],
        bounds=_bounds(result),
    )


def _range(result: TournamentResult) -> tuple[float, float]:
    """The ends of the colour scale of the matrix, symmetric about one half."""
    values = [entry.value for entries in result.matrix for entry in entries if math.isfinite(entry.value)]
    reach = min(0.5, math.ceil(10 * max(abs(value - 0.5) for value in [*values, 0.6]) - EXACT) / 10)
    return 0.5 - reach, 0.5 + reach


def _matrix(result: TournamentResult) -> list[list[Cell]]:
    first, last = _range(result)

    def cell(entry: Estimate, own: bool) -> Cell:
        mark = {1: "▲", 0: "", -1: "▼"}[verdict(entry)]
        depth = (entry.value - first) / (last - first) if math.isfinite(entry.value) else 0.0
        value = str(entry.value) if math.isfinite(entry.value) else ""
        return Cell(value, shown(entry, rate), f"{FULL * depth:.3f}", mark, own)

    return [
        [cell(entry, row == column) for column, entry in enumerate(entries)]
        for row, entries in enumerate(result.matrix)
    ]


def _properties(result: TournamentResult) -> list[Property]:
    """The properties measured for at least one policy."""
    tau = "" if result.kl_tau is None else f", τ = {result.kl_tau:g}"
    reference = "its reference" if result.reference is None else "the reference"
    found = [
        Property("reference", lambda p: Shown(ABSENT if result.reference else p.reference or ABSENT)),
        Property(f"win rate against {reference}", lambda p: shown(p.win_rate, rate)),
        Property("average over the others", lambda p: shown(p.average, rate)),
        Property("share in the equilibrium of the win rates (maximal lottery)", lambda p: shown(p.share, rate)),
        Property("deviation rating", lambda p: shown(p.deviation, rate)),
        Property("α-rank", lambda p: shown(p.alpha_rank, rate)),
        Property("rating with the prompts as a player", lambda p: shown(p.hill_rating, rate)),
        Property("Elo", lambda p: shown(p.rating, signed)),
        Property("Elo, judges weighed by ability", lambda p: shown(p.by_ability, signed)),
        Property(
            _at_least("exploitability", [p.exploitability for p in result.players]), lambda p: _gain(p.exploitability)
        ),
        Property(
            _at_least("regularised exploitability", [p.regularised for p in result.players]) + tau,
            lambda p: _gain(p.regularised),
        ),
        Property(f"KL(policy ‖ {reference.removeprefix('the ')}), nats", lambda p: shown(p.kl, number)),
        Property("length, tokens", lambda p: shown(p.length, number)),
        Property("length, words", lambda p: shown(p.words, number)),
        Property("ends by itself", lambda p: shown(p.eos_rate, rate)),
        Property("distinct-1, -2, -3", lambda p: Shown(" ".join(f"{share:.2f}" for share in p.distinct) or ABSENT)),
        Property("trained with", lambda p: Shown(p.training_preference or ABSENT)),
        Property("win rate by its training preference", lambda p: shown(p.training_win_rate, rate)),
        Property("hacking gap", lambda p: shown(p.hacking_gap, rate)),
        Property("step", lambda p: shown(p.step, number)),
        Property("source", lambda p: Shown(p.source)),
    ]
    return [row for row in found if any(row.get(player) != Shown(ABSENT) for player in result.players)]


def _at_least(name: str, bounds: list[Bound | None]) -> str:
    """The name of a bound; only an exact one is called exploitability."""
    return f"{name}, at least" if any(bound and bound.proposals for bound in bounds) else name


def _gain(bound: Bound | None) -> Shown:
    return shown(bound.gain if bound else None, rate)


def _frontier(result: TournamentResult) -> Markup | None:
    """KL and win rate of every player that has both; None for fewer than two players."""
    marks = [_mark(player, result.reference, str(key)) for key, player in enumerate(result.players, start=1)]
    placed = [mark for mark in marks if mark is not None]
    return figures.frontier(placed, "frontier") if len(placed) > 1 else None


def _mark(player: PlayerResult, common: str | None, key: str) -> figures.Mark | None:
    itself = player.name in (player.reference, common)
    win_rate = Estimate(0.5, 0.5, 0.5) if itself else player.win_rate
    kl = player.kl or (Estimate(0.0, 0.0, 0.0) if itself else None)
    if win_rate is None or kl is None or not math.isfinite(win_rate.value + kl.value):
        return None
    return figures.Mark(f"{key} {player.name}", kl, win_rate)


def _bounds(result: TournamentResult) -> Markup | None:
    lines = [
        Line(f"{key} {player.name}", tuple((float(count), gain) for count, gain in player.exploitability.curve))
        for key, player in enumerate(result.players, start=1)
        if player.exploitability and len(player.exploitability.curve) > 1
    ]
    return figures.bounds(lines, "bounds") if lines else None
