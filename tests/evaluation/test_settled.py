"""What may be claimed of a difference, from how many prompts: simulated, and said in the documentation."""

import re
from pathlib import Path

import numpy as np
import pytest

from alignrun.evaluation.bootstrap import bootstrap_estimates
from alignrun.evaluation.results import Estimate
from alignrun.evaluation.settled import FEWEST_PROMPTS, caution, in_words, metrics_of, verdict
from alignrun.evaluation.standings import cycles

SIMULATIONS = 1000
PROMPTS = (2, 3, 5, 8, 20)
DOCS = Path(__file__).parents[2] / "docs" / "evaluation.md"


def evenly(prompts: int) -> np.ndarray:
    """Win rates of equal policies, whatever the prompt: uniform, so that the truth is ½."""
    return np.random.default_rng(0).random((prompts, SIMULATIONS))


def skewed(prompts: int) -> np.ndarray:
    """Win rates with the mean 0.8, from Beta(2.4, 0.6)."""
    return np.random.default_rng(1).beta(2.4, 0.6, (prompts, SIMULATIONS))


def tossed(prompts: int) -> np.ndarray:
    """A verdict for each prompt, won with probability 0.8."""
    return (np.random.default_rng(2).random((prompts, SIMULATIONS)) < 0.8).astype(float)


def simulate(values: np.ndarray, truth: float) -> tuple[float, float]:
    """How often the interval of 95% holds the truth, and how often a difference from it is claimed."""
    # Every column is a policy of its own; the draws of prompts are shared, the values are not.
    found = bootstrap_estimates(values, 0.95, draws=500, limits=(0, 1))
    held = [estimate.low - 1e-9 <= truth <= estimate.high + 1e-9 for estimate in found]
    claimed = [verdict(estimate, truth) != 0 for estimate in found]
    return float(np.mean(held)), float(np.mean(claimed))


def measured() -> list[tuple[int, float, float, float, float]]:
    """For each number of prompts: differences claimed between equal policies, and three coverages."""
    rows = []
    for prompts in PROMPTS:
        even, claimed = simulate(evenly(prompts), 0.5)
        rows.append((prompts, claimed, even, simulate(skewed(prompts), 0.8)[0], simulate(tossed(prompts), 0.8)[0]))
    return rows


def test_coverage_is_as_documented_and_few_prompts_settle_nothing() -> None:
    error = np.sqrt(0.05 * 0.95 / SIMULATIONS)
    printed = {
        int(cells[0]): [float(cell) for cell in cells[1:]]
        for line in DOCS.read_text(encoding="utf-8").splitlines()
        if re.fullmatch(r"\| \d+ \|( [01]\.\d\d \|){4}", line) and (cells := line.strip("| ").split(" | "))
    }
    assert tuple(printed) == PROMPTS
    for prompts, *figures in measured():
        claimed, even, skew, toss = figures
        assert figures == pytest.approx(printed[prompts], abs=0.0051)
        assert claimed == 0 if prompts < FEWEST_PROMPTS else claimed < 0.05 + 5 * error
        assert even > 0.91
        assert skew > 0.85
        assert toss > 0.95 - 3 * error


def test_below_the_fewest_prompts_nothing_is_settled() -> None:
    for prompts in (1, FEWEST_PROMPTS - 1):
        assert verdict(Estimate(0.9, 0.8, 0.99, prompts)) == 0
        assert f"fewer than {FEWEST_PROMPTS} prompts" in in_words(Estimate(0.9, 0.8, 0.99, prompts), 0.95)
    for prompts in (FEWEST_PROMPTS, None):
        assert verdict(Estimate(0.9, 0.8, 0.99, prompts)) == 1
        assert verdict(Estimate(0.1, 0.01, 0.2, prompts)) == -1
        assert verdict(Estimate(0.6, 0.5, 0.7, prompts)) == verdict(Estimate(0.4, 0.3, 0.5, prompts)) == 0
        assert verdict(Estimate(0.1, 0.01, 0.2, prompts), border=0.0) == 1
        assert caution(prompts) == ""


def test_three_policies_in_a_circle_need_as_many_prompts() -> None:
    def beats(prompts: int) -> list[list[Estimate]]:
        win, loss, half = Estimate(0.9, 0.8, 0.95, prompts), Estimate(0.1, 0.05, 0.2, prompts), Estimate(0.5, 0.5, 0.5)
        return [[half, win, loss], [loss, half, win], [win, loss, half]]

    assert cycles(beats(FEWEST_PROMPTS), "abc") == (("a", "b", "c"),)
    assert cycles(beats(FEWEST_PROMPTS - 1), "abc") == ()


def test_an_estimate_in_words() -> None:
    assert in_words(Estimate(0.612, 0.54, 0.671, 40), 0.95) == (
        "0.612  (95% interval 0.540 to 0.671, 40 held-out prompts)"
    )
    single = in_words(Estimate(0.6, 0.6, 0.6, 1), 0.9)
    assert single == "0.600  (no interval, 1 held-out prompt: fewer than 8 prompts settle no difference)"
    assert in_words(Estimate(0.5, 0.5, 0.5), 0.9) == "0.500", "exact"
    unsure = in_words(Estimate(0.551, 0.395, 0.684, 40), 0.95, "the reference")
    assert unsure == (
        "0.551  (95% interval 0.395 to 0.684, 40 held-out prompts: is indistinguishable from the reference)"
    )
    assert in_words(Estimate(0.612, 0.54, 0.671, 40), 0.95, "the reference").endswith("40 held-out prompts)")
    assert "indistinguishable" not in in_words(Estimate(0.551, 0.395, 0.684, 7), 0.95, "the reference"), "once"
    assert metrics_of("gain", Estimate(0.2, 0.1, 0.3, 9)) == {"gain": 0.2, "gain_low": 0.1, "gain_high": 0.3}
    assert metrics_of("gain", Estimate(0.2, 0.2, 0.2, 1)) == {"gain": 0.2}, "no interval of no width"
