"""The study of styles: its estimates are those of known policies, and its page is that of its measurements."""

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from alignrun.games import CYC, best_response, duality_gap, exploitability, kl

SCRIPTS = Path(__file__).parents[2] / "scripts"
sys.path.append(str(SCRIPTS))  # last, and not for long: tests use some of its names for files of their own
try:
    from studies import report, style_game
    from studies.style_game import Played
finally:
    sys.path.remove(str(SCRIPTS))

MU = CYC.reference.numpy()[None]
POLICY = np.array([[0.6, 0.1, 0.3]])
TAU = 0.05


def known(shares: np.ndarray) -> Played:
    return report.exactly(shares, MU)


def test_of_known_shares_the_estimates_are_those_of_the_game() -> None:
    policy = torch.tensor(POLICY[0])
    one = known(POLICY)
    assert style_game.exploited(one) == pytest.approx(float(exploitability(CYC, policy)), abs=1e-12)
    assert style_game.half_gap(one, MU, TAU) == pytest.approx(float(duality_gap(CYC, policy, TAU)) / 2, abs=1e-12)
    assert style_game.entropy(one) == pytest.approx(float(-(policy * policy.log()).sum()), abs=1e-12)
    assert float(one.kl.mean()) == pytest.approx(float(kl(policy, CYC.reference)), abs=1e-12)
    assert style_game.win_rate_of(one, MU) == pytest.approx(float(policy @ CYC.preferences @ CYC.reference), abs=1e-12)


def test_the_points_are_solutions() -> None:
    points = style_game.points(MU, TAU)
    assert style_game.half_gap(known(points["equilibrium"]), MU, TAU) == pytest.approx(0, abs=1e-9)
    assert style_game.exploited(known(points["equilibrium at τ = 0"])) == pytest.approx(0, abs=1e-6)
    response = best_response(CYC, CYC.reference, TAU).numpy()
    np.testing.assert_allclose(points["RLHF on the win rate"][0], response, atol=1e-12)
    assert style_game.exploited(known(points["RLHF on the win rate"])) > 5 * style_game.exploited(
        known(points["equilibrium"])
    )


def drawn(halves: int) -> list[tuple[float, Played]]:
    """Every outcome of drawing `halves` completions for each half from POLICY, with its probability."""
    outcomes = []
    for styles in itertools.product(range(3), repeat=2 * halves):
        counts = np.stack([np.bincount(part, minlength=3) for part in (styles[:halves], styles[halves:])]).astype(float)
        probability = float(np.prod(POLICY[0][list(styles)]))
        outcomes.append((probability, Played(counts[None, None], np.zeros((1, 1)))))
    return outcomes


def test_noise_does_not_make_a_policy_more_exploitable() -> None:
    """By enumeration of all samples: at most the exploitability, while the plain maximum is above it."""
    true = float(exploitability(CYC, torch.tensor(POLICY[0])))
    outcomes = drawn(3)
    estimate = sum(p * style_game.exploited(one) for p, one in outcomes)
    plain = sum(p * float((one.shares @ CYC.preferences.numpy().T).max() - 0.5) for p, one in outcomes)
    assert estimate <= true < plain


def test_the_gap_and_the_entropy_lose_most_of_their_bias() -> None:
    """By enumeration, at τ = 0.5, where six completions suffice for the expansion to hold."""
    true = style_game.half_gap(known(POLICY), MU, 0.5) - 0.5 * float(known(POLICY).kl.mean())
    outcomes = drawn(3)
    corrected = sum(p * style_game.half_gap(one, MU, 0.5) for p, one in outcomes)
    plain = sum(
        p * (0.5 * float(np.log((MU * np.exp(one.shares[0] @ CYC.preferences.numpy().T / 0.5)).sum())) - 0.5)
        for p, one in outcomes
    )
    assert abs(corrected - true) < abs(plain - true) / 3


def test_the_interval_covers_prompts_and_seeds() -> None:
    rng = np.random.default_rng(1)
    counts = rng.multinomial(32, POLICY[0], size=(3, 8, 2)).astype(float)
    played = Played(counts, np.full((3, 8), 0.3))
    value, low, high = style_game.interval([played], lambda one, at: style_game.win_rate_of(one, MU[[0] * len(at)]))
    truth = float(POLICY[0] @ CYC.preferences.numpy() @ MU[0])
    assert low < value < high
    assert low < truth < high
    assert high - low < 0.1


def test_the_page_is_that_of_the_measurements(tmp_path: Path) -> None:
    """CI draws the figure and writes the tables again from the files in docs/styles."""
    results = tmp_path / "styles"
    results.symlink_to(SCRIPTS.parent / "docs/styles")
    report.write(results)
    written = (tmp_path / "styles.md").read_text("utf-8")
    assert written == (SCRIPTS.parent / "docs/styles.md").read_text("utf-8"), "run `python scripts/study.py write`"
    found = report.load(results)
    for name in found.played:
        assert f">{report.METHODS[name].label}<" in (tmp_path / "styles.svg").read_text("utf-8")
