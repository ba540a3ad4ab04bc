"""Draw where each method goes on the cycle CYC, with exact expectations: docs/algorithms.svg.

    python scripts/trajectories.py

The logits of the three actions start at log μ. Every path is the exact form of a method: its expected gradient, or its
exactly solved iterations.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib as mpl
import torch
from studies.triangle import placed
from torch import Tensor

from alignrun.games import (
    CYC,
    best_response,
    equilibrium,
    extragradient_step,
    geometric_mixture,
    mirror_descent_step,
    mixture_equilibrium,
    nash_equilibrium,
    nash_md_step,
    optimistic_step,
    win_rates,
)

FIGURE = Path(__file__).parents[1] / "docs/algorithms.svg"
TAU, BETA = 0.1, 0.5
"""τ, and the weight β of μ in mixtures."""
P, MU = CYC.preferences, CYC.reference
NASH, REGULARISED = nash_equilibrium(CYC), equilibrium(CYC, TAU)
MIXED, RESPONSE = mixture_equilibrium(CYC, TAU, BETA), best_response(CYC, MU, TAU)


@dataclass(frozen=True, slots=True)
class Trajectory:
    """The policies of a method, [steps + 1, 3], and the point where it stops."""

    label: str
    policies: Sequence[Tensor]
    end: Tensor | None
    """None if it does not stop."""


def iterated(step: Callable[[Tensor], Tensor], steps: int) -> list[Tensor]:
    """π_0 = μ, π_{t+1} = step(π_t)."""
    policies = [MU]
    for _ in range(steps):
        policies.append(step(policies[-1]))
    return policies


def ascend(direction: Callable[[Tensor], Tensor], steps: int, rate: float = 2.0) -> list[Tensor]:
    """Gradient steps on the logits, from log μ."""
    logits, policies = MU.log(), [MU]
    for _ in range(steps):
        logits = logits + rate * direction(policies[-1])
        policies.append(torch.softmax(logits, 0))
    return policies


def advantage(samples: Tensor, gain: Tensor) -> Tensor:
    """E[∇log π(y)(gain(y) − E gain)] for y ~ samples, in logits where that is the softmax's gradient. [n] -> [n]."""
    return samples * (gain - samples @ gain)


def gradient(policy: Tensor, opponent: Tensor, samples: Tensor | None = None, *, anchor: Tensor = MU) -> Tensor:
    """The expected policy gradient against an opponent, with the penalty τ KL to the anchor."""
    gain = win_rates(CYC, opponent) - TAU * (policy / anchor).log()
    return advantage(policy if samples is None else samples, gain)


