"""Numbers that papers print, and bounds that they prove, hold for our games and equations."""

import sys
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
import torch

from alignrun.games import Game, extragradient_step, mirror_descent_step, nash_md_step

PACKAGE = Path(__file__).parents[2] / "scripts/reproductions"


def load(*names: str) -> list[Any]:
    """Modules of the package, without the rest of scripts/, whose names tests use for files of their own."""
    spec = spec_from_file_location(PACKAGE.name, PACKAGE / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    sys.modules[PACKAGE.name] = package = module_from_spec(spec)
    spec.loader.exec_module(package)
    return [package, *(import_module(f"{PACKAGE.name}.{name}") for name in names)]


package, bounds, distortion, egpo, unregularised = load("bounds", "distortion", "egpo", "unregularised")


@pytest.mark.parametrize("method", egpo.TABULAR[0.1, 0.1])
def test_the_duality_gaps_of_egpo_are_those_published(method: str) -> None:
    for number in egpo.compare(egpo.run_tabular, {method: egpo.TABULAR[0.1, 0.1][method]}, beta=0.1, rate=0.1):
        assert number.agrees, number


@pytest.mark.parametrize("method", ["OMD", "EGPO", "Nash-MD"])
def test_the_duality_gaps_at_weak_regularisation_are_those_published(method: str) -> None:
    early = {500: egpo.TABULAR[0.01, 0.02][method][500]}
    (number,) = egpo.compare(egpo.run_tabular, {method: early}, beta=0.01, rate=0.02)
    assert number.agrees, number


def test_a_gradient_step_on_the_exact_loss_is_a_mirror_descent_step() -> None:
    """With η = 4·lr/(βN), the steps of the games package are those of SGD on a table of logits."""
    beta, rate, actions = 0.1, 0.1, 10
    logits, preferences = egpo.tabular_games()
    reference = torch.log_softmax(logits, -1)
    game = Game(preferences[0], reference[0].exp(), tuple(map(str, range(actions))))
    policy = torch.softmax(torch.linspace(-1, 1, actions, dtype=torch.float64), 0)
    every = policy.log().expand_as(reference)

    def step(method: str, opponent: torch.Tensor) -> torch.Tensor:
        slope = egpo.gradient(method, preferences, reference, every, beta, rate, opponent)
        return torch.softmax(every - rate * slope, -1)

    step_eta = 4 * rate / (beta * actions)
    half = step("OMD", every)
    for ours, theirs in (
        (mirror_descent_step(game, policy, beta, step_eta), half),
        (extragradient_step(game, policy, beta, step_eta), step("EGPO", half.log())),
        (nash_md_step(game, policy, beta, step_eta), step("Nash-MD, mixture of the theory", every)),
    ):
        torch.testing.assert_close(theirs[0], ours, rtol=0, atol=1e-14)


def test_a_renewed_reference_leads_to_the_unregularised_equilibrium() -> None:
    numbers = unregularised.comal().numbers
    assert all(number.agrees for number in numbers), numbers


def test_optimistic_steps_converge_where_multiplicative_weights_spiral_away() -> None:
    numbers = unregularised.omwu().numbers
    assert all(number.agrees for number in numbers), numbers


@pytest.mark.parametrize("experiment", bounds.EXPERIMENTS, ids=lambda experiment: experiment.name)
def test_the_bounds_of_the_theorems_hold(experiment: Any) -> None:
    assert all(curve.holds for curve in experiment.run().curves)


def test_the_best_step_of_inpo_gives_its_bound_the_order_of_one_over_root_t() -> None:
    reference = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    cost, kl_tau = 1.6094379124341003, 0.1  # log 5
    for steps in (1, 10, 1000):
        best = bounds.inpo_step(reference, kl_tau, steps)
        least = bounds.inpo_bound(reference, kl_tau, best, steps)
        assert least == pytest.approx((2 * cost / steps) ** 0.5 + 2 * kl_tau * cost / steps, rel=1e-12)
        for factor in (0.9, 1.1):
            assert bounds.inpo_bound(reference, kl_tau, factor * best, steps) > least


def test_the_bound_of_inpo_is_not_loose_by_much() -> None:
    """A deterministic win of the action that μ hardly plays: no constant could be 4 times smaller."""
    table = torch.tensor([[0.5, 1.0], [0.0, 0.5]], dtype=torch.float64)
    game = Game(table, torch.tensor([1e-4, 1 - 1e-4], dtype=torch.float64), ("a", "b"))
    step_eta = bounds.inpo_step(game.reference, 0.01, 20)
    gap = bounds.inpo_gaps(game, 0.01, step_eta, 20)[-1]
    assert 0.25 < gap / bounds.inpo_bound(game.reference, 0.01, step_eta, 20) <= 1


def test_rlhf_loses_exponentially_where_nash_loses_nothing() -> None:
    """RLHF serves the share q = 4e^{−β/2} of the users where ½ is within reach: its distortion is e^{β/2}/8."""
    best, rlhf, nash = distortion.policies(16.0)
    assert nash == best == pytest.approx(0.5)
    assert best / rlhf == pytest.approx(torch.e**8 / 8, rel=1e-9)


def test_a_number_that_differs_is_noticed() -> None:
    assert not package.Number("x", 1.0, 1.01, relative=2e-3).agrees
