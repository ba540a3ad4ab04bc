"""Tournament results from completions and comparisons, or from a game's probabilities.

Shape legend: X prompts, n players, K completions of each for a prompt.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from alignrun import games
from alignrun.evaluation import standings
from alignrun.evaluation.abilities import abilities
from alignrun.evaluation.best_of_n import best_response_bound, regularised_bound
from alignrun.evaluation.bootstrap import bootstrap_estimates
from alignrun.evaluation.completions import Drawn
from alignrun.evaluation.cyclic_ratings import alpha_rank, deviation_ratings
from alignrun.evaluation.diversity import distinct
from alignrun.evaluation.exact import played
from alignrun.evaluation.intervals import SHARE, UNBOUNDED, Limits
from alignrun.evaluation.king_of_the_hill import SLACK, king_of_the_hill
from alignrun.evaluation.results import (
    Answers,
    Bound,
    Comparison,
    Completion,
    Estimate,
    Judge,
    PlayerResult,
    SeparatingPrompt,
)

Array = NDArray[np.float64]
MANY = 1_000_000
"""The number of games of a pair whose win rate is exact, so large that the drawn game of ratings has no effect."""


@dataclass(frozen=True, slots=True)
class Participant:
    """A policy in the tournament."""

    name: str
    source: str
    step: int | None
    reference: int | None = None
    """The index of the player that its KL and win rate refer to; its own index for a reference."""
    training_preference: str | None = None
    training_rates: Array | None = None
    """[X] P(policy ≻ reference | x) under the preference that it was trained with."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """The samples of a policy."""

    drawn: Drawn
    log_ratio: Array | None
    """[X, K] log π(y|x)/μ(y|x) of its completions; None if sampling is truncated, or μ is unknown or has another
    vocabulary."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of the computation."""

    reference: int | None
    """The index of the common reference μ, if there is one; ratings and the regularised game need it."""
    kl_tau: float | None
    confidence: float
    seed: int


@dataclass(frozen=True, slots=True)
class Standing:
    """The results for all players."""

    players: tuple[PlayerResult, ...]
    matrix: tuple[tuple[Estimate, ...], ...]
    value: float
    misfit: float
    cycles: tuple[tuple[str, str, str], ...]
    judges: tuple[Judge, ...] = ()
    separation: tuple[float, ...] = ()
    """[X] how far each prompt separates the policies as the third player; empty if it is not known."""


def sampled_standing(
    entries: Sequence[Participant],
    sampled: Sequence[Sampled],
    table: Array,
    settings: Settings,
    votes: Mapping[str, Array] | None = None,
) -> Standing:
    """Win matrix, equilibrium, ratings and exploitability from comparisons [X, n, K, n, K], intervals over prompts.

    With `votes`, the comparisons by each member of a panel, also the members' abilities.

    Raises:
        InputError: two of the players were not compared for some prompt.
    """
    confidence, seed, reference = settings.confidence, settings.seed, settings.reference
    rates = standings.prompt_win_rates(table)
    means = rates.mean(0)
    matrix = standings.win_matrix(rates, confidence, seed)
    averages = standings.averages(rates, confidence, seed)
    shares = standings.shares(rates, confidence, seed)
    ratings = standings.ratings(rates, reference, confidence, seed)
    value = standings.nash_average(means)[1]
    deviations, ranks = deviation_ratings(means), alpha_rank(means)
    hill = king_of_the_hill(rates)
    weighed = None
    if votes:
        by_member = np.stack([standings.prompt_win_rates(one) for one in votes.values()], 1)
        weighed = abilities(by_member, reference, confidence, seed)
    # Exploitability needs each completion judged against several of the policy in question.
    complete = table.shape[2] > 1 and not np.isnan(table).any()
    players = []
    for place, (entry, one) in enumerate(zip(entries, sampled, strict=True)):
        regularised = None
        if complete and settings.kl_tau is not None and one.log_ratio is not None and reference is not None:
            regularised = regularised_bound(table, place, reference, one.log_ratio, settings.kl_tau, confidence, seed)
        gap = training = None
        if entry.training_rates is not None and entry.reference not in (None, place):
            training = _mean(entry.training_rates, settings, SHARE)
            gap = _mean(entry.training_rates - rates[:, place, entry.reference], settings, (-1.0, 1.0))
        players.append(
            PlayerResult(
                **_identity(entries, place, matrix),
                training_win_rate=training,
                hacking_gap=gap,
                average=averages[place],
                share=shares[place],
                rating=ratings[place],
                exploitability=best_response_bound(table, place, proposers=None, confidence=confidence, seed=seed)
                if complete
                else None,
                regularised=regularised,
                deviation=float(deviations[place]),
                alpha_rank=float(ranks[place]),
                by_ability=weighed[1][place] if weighed else None,
                hill_rating=min(0.0, float(hill.policy_gains[place])) if hill else None,
                **_texts(one, settings),
            )
        )
    misfit = standings.misfit(means, np.array([rating.value for rating in ratings]))
    names = [entry.name for entry in entries]
    return Standing(
        tuple(players),
        matrix,
        value,
        misfit,
        standings.cycles(matrix, names),
        tuple(map(Judge, votes or (), weighed[0])) if weighed else (),
        tuple(hill.separation.tolist()) if hill else (),
    )


