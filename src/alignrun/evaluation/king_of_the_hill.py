"""Prompts as a player: which policies hold out if prompts are chosen to separate them, and which prompts do.

Legend: X prompts, n policies; W[x, i, j] = P(i ≻ j | x), the row beats the column.
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import logsumexp

from alignrun.evaluation.standings import Array

SLACK = 1e-3
"""ε, what a player may still gain by deviating; without it the maximum may lie at infinite prices."""


@dataclass(frozen=True, eq=False, slots=True)
class Hill:
    """The equilibrium σ of the three players."""

    joint: Array
    """[X, n, n] σ(x, i, j), symmetric in the two policies."""
    separation: Array
    """[X] E_σ|2W[x, i, j] − 1|: how far each prompt separates the policies that are played."""
    prompt_gains: Array
    """[X] what the first player gains by always choosing x instead, at most about ε."""
    policy_gains: Array
    """[n] what a policy player gains by always choosing i instead, at most about ε: the rating of a policy."""


def copies(actions: Array) -> Array:
    """How many of the rows equal each row: [N, …] -> [N]."""
    rows = actions.reshape(len(actions), -1).round(9)
    _, same, counts = np.unique(rows, axis=0, return_inverse=True, return_counts=True)
    number: Array = counts[same.ravel()].astype(np.float64)
    return number


def king_of_the_hill(rates: Array, slack: float = SLACK) -> Hill | None:
    """The ε-coarse correlated equilibrium of maximum entropy of a game between a prompt and two policies: [X, n, n].

    One player chooses the prompt x and receives |2W[x, i, j] − 1|, how far it separates the policies; two choose
    policies i and j and receive W[x, i, j] and W[x, j, i]. That is the game of arXiv 2502.20170 as its authors'
    library has it (polarix 0.1.2, `agent_vs_task_game` with win rates). σ is an equilibrium if no player gains more
    than ε by an action of its own whatever is drawn, such as E_σ[W[x, i', j] − W[x, i, j]] ≤ ε. As in the paper it is
    the one nearest in KL(σ‖q) to a q in which copies share one place; here q(x, i, j) ∝ 1/(copies of x, i and j), where
    copies are prompts, or policies, with equal win rates throughout. So σ maximises entropy over distinct actions, and
    a copy changes nothing: within a class σ follows q, and the classes solve the problem without copies.

    With gains G_c, the minimum of log Σ q exp(−Σ_c λ_c G_c) + ε Σ_c λ_c over prices λ ≥ 0 is that problem's dual, and
    σ ∝ q exp(−Σ_c λ_c G_c). None if a player could still gain 2ε, which means that it was not solved.
    """
    prompts, n = rates.shape[:2]
    separation = np.abs(2 * rates - 1)
    one = -np.log(copies(rates.transpose(1, 0, 2)))
    prior = -np.log(copies(rates))[:, None, None] + one[:, None] + one

    def equilibrium(prices: Array) -> tuple[float, Hill]:
        """log Σ q exp(−Σ_c λ_c G_c), and σ with its gains."""
        of_prompts, of_policies = prices[:prompts], prices[prompts:]
        against = np.einsum("k,xkj->xj", of_policies, rates)
        exponent = prior + of_prompts.sum() * separation - np.tensordot(of_prompts, separation, 1)
        exponent += of_policies.sum() - against[:, :, None] - against[:, None]
        total = float(logsumexp(exponent))
        joint = np.exp(exponent - total)
        at_prompt = np.einsum("ij,xij->x", joint.sum(0), separation)
        return total, Hill(
            joint,
            at_prompt,
            at_prompt - (joint * separation).sum(),
            np.einsum("xj,xkj->k", joint.sum(1), rates) - 0.5,  # E W = ½, since σ is symmetric
        )

    weight = np.repeat([1.0, 2.0], [prompts, n])  # the two policy players have the same prices
    prices = np.zeros(prompts + n)
    for allowed in slack * 4.0 ** np.arange(4, -1, -1):

        def dual(prices: Array, allowed: float = allowed) -> tuple[float, Array]:
            total, hill = equilibrium(prices)
            gains = np.concatenate([hill.prompt_gains, hill.policy_gains])
            return total + allowed * float(weight @ prices), weight * (allowed - gains)

        prices = minimize(
            dual,
            prices,
            jac=True,
            method="L-BFGS-B",
            bounds=[(0, None)] * len(prices),
            options={"maxiter": 5000, "maxfun": 10000, "ftol": 1e-13, "gtol": slack / 100, "maxcor": 30},
        ).x
    hill = equilibrium(prices)[1]
    return hill if max(hill.prompt_gains.max(), hill.policy_gains.max()) <= 2 * slack else None
