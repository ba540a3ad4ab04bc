"""Convergence theorems, compared with the exact iterations on a game."""

import torch

from alignrun.games import (
    CYC,
    RPS,
    equilibrium,
    exploitability,
    extragradient_step,
    kl,
    nash_md_step,
)
from reproductions import Curve, Experiment, Result
from reproductions.unregularised import multiplicative

KL_TAU = 0.1
START = torch.tensor([0.2, 0.2, 0.6], dtype=torch.float64)


def nash_md() -> Result:
    """Nash-MD: its one-step inequality at a constant step size, and the rate of its decreasing one, on CYC.

    Theorem 1: KL(π*‖π_{t+1}) ≤ (1 − ητ) KL(π*‖π_t) + 2η². With η_t = 2/(τ(t + 2)), KL(π*‖π_T) ≤ 8/(τ²(T + 1)).
    """
    target = equilibrium(CYC, KL_TAU)
    step_eta, policy, constant = 0.1, START, []
    for _ in range(300):
        constant.append(kl(target, policy).item())
        policy = nash_md_step(CYC, policy, KL_TAU, step_eta)
    one_step = [constant[0], *((1 - step_eta * KL_TAU) * before + 2 * step_eta**2 for before in constant[:-1])]
    policy, schedule = START, []
    for t in range(1000):
        schedule.append(kl(target, policy).item())
        policy = nash_md_step(CYC, policy, KL_TAU, 2 / (KL_TAU * (t + 2)))
    return Result(
        curves=[
            Curve("Nash-MD, η = 0.1, one step", range(300), constant, one_step),
            Curve(
                "Nash-MD, η = 2/(τ(t + 2))",
                range(1, 1000),
                schedule[1:],
                [8 / (KL_TAU**2 * (t + 1)) for t in range(1, 1000)],
            ),
        ]
    )


def nash_mp() -> Result:
    """Nash-MP: KL(π*‖π_k) ≤ (1 + 2τ)^−k KL(π*‖π_0), on CYC from μ. arXiv 2505.19731."""
    target = equilibrium(CYC, KL_TAU)
    policy, found = CYC.reference, []
    for _ in range(100):
        found.append(kl(target, policy).item())
        policy = extragradient_step(CYC, policy, KL_TAU, 2 / (1 + 2 * KL_TAU))
    # Below the precision of the equilibrium itself the measured divergence is rounding.
    kept = [value for value in found if value > 1e-15]
    bound = [found[0] * (1 + 2 * KL_TAU) ** -k for k in range(len(kept))]
    return Result(curves=[Curve("Nash-MP, step 2/(1 + 2τ)", range(len(kept)), kept, bound)])


def average() -> Result:
    """SPPO: only the average iterate is bounded: its exploitability is at most max_y log 1/π_0(y)/(ηT) + η/8.

    The bound is that of Hedge with gains in [0, 1] (Cesa-Bianchi and Lugosi 2006, theorem 2.2, from a prior π_0).
    """
    start, step_eta, steps = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), 0.1, 2000
    policies = multiplicative(RPS, start, step_eta, steps)
    means = torch.cumsum(torch.stack(policies[:steps]), 0) / torch.arange(1, steps + 1).unsqueeze(1)
    cost = start.log().min().abs().item()
    return Result(
        curves=[
            Curve(
                "SPPO, η = 0.1, average iterate",
                range(1, steps + 1),
                [exploitability(RPS, mean).item() for mean in means],
                [cost / (step_eta * t) + step_eta / 8 for t in range(1, steps + 1)],
            )
        ],
        findings=[
            "The last iterate moves away: KL from the uniform equilibrium grows from "
            f"{kl(RPS.reference, policies[0]).item():.3f} to {kl(RPS.reference, policies[steps - 1]).item():.3f}."
        ],
    )


EXPERIMENTS = (
    Experiment("nash_md", "Nash-MD's theorem 1 and schedule", "arXiv 2312.00886", nash_md),
    Experiment("nash_mp", "Nash-MP's contraction", "arXiv 2505.19731", nash_mp),
    Experiment("sppo", "SPPO's average on rock, paper, scissors", "arXiv 2405.00675", average),
)
