"""The study of a panel: its judge is the panel, and its estimates are bounds."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from studies import panel_game, sweep
from studies.panel_game import Judged
from studies.sampling import Sampled

from alignrun.errors import InputError
from alignrun.games import Game, exploitability
from alignrun.preferences.base import build_preference

PANEL = ("model=tiny", "preference=style_panel")
TEXTS = ["A grey and quiet day.", "I was happy, and you were not!", "Rain; the city sleeps under old roofs.", "No."]
CYCLE = np.array([[[0.0, 1, 2], [1, 2, 0], [2, 0, 1], [0.3, 0.2, 0.1]]])
"""Measures of four completions of one prompt, of which the first three beat each other in a cycle."""
SEEN = "a: {name: measure, measure: relevance}, b: {name: measure, measure: brevity}"
POLICY = np.array([0.5, 0.3, 0.2, 0.0])
TAU = 0.3


def test_the_judge_of_the_measures_is_the_panel() -> None:
    config = sweep.configuration(*PANEL)
    sampled = Sampled(["Describe the weather."], [TEXTS], np.zeros(1))
    scores = sweep.played(config, sampled)["scores"]
    members = sweep.panel_of(config)
    ours = panel_game.preferred(*[panel_game.in_votes(scores, members)[0]] * 2)
    pairs = list(itertools.product(range(len(TEXTS)), repeat=2))
    judge = build_preference(config.preference)
    theirs = judge(["Describe the weather."] * len(pairs), [TEXTS[i] for i, _ in pairs], [TEXTS[j] for _, j in pairs])
    np.testing.assert_allclose(ours.ravel(), theirs.numpy(), atol=1e-3)  # the measures are rounded


def test_a_study_refuses_a_judge_that_it_cannot_recompute() -> None:
    for overrides, problem in (
        (["preference=style_panel", "preference.rule=mean"], "a majority of different text measures"),
        (["preference=sentiment"], "a majority of different text measures"),
        (["preference=panel", f"preference.members={{{SEEN}}}"], "relevance: measures that no method sees"),
        (["preference.game=rps"], "the study solves cyc"),
        (["algo.kl_tau=0.1"], "trains its methods as"),
        (["model=path", "model.path=/models/mine"], "from the current folder"),
    ):
        with pytest.raises(InputError, match=problem):
            sweep.checked(overrides)


def game() -> Game:
    table = torch.as_tensor(panel_game.preferred(CYCLE[0], CYCLE[0]))
    return Game(table, torch.full((4,), 0.25, dtype=torch.float64), tuple("abcd"))


def expected(value: Callable[[Judged], np.ndarray], count: int, policy: np.ndarray = POLICY) -> float:
    """By enumeration of all ways to draw `count` completions of a policy."""
    total = 0.0
    for drawn in itertools.product(np.flatnonzero(policy), repeat=count):
        judged = Judged(CYCLE[:, list(drawn)][None], np.zeros((1, 1)))
        total += float(np.prod(policy[list(drawn)])) * value(judged).item()
    return total


def test_noise_does_not_make_a_policy_more_exploitable() -> None:
    true = float(exploitability(game(), torch.as_tensor(POLICY)))
    few, more = (expected(lambda one: panel_game.exploited(one, [CYCLE, CYCLE]), count) for count in (2, 6))
    above = expected(lambda one: panel_game.most_exploited(one, CYCLE), 2)
    assert few < more <= true < above


def test_a_policy_does_not_exploit_itself_by_what_it_is_tried_on() -> None:
    """Its own completions are in the pools: of each half in that which is chosen from on this half."""

    def own(judged: Judged) -> np.ndarray:
        halves = np.array_split(judged.measures[0], 2, 1)
        return panel_game.exploited(judged, [np.concatenate([half, CYCLE[:, 3:]], 1) for half in halves])

    uniform = np.array([1 / 3, 1 / 3, 1 / 3, 0.0])
    assert expected(own, 2, uniform) == pytest.approx(0, abs=1e-9)
    assert expected(own, 4, uniform) == pytest.approx(0, abs=1e-9)


def test_win_rates_are_means_over_pairs() -> None:
    rng = np.random.default_rng(0)
    first, second = (Judged(rng.normal(size=(runs, 2, 5, 3)), np.zeros((runs, 2))) for runs in (2, 3))
    table = panel_game.win_rates_between(first, second)
    one = panel_game.preferred(first.measures[1, 0], second.measures[2, 0])
    assert table.shape == (2, 3, 2)
    assert table[1, 2, 0] == pytest.approx(one.mean())
    assert panel_game.win_rates_against(first, second.measures[2])[1, 0] == pytest.approx(one.mean())
    np.testing.assert_allclose(one + panel_game.preferred(second.measures[2, 0], first.measures[1, 0]).T, 1)


def test_equal_completions_are_one_action() -> None:
    (found,) = panel_game.games(np.concatenate([CYCLE, CYCLE[:, :1]], 1))
    assert sorted(found.reference.tolist()) == pytest.approx([0.2, 0.2, 0.2, 0.4])


def test_the_solutions_keep_their_promises() -> None:
    played = panel_game.games(CYCLE)
    solved = panel_game.solutions(played, TAU)
    end = solved["equilibrium"]
    assert end.beaten.item() == pytest.approx(0.5)
    for name, one in solved.items():
        assert one.beaten.item() + TAU * (one.kl - end.kl).item() >= 0.5 - 1e-6, name  # nothing beats π*_τ, KL included
        if name.endswith("equilibrium's KL"):
            assert one.kl.item() == pytest.approx(end.kl.item(), abs=1e-6)
    assert solved["RLHF on the win rate"].wins.item() >= end.wins.item()
    assert panel_game.cyclic(played).item() == pytest.approx(0.25)  # one of the four triples
