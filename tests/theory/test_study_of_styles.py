"""The study of styles: its estimates are those of known policies, and its page is that of its measurements."""

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from studies import bootstrap, style_game, style_report
from studies.style_game import Played

from alignrun.games import CYC, best_response, duality_gap, exploitability, kl

ROOT = Path(__file__).parents[2]

MU = CYC.reference.numpy()[None]
POLICY = np.array([[0.6, 0.1, 0.3]])
TAU = 0.05


def known(shares: np.ndarray) -> Played:
    return style_report.exactly(shares, MU)


def test_of_known_shares_the_estimates_are_those_of_the_game() -> None:
    policy = torch.tensor(POLICY[0])
    one = known(POLICY)
    assert style_game.exploited(one).item() == pytest.approx(float(exploitability(CYC, policy)), abs=1e-12)
    gap = float(duality_gap(CYC, policy, TAU)) / 2
    assert style_game.half_gaps(one, MU, TAU).item() == pytest.approx(gap, abs=1e-12)
    assert style_game.entropies(one).item() == pytest.approx(float(-(policy * policy.log()).sum()), abs=1e-12)
    assert one.kl.item() == pytest.approx(float(kl(policy, CYC.reference)), abs=1e-12)
    wins = float(policy @ CYC.preferences @ CYC.reference)
    assert style_game.win_rates_against(one, MU).item() == pytest.approx(wins, abs=1e-12)
    assert style_game.win_rates_between(one, known(MU)).item() == pytest.approx(wins, abs=1e-12)


def test_the_points_are_solutions() -> None:
    points = style_game.points(MU, TAU)
    assert style_game.half_gaps(known(points["equilibrium"]), MU, TAU).item() == pytest.approx(0, abs=1e-9)
    assert style_game.exploited(known(points["equilibrium at τ = 0"])).item() == pytest.approx(0, abs=1e-6)
    response = known(best_response(CYC, CYC.reference, TAU).numpy()[None])
    np.testing.assert_allclose(points["RLHF on the win rate"], response.shares[0], atol=1e-12)
    assert style_game.exploited(response) > 5 * style_game.exploited(known(points["equilibrium"]))


def drawn(halves: int) -> list[tuple[float, Played]]:
    """Every outcome of drawing `halves` completions for each half from POLICY, with its probability."""
    outcomes = []
    for styles in itertools.product(range(3), repeat=2 * halves):
        counts = np.stack([np.bincount(part, minlength=3) for part in (styles[:halves], styles[halves:])]).astype(float)
        probability = float(np.prod(POLICY[0][list(styles)]))
        outcomes.append((probability, Played(counts[None, None], np.zeros((1, 1)))))
    return outcomes


def test_noise_does_not_make_a_policy_more_exploitable() -> None:
    """By enumeration of all samples: one estimate is at most the exploitability on average, the other at least."""
    true = float(exploitability(CYC, torch.tensor(POLICY[0])))
    outcomes = drawn(3)
    estimate = sum(p * style_game.exploited(one).item() for p, one in outcomes)
    above = sum(p * style_game.most_exploited(one).item() for p, one in outcomes)
    assert estimate <= true < above


def test_the_gap_and_the_entropy_lose_most_of_their_bias() -> None:
    """By enumeration, at τ = 0.5, where six completions suffice for the expansion to hold."""
    policy, outcomes = torch.tensor(POLICY[0]), drawn(3)
    gap = float(duality_gap(CYC, policy, 0.5)) / 2 - 0.5 * float(kl(policy, CYC.reference))
    corrected = sum(p * style_game.half_gaps(one, MU, 0.5).item() for p, one in outcomes)
    plain = sum(
        p * (0.5 * float(np.log((MU * np.exp(one.shares[0] @ style_game.TABLE.T / 0.5)).sum())) - 0.5)
        for p, one in outcomes
    )
    assert abs(corrected - gap) < abs(plain - gap) / 3


def test_the_interval_is_that_of_a_plain_bootstrap() -> None:
    """Against a loop that draws prompts and seeds; of a difference, with the same prompts on both sides."""
    rng = np.random.default_rng(1)
    first, second = rng.normal(size=(3, 8)), rng.normal(size=(2, 8)) + 1
    value, low, high = bootstrap.interval(first, -second)
    draws = []
    for _ in range(4000):
        prompts = rng.integers(8, size=8)
        one = first[rng.integers(3, size=3)][:, prompts].mean()
        draws.append(one - second[rng.integers(2, size=2)][:, prompts].mean())
    assert value == pytest.approx(first.mean() - second.mean())
    assert (low, high) == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])), abs=0.08)
    pairs = rng.normal(size=(3, 2, 8))
    value, low, high = bootstrap.interval(pairs)
    assert value == pytest.approx(pairs.mean())
    assert low < value < high


@pytest.mark.parametrize(
    ("file", "heading"),
    [("README.md", "## Does it matter?"), ("docs/results.md", "## Methods trained for 150 steps")],
)
def test_what_is_quoted_is_on_the_pages(file: str, heading: str) -> None:
    """Every number with three digits, with the interval that stands by it."""
    section = (ROOT / file).read_text("utf-8").partition(heading)[2].partition("\n## ")[0]
    pages = "".join((ROOT / "docs" / name).read_text("utf-8") for name in ("styles.md", "panel.md")).replace("**", "")
    quoted = re.findall(r"0\.\d{3}(?: \(0\.\d{3} to 0\.\d{3}\))?", " ".join(section.split()))
    assert quoted
    assert [number for number in quoted if number not in pages] == []