def logistic(policy: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """−∇ of −p log σ(τh) − (1−p) log σ(−τh), y and y' from two policies. [n] -> [n]."""
    ratio = (policy / MU).log()
    error = P - torch.sigmoid(TAU * (ratio[:, None] - ratio[None]))
    pairs = first[:, None] * second[None] * error
    return pairs.sum(1) - pairs.sum(0)


def averaged(policies: Sequence[Tensor]) -> list[Tensor]:
    """The averages of the first 1, 2, … policies."""
    return list(torch.stack(list(policies)).cumsum(0) / torch.arange(1, len(policies) + 1)[:, None])


def ema() -> list[Tensor]:
    """Against the averaged logits, decay .99."""
    average = MU.log()

    def direction(policy: Tensor) -> Tensor:
        nonlocal average
        found = gradient(policy, torch.softmax(average, 0))
        average = 0.99 * average + 0.01 * (policy.log() - policy.log().mean() + MU.log().mean())
        return found

    return ascend(direction, 4000)


def proximal(kl_tau: float, anchor_tau: float, renewals: int) -> list[Tensor]:
    """π_{k+1} = the equilibrium with the penalties τ KL(π‖μ) + τ_a KL(π‖π_k)."""
    total = kl_tau + anchor_tau

    def renewed(policy: Tensor) -> Tensor:
        return equilibrium(replace(CYC, reference=geometric_mixture(policy, MU, kl_tau / total)), total)

    return iterated(renewed, renewals)


def past(step_eta: float, steps: int) -> list[Tensor]:
    """MNPO with two policies: a mirror step from their geometric mean, against both."""
    policies = [MU]
    for _ in range(steps):
        first, second = policies[-1], policies[max(0, len(policies) - 2)]
        anchor = geometric_mixture(geometric_mixture(first, second, 0.5), MU, step_eta * TAU)
        gain = (win_rates(CYC, first) + win_rates(CYC, second)) / 2
        policies.append(torch.softmax(anchor.log() + step_eta * gain, 0))
    return policies


def optimistic(step_eta: float, steps: int) -> list[Tensor]:
    """log π_{t+1} = log π_t + η(2Pπ_t − Pπ_{t−1}) + const."""
    policies = [MU]
    for _ in range(steps):
        policies.append(optimistic_step(CYC, policies[-1], policies[max(0, len(policies) - 2)], step_eta))
    return policies


def panels() -> dict[str, list[Trajectory]]:
    """The paths, by panel."""
    weights = iterated(lambda policy: torch.softmax(policy.log() + 0.3 * win_rates(CYC, policy), 0), 400)

    def mixture(policy: Tensor) -> Tensor:
        return geometric_mixture(policy, MU, BETA)

    return {
        f"expected gradients, τ = {TAU}": [
            Trajectory("self_play, spo, online_ipo", ascend(lambda p: gradient(p, p), 3000), REGULARISED),
            Trajectory("nash_ema", ema(), REGULARISED),
            Trajectory(f"nash_md, β = {BETA}", ascend(lambda p: gradient(p, mixture(p)), 3000), MIXED),
            Trajectory("ipo_md", ascend(lambda p: gradient(p, mixture(p), mixture(p)), 3000), MIXED),
            Trajectory("best_response, ppo, rloo, grpo", ascend(lambda p: gradient(p, MU), 3000), RESPONSE),
            Trajectory("online_dpo", ascend(lambda p: logistic(p, p, p), 6000), None),
            Trajectory("xpo, α = 0", ascend(lambda p: logistic(p, p, MU), 6000), None),
        ],
        f"solved iterations, τ = {TAU}": [
            Trajectory("inpo, dno", iterated(lambda p: mirror_descent_step(CYC, p, TAU, 1.0), 200), REGULARISED),
            Trajectory("mnpo, history 2", past(1.0, 400), REGULARISED),
            Trajectory("nash_mp", iterated(lambda p: extragradient_step(CYC, p, TAU, 1.0), 200), REGULARISED),
            Trajectory("nash_prox", proximal(TAU, 0.2, 60), REGULARISED),
            Trajectory("nash_md, ητ = β", iterated(lambda p: nash_md_step(CYC, p, TAU, BETA / TAU), 200), MIXED),
            Trajectory("rspo, τ_f = 0", iterated(_magnetic, 300), REGULARISED),
            Trajectory("rebel (win rate)", iterated(_natural, 200), RESPONSE),
        ],
        "without regularisation": [
            Trajectory("sppo", weights, None),
            Trajectory("sppo, average", averaged(weights), None),
            Trajectory("comal, nash_pg", proximal(0.0, 0.2, 80), NASH),
            Trajectory("omwu, onpo", optimistic(0.5, 4000), NASH),
        ],
    }


def _magnetic(policy: Tensor) -> Tensor:
    """RSPO: π'^(1+ητ) ∝ π μ^(ητ) exp(ηP(y ≻ π)), η = 1."""
    return torch.softmax((policy.log() + TAU * MU.log() + win_rates(CYC, policy)) / (1 + TAU), 0)


def _natural(policy: Tensor) -> Tensor:
    """REBEL: π' ∝ μ^(ητ) π^(1−ητ) exp(ηr), η = 1, with the win rate against μ as r."""
    return torch.softmax(TAU * MU.log() + (1 - TAU) * policy.log() + win_rates(CYC, MU), 0)


def thinned(points: Tensor, least: float = 0.01) -> Tensor:
    """The points that are at least so far apart, with both ends: an outline of a small file."""
    kept = [points[0]]
    for point in points[1:]:
        if (point - kept[-1]).norm() >= least:
            kept.append(point)
    return torch.stack([*kept, points[-1]])


def draw(path: Path, shown: dict[str, list[Trajectory]]) -> None:
    """Write the figure; the same bytes for the same paths."""
    from matplotlib.figure import Figure

    style = {"svg.hashsalt": "trajectories", "path.simplify": True, "font.size": 9, "svg.fonttype": "none"}
    with mpl.rc_context(style):
        figure = Figure(figsize=(13, 5.2), layout="constrained")
        for axes, (title, trajectories) in zip(figure.subplots(1, len(shown)), shown.items(), strict=True):
            edge = placed(torch.eye(3)[[0, 1, 2, 0]].unbind())
            axes.plot(*edge.T.tolist(), color="0.7", linewidth=0.8)
            for name, (x, y), side in zip(CYC.actions, edge.tolist(), ("right", "left", "center"), strict=False):
                axes.text(x, y + (0.02 if y else -0.05), name, ha=side)
            for number, one in enumerate(trajectories):
                points = thinned(placed(one.policies))
                axes.plot(*points.T.tolist(), color=f"C{number}", linewidth=1.2, label=one.label)
                axes.plot(*points[-1].tolist(), "o", color=f"C{number}", markersize=3)
            for mark, point, name in (
                ("k+", MU, "μ"),
                ("kx", REGULARISED, "π*τ"),
                ("k*", NASH, "equilibrium at τ = 0"),
            ):
                axes.plot(*placed([point])[0].tolist(), mark, markersize=8, label=name, linestyle="none")
            axes.set_title(title)
            axes.set_aspect("equal")
            axes.axis("off")
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=2, frameon=False, fontsize=8)
        figure.savefig(path, format="svg", metadata={"Date": None}, bbox_inches="tight")


if __name__ == "__main__":
    draw(FIGURE, panels())
    sys.stdout.write(f"{FIGURE}\n")
