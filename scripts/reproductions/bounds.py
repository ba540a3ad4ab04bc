"""Convergence theorems, compared with the exact iterations on a game."""

import math

import torch
from torch import Tensor

from alignrun.games import (
    CYC,
    RPS,
    Game,
    duality_gap,
    equilibrium,
    exploitability,
    extragradient_step,
    kl,
    mirror_descent_step,
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


def inpo_gaps(game: Game, kl_tau: float, step_eta: float, steps: int) -> list[float]:
    """The duality gap of INPO's average iterate (π_1 + … + π_T)/T for T up to `steps`, from π_1 = μ."""
    policy, total, gaps = game.reference, torch.zeros_like(game.reference), []
    for t in range(1, steps + 1):
        total = total + policy
        gaps.append(duality_gap(game, total / t, kl_tau).item())
        policy = mirror_descent_step(game, policy, kl_tau, step_eta)
    return gaps


def inpo_bound(reference: Tensor, kl_tau: float, step_eta: float, steps: int) -> float:
    """A bound on the duality gap of INPO's average iterate: 2D/(sT) + s/(4(1 − sτ)), D = max_y log 1/μ(y), π_1 = μ.

    At 1/s = τ + √(T/8D) it is √(2D/T) + 2τD/T. Derived here; the constant of arXiv 2407.00617 could not be confirmed.

    With g = P(· ≻ π_t), an exact step is π_{t+1} = argmax_π s⟨g, π⟩ − sτ KL(π‖μ) − (1 − sτ) KL(π‖π_t). The objective is
    its maximum minus KL(π‖π_{t+1}), since the weights of its divergences sum to 1. So for every u, and with
    f_t(π) = ⟨g, π⟩ − τ KL(π‖μ),

        s f_t(u) = s f_t(π_{t+1}) − (1 − sτ) KL(π_{t+1}‖π_t) + (1 − sτ) KL(u‖π_t) − KL(u‖π_{t+1}).

    Here s⟨g, π_{t+1} − π_t⟩ ≤ (1 − sτ) KL(π_{t+1}‖π_t) + s²/(8(1 − sτ)), by Donsker and Varadhan's variational formula
    and Hoeffding's lemma for g in [0, 1]. In the sum over t, τ KL(π_t‖μ) telescopes to −τ KL(π_{T+1}‖μ) ≤ 0, and the
    divergences from u to at most KL(u‖π_1) ≤ D: Σ_t f_t(u) − f_t(π_t) ≤ D/s + Ts/(8(1 − sτ)). As
    P_τ(u ≻ π_t) − ½ = f_t(u) − f_t(π_t) is convex in π_t, 1/T of this bounds P_τ(u ≻ average) − ½, half the gap at the
    best u.
    """
    cost = -reference.min().log().item()
    return 2 * cost / (step_eta * steps) + step_eta / (4 * (1 - step_eta * kl_tau))


def inpo_step(reference: Tensor, kl_tau: float, steps: int) -> float:
    """The step size s of the least `inpo_bound` after T steps: 1/s = τ + √(T/8D)."""
    return 1 / (kl_tau + math.sqrt(steps / (-8 * reference.min().log().item())))


def random_game(generator: torch.Generator) -> Game:
    """2 to 8 actions with uniform or deterministic preferences, and a reference from even to almost one-sided."""
    n = int(torch.randint(2, 9, (), generator=generator))
    upper = torch.rand(n, n, generator=generator, dtype=torch.float64).triu(1)
    if torch.rand((), generator=generator) < 0.5:
        upper = upper.round()
    table = upper + (1 - upper.T).tril(-1) + torch.eye(n, dtype=torch.float64) / 2
    logits = 4 * torch.rand((), generator=generator) * torch.randn(n, generator=generator)
    return Game(table, logits.double().softmax(0), tuple(map(str, range(n))))


def inpo_on_random_games(games: int, steps: int) -> list[float]:
    """The largest gap over its bound at each T, over random games with τ from 0.01 to 1 and steps small and large."""
    generator, ratios = torch.Generator().manual_seed(0), []
    for number in range(games):
        game, kl_tau = random_game(generator), 10 ** (2 * torch.rand((), generator=generator).item() - 2)
        best = inpo_step(game.reference, kl_tau, steps)
        step_eta = best if number % 2 else 0.99 * torch.rand((), generator=generator).item() / kl_tau
        gaps = inpo_gaps(game, kl_tau, step_eta, steps)
        ratios.append([gap / inpo_bound(game.reference, kl_tau, step_eta, t) for t, gap in enumerate(gaps, start=1)])
    return [max(at) for at in zip(*ratios, strict=True)]


def inpo() -> Result:
    """INPO: the duality gap of its average iterate on CYC at the best step for each T, and on random games."""
    horizons = [2**power for power in range(11)]
    step_etas = [inpo_step(CYC.reference, KL_TAU, steps) for steps in horizons]
    plans = list(zip(step_etas, horizons, strict=True))
    games, steps = 400, 64
    return Result(
        curves=[
            Curve(
                "INPO, 1/η = τ + √(T/8D), average iterate",
                horizons,
                [inpo_gaps(CYC, KL_TAU, *plan)[-1] for plan in plans],
                [inpo_bound(CYC.reference, KL_TAU, *plan) for plan in plans],
            ),
            Curve(
                f"INPO, {games} random games, largest gap / bound",
                range(1, steps + 1),
                inpo_on_random_games(games, steps),
                [1.0] * steps,
            ),
        ],
        findings=[
            "The bound is derived here, with a proof in `inpo_bound` of `scripts/reproductions/bounds.py`: from μ and "
            "with step size η, the duality gap of the average of T iterates is at most 2D/(ηT) + η/(4(1 − ητ)), "
            "D = max_y log 1/μ(y); at the best η it is √(2D/T) + 2τD/T. The paper states O(1/√T); its own constant "
            "could not be confirmed.",
        ],
    )


EXPERIMENTS = (
    Experiment("nash_md", "Nash-MD's theorem 1 and schedule", "arXiv 2312.00886", nash_md),
    Experiment("nash_mp", "Nash-MP's contraction", "arXiv 2505.19731", nash_mp),
    Experiment("sppo", "SPPO's average on rock, paper, scissors", "arXiv 2405.00675", average),
    Experiment("inpo", "INPO's average against a bound derived here", "arXiv 2407.00617", inpo),
)
