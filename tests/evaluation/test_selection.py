"""Choosing among samples: the distribution by enumeration, and what it tends to with more of them."""

from itertools import pairwise, product

import numpy as np
import pytest
import torch

from alignrun.config import Selection
from alignrun.evaluation.completions import Drawn
from alignrun.evaluation.selection import Chooser, chosen, enumerable, exact_choice
from alignrun.games import CYC, RPS, exploitability, nash_equilibrium
from alignrun.preferences.matrix import MatrixConfig
from alignrun.preferences.matrix import build as matrix_preference

P = CYC.preferences.numpy()
MU = CYC.reference.numpy()


def chooser(selection: Selection, candidates: int = 3, steps: int = 20, eta: float = 1.0) -> Chooser:
    return Chooser(selection, candidates, steps, eta)


def test_the_equilibrium_and_mirror_steps_of_a_cycle() -> None:
    assert chooser(Selection.best_of_nash).weights(P) == pytest.approx([1 / 3, 2 / 9, 4 / 9], abs=1e-6)
    first = np.exp(0.7 * P.mean(1))
    second = first * np.exp(0.7 * P @ (first / first.sum()))
    mirrored = chooser(Selection.mirror, steps=2, eta=0.7).weights(P)
    assert mirrored == pytest.approx(second / second.sum(), abs=1e-12)
    copies = chooser(Selection.best_of_nash).weights(RPS.preferences.numpy()[np.ix_([0, 0, 1, 2], [0, 0, 1, 2])])
    assert copies == pytest.approx([1 / 6, 1 / 6, 1 / 3, 1 / 3], abs=1e-5), "copies share equally"


def test_a_known_winner_is_chosen_by_every_rule() -> None:
    strengths = np.array([0.3, 2.0, -1.0, 1.0])
    table = 1 / (1 + np.exp(strengths[None] - strengths[:, None]))
    for rule in (Selection.borda, Selection.bradley_terry, Selection.best_of_nash):
        assert chooser(rule).weights(table).argmax() == 1
        assert chooser(rule).weights(table)[1] == pytest.approx(1)
    assert chooser(Selection.mirror, steps=200).weights(table)[1] > 0.999
    tied = table[np.ix_([1, 0, 1], [1, 0, 1])]
    for rule in (Selection.borda, Selection.bradley_terry):
        assert chooser(rule).weights(tied) == pytest.approx([0.5, 0, 0.5])


def test_bradley_terry_makes_the_choice_of_borda() -> None:
    """The row sums are sufficient for the strengths of a complete table, transitive or not."""
    generator = np.random.default_rng(3)
    for _ in range(20):
        upper = np.triu(generator.random((6, 6)), 1)
        table = upper + np.tril(1 - upper.T, -1) + np.eye(6) / 2
        borda, fitted = (chooser(rule).weights(table) for rule in (Selection.borda, Selection.bradley_terry))
        assert (borda == fitted).all()


@pytest.mark.parametrize("rule", list(Selection))
def test_the_exact_policy_is_the_sum_over_all_draws(rule: Selection) -> None:
    enumerated = np.zeros(3)
    for members in product(range(3), repeat=3):
        weights = chooser(rule).weights(P[np.ix_(members, members)])
        np.add.at(enumerated, list(members), MU[list(members)].prod() * weights)
    assert exact_choice(chooser(rule), P, MU) == pytest.approx(enumerated, abs=1e-6)
    assert enumerated.sum() == pytest.approx(1)
    assert enumerable(3, 8)
    assert not enumerable(100, 8)


def test_more_candidates_are_less_exploitable_until_the_equilibrium() -> None:
    def gain(rule: Selection, n: int) -> float:
        return float(exploitability(CYC, torch.as_tensor(exact_choice(chooser(rule, n), P, MU))))

    gains = [gain(Selection.best_of_nash, n) for n in (4, 8, 16)]
    assert all(later < earlier for earlier, later in pairwise(gains))
    assert gains[-1] < 0.006 < gains[0]
    assert exploitability(CYC, nash_equilibrium(CYC)) == pytest.approx(0, abs=1e-6)
    # A score picks one action of a cycle, which another beats.
    assert gain(Selection.borda, 16) > 0.1


def test_choices_among_samples_follow_the_exact_policy() -> None:
    """K independent groups for each prompt, with everything of the chosen completion, and the same again."""
    generator = np.random.default_rng(0)
    rule, prompts, groups = chooser(Selection.best_of_nash, 4), 300, 4
    drawn = generator.choice(3, p=MU, size=(prompts, groups * 4))
    stored = Drawn(
        [[CYC.actions[a] for a in row] for row in drawn],
        [[[int(a), x] for a in row] for x, row in enumerate(drawn)],
        [],
        [[bool(a) for a in row] for row in drawn],
    )
    preference = matrix_preference(MatrixConfig(game="cyc"))
    played, divergence = chosen(stored, rule, preference, ["play"] * prompts, "1")
    assert (played, played.log_probs) == (chosen(stored, rule, preference, ["play"] * prompts, "1")[0], [])
    assert played != chosen(stored, rule, preference, ["play"] * prompts, "2")[0]
    assert divergence.shape == (prompts, groups)
    assert -1e-12 < divergence.min() <= divergence.max() <= np.log(4)
    for x, row in enumerate(played.texts):
        for k, text in enumerate(row):
            action = CYC.actions.index(text)
            assert action in drawn[x, 4 * k : 4 * k + 4]
            assert (played.tokens[x][k], played.ends[x][k]) == ([action, x], bool(action))
    shares = [np.mean([text == action for row in played.texts for text in row]) for action in CYC.actions]
    # Four standard errors of 1,200 draws.
    assert shares == pytest.approx(exact_choice(rule, P, MU), abs=0.06)