def _identity(entries: Sequence[Participant], place: int, matrix: Sequence[Sequence[Estimate]]) -> dict[str, Any]:
    """A player's identity, and its win rate against its reference; a reference has none."""
    entry, reference = entries[place], entries[place].reference
    return {
        "name": entry.name,
        "source": entry.source,
        "step": entry.step,
        "win_rate": None if reference is None or reference == place else matrix[place][reference],
        "reference": None if reference is None else entries[reference].name,
        "training_preference": entry.training_preference,
    }


def _mean(values: Array, settings: Settings, limits: Limits = UNBOUNDED) -> Estimate:
    (estimate,) = bootstrap_estimates(values[:, None], settings.confidence, settings.seed, limits=limits)
    return estimate


def _texts(one: Sampled, settings: Settings) -> dict[str, Any]:
    """The statistics of the completions alone."""
    drawn = one.drawn
    lengths = np.array([[len(ids) for ids in row] for row in drawn.tokens], dtype=np.float64)
    words = np.array([[len(text.split()) for text in row] for row in drawn.texts], dtype=np.float64)
    everything = [text for row in drawn.texts for text in row]
    return {
        "kl": None if one.log_ratio is None else _mean(one.log_ratio.mean(1), settings),
        "length": _mean(lengths.mean(1), settings),
        "words": _mean(words.mean(1), settings),
        "eos_rate": _mean(np.array(drawn.ends, dtype=np.float64).mean(1), settings, SHARE),
        "distinct": tuple(distinct(everything, n) for n in (1, 2, 3)),
    }


def exact_standing(
    entries: Sequence[Participant], policies: Sequence[torch.Tensor], game: games.Game, settings: Settings
) -> Standing:
    """The results from the policies' probabilities of a game's actions, without samples or intervals.

    Each KL is to the player's reference; μ of the regularised game is the common reference's actual policy.
    """
    n, reference = len(policies), settings.reference
    if reference is not None:
        game = played(game, policies[reference])
    rates = np.array([[float(games.win_rate(game, a, b)) for b in policies] for a in policies])
    np.fill_diagonal(rates, 0.5)
    shares, value = standings.nash_average(rates)
    ratings = standings.elo(rates, reference, MANY)
    deviations, ranks = deviation_ratings(rates), alpha_rank(rates)
    matrix = tuple(tuple(map(_exact, row)) for row in rates.tolist())
    players = []
    for place, (entry, policy) in enumerate(zip(entries, policies, strict=True)):
        half_gap = None
        if settings.kl_tau is not None and reference is not None:
            half_gap = Bound(_exact(float(games.duality_gap(game, policy, settings.kl_tau)) / 2), 0)
        players.append(
            PlayerResult(
                **_identity(entries, place, matrix),
                training_win_rate=None,
                hacking_gap=None,
                average=_exact((rates[place].sum() - 0.5) / (n - 1)),
                share=_exact(shares[place]),
                rating=_exact(ratings[place]),
                exploitability=Bound(_exact(float(games.exploitability(game, policy))), 0),
                regularised=half_gap,
                deviation=float(deviations[place]),
                alpha_rank=float(ranks[place]),
                kl=None if entry.reference is None else _exact(float(games.kl(policy, policies[entry.reference]))),
                length=None,
                words=None,
                eos_rate=None,
                distinct=(),
            )
        )
    names = [entry.name for entry in entries]
    return Standing(tuple(players), matrix, value, standings.misfit(rates, ratings), standings.cycles(matrix, names))


def _exact(value: float) -> Estimate:
    return Estimate(float(value), float(value), float(value))


def answers(prompts: Sequence[str], drawn: Sequence[Drawn], table: Array) -> Iterator[Answers]:
    """All completions of each prompt with their judgments: table [X, n, K, n, K]."""
    players, samples = table.shape[1:3]
    for x, prompt in enumerate(prompts):
        yield Answers(
            prompt,
            tuple(
                Completion(
                    player=i,
                    text=drawn[i].texts[x][k],
                    ended=drawn[i].ends[x][k],
                    preferences=tuple(None if i == j else float(table[x, i, k, j, k]) for j in range(players)),
                )
                for i in range(players)
                for k in range(samples)
            ),
        )


def separating(prompts: Sequence[str], separation: Sequence[float], count: int) -> tuple[SeparatingPrompt, ...]:
    """The prompts that separate the policies most, in decreasing order; none where no prompt does.

    Where one policy is best at every prompt it plays alone, and what is left is the slack of the equilibrium.
    """
    found = sorted(map(SeparatingPrompt, prompts, separation), key=lambda one: -one.separation)
    return tuple(one for one in found[:count] if one.separation > 10 * SLACK)


def examples(
    names: Sequence[str], prompts: Sequence[str], drawn: Sequence[Drawn], table: Array, best: int, count: int
) -> tuple[Comparison, ...]:
    """Evenly spaced prompts, each with a completion of the best player and one of another player in turn."""
    others = [place for place in range(len(names)) if place != best]
    chosen = np.unique(np.linspace(0, len(prompts) - 1, min(count, len(prompts))).round().astype(int))
    return tuple(
        Comparison(
            prompt=prompts[x],
            first_player=names[best],
            second_player=names[other],
            first=drawn[best].texts[x][0],
            second=drawn[other].texts[x][0],
            preference=float(table[x, best, 0, other, 0]),
        )
        for x, other in zip(chosen.tolist(), (others * len(chosen))[: len(chosen)], strict=True)
    )
