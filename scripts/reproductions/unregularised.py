"""Equilibria without regularisation: proximal points with a renewed reference, and optimistic steps.

Both on CYC, the cycle of three actions with P(a ≻ b) = .9, P(b ≻ c) = .8, P(c ≻ a) = .7 and μ = (.5, .3, .2), whose
equilibrium without regularisation is (1/3, 2/9, 4/9).
"""

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from alignrun.games import CYC, Game, equilibrium, exploitability, nash_equilibrium, optimistic_step, win_rates
from reproductions import Experiment, Number, Result


def proximal_points(anchor_tau: float, renewals: int) -> list[Tensor]:
    """π_{k+1} = π*_τ of the game whose reference is π_k, π_0 = μ; arXiv 2410.23223, 2410.16714. [renewals + 1, n]."""
    game, policies = CYC, [CYC.reference]
    for _ in range(renewals):
        policies.append(equilibrium(game, anchor_tau))
        game = replace(game, reference=policies[-1])
    return policies


def optimistic(step_eta: float, steps: int) -> list[Tensor]:
    """log π_{t+1} = log π_t + η(2Pπ_t − Pπ_{t−1}) + const, from μ; arXiv 2512.24818. [steps + 1, n]."""
    policies = [CYC.reference]
    for _ in range(steps):
        policies.append(optimistic_step(CYC, policies[-1], policies[max(0, len(policies) - 2)], step_eta))
    return policies


def multiplicative(game: Game, start: Tensor, step_eta: float, steps: int) -> list[Tensor]:
    """log π_{t+1} = log π_t + ηPπ_t + const: multiplicative weights, SPPO's exact iteration. [steps + 1, n]."""
    policies = [start]
    for _ in range(steps):
        policies.append(torch.softmax(policies[-1].log() + step_eta * win_rates(game, policies[-1]), 0))
    return policies


def _numbers(name: str, policies: list[Tensor], published: dict[int, float], unit: str) -> Iterable[Number]:
    for step, value in published.items():
        ours = exploitability(CYC, policies[step]).item()
        # 1e-8 is printed with one digit.
        yield Number(f"{name}, exploitability after {step} {unit}", value, ours, relative=6e-3, absolute=5e-9)


def comal() -> Result:
    """Exploitability of the proximal points, and how far the last one is from the equilibrium."""
    numbers: list[Number] = []
    for anchor_tau, published in (
        (0.1, {0: 0.0800, 1: 0.0513, 2: 0.0234, 5: 0.00521, 10: 0.000268}),
        (0.5, {1: 0.0449, 5: 0.0731, 10: 0.0888, 20: 0.0493, 50: 0.0115}),
    ):
        policies = proximal_points(anchor_tau, max(published))
        numbers += _numbers(f"anchor {anchor_tau}", policies, published, "renewals")
    distance = (proximal_points(0.1, 30)[-1] - nash_equilibrium(CYC)).abs().max().item()
    return Result(
        numbers,
        findings=[f"After 30 renewals at anchor 0.1 no probability differs from the equilibrium's by {distance:.1g}."],
    )


def omwu() -> Result:
    """The last iterate of optimistic steps, and of multiplicative weights, which spiral away."""
    published = {"optimistic": {1000: 0.0045, 5000: 1e-8}, "multiplicative weights": {1000: 0.119, 5000: 0.300}}
    policies = {
        "optimistic": optimistic(0.5, 5000),
        "multiplicative weights": multiplicative(CYC, CYC.reference, 0.5, 5000),
    }
    numbers: list[Number] = []
    for name, values in published.items():
        numbers += _numbers(name, policies[name], values, "steps")
    return Result(numbers)


EXPERIMENTS = (
    Experiment(
        "comal",
        "COMAL and magnetic preference optimisation: a renewed reference",
        "arXiv 2410.23223, 2410.16714; values computed for this project by an independent script",
        comal,
    ),
    Experiment(
        "omwu",
        "Optimistic multiplicative weights, η = 0.5",
        "arXiv 2512.24818; values computed for this project by an independent script",
        omwu,
    ),
)
