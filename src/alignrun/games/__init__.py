"""Matrix games: preferences over a few actions, with exact best responses and equilibria.

Legend: n actions; a policy is a distribution over them, [n]; μ is the reference policy and τ (`kl_tau`) its KL
temperature. P[i, j] = P(i ≻ j): the row beats the column. Results have the dtype and device of the given policy.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linprog
from torch import Tensor

from alignrun.errors import InputError, RunError


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise InputError(f"game: {problem}")


@dataclass(frozen=True, eq=False, slots=True)
class Game:
    """A symmetric preference game with a reference policy: P + Pᵀ = 1 (arXiv 2312.00886). Raises InputError."""

    preferences: Tensor
    """[n, n], P[i, j] = P(action i ≻ action j)."""
    reference: Tensor
    """[n], the reference policy μ, positive everywhere."""
    actions: tuple[str, ...]
    """The n names of the actions."""

    def __post_init__(self) -> None:
        table, reference, n = self.preferences, self.reference, len(self.actions)
        _require(n >= 2 and len(set(self.actions)) == n, "actions must be two or more different names")
        _require(table.shape == (n, n), f"preferences must be [{n}, {n}], not {list(table.shape)}")
        _require(reference.shape == (n,), f"reference must be [{n}], not {list(reference.shape)}")
        _require(
            table.is_floating_point() and table.dtype == reference.dtype,
            f"preferences and reference must share a float dtype, not {table.dtype} and {reference.dtype}",
        )
        _require(bool(((table >= 0) & (table <= 1)).all()), "preferences must lie in [0, 1]")
        _require(bool((table.diagonal() == 0.5).all()), "an action must beat itself with probability 0.5")
        _require(bool(((table + table.T - 1).abs() <= 1e-6).all()), "preferences must satisfy P + Pᵀ = 1")
        _require(bool((reference > 0).all()), "reference must be positive for every action")
        _require(abs(reference.sum().item() - 1) <= 1e-6, "reference must sum to 1")


def _cycle(first_second: float, second_third: float, third_first: float, reference: tuple[float, ...]) -> Game:
    table = torch.full((3, 3), 0.5, dtype=torch.float64)
    for winner, loser, p in ((0, 1, first_second), (1, 2, second_third), (2, 0, third_first)):
        table[winner, loser], table[loser, winner] = p, 1 - p
    return Game(table, torch.tensor(reference, dtype=torch.float64), ("a", "b", "c"))


_UNIFORM = (1 / 3, 1 / 3, 1 / 3)

CYC = _cycle(0.9, 0.8, 0.7, reference=(0.5, 0.3, 0.2))
"""An asymmetric game: neither P nor μ is uniform, so a wrong opponent or anchor changes the equilibrium."""
RPS = _cycle(1.0, 1.0, 1.0, reference=_UNIFORM)
"""Rock, paper, scissors."""
DICE = _cycle(5 / 9, 5 / 9, 5 / 9, reference=_UNIFORM)
"""The intransitive dice {2, 4, 9}, {1, 6, 8}, {3, 5, 7}."""
GAMES: dict[str, Game] = {"cyc": CYC, "rps": RPS, "dice": DICE}
"""The built-in games, all cycles a ≻ b ≻ c ≻ a in float64."""


def win_rates(game: Game, policy: Tensor) -> Tensor:
    """The win rate of each action against the policy: (Pπ)[y] = P(y ≻ π). arXiv 2312.00886. [n] -> [n]."""
    return game.preferences.to(policy) @ policy


def win_rate(game: Game, first: Tensor, second: Tensor) -> Tensor:
    """The win rate of one policy against another: P(π ≻ π') = πᵀPπ'. arXiv 2312.00886. [n], [n] -> scalar."""
    return first @ win_rates(game, second)


def kl(p: Tensor, q: Tensor) -> Tensor:
    """The divergence KL(p‖q) = Σ p log(p/q) in nats, with 0·log 0 = 0. [n], [n] -> scalar."""
    return (torch.xlogy(p, p) - torch.xlogy(p, q)).sum()


def regularised_win_rate(game: Game, first: Tensor, second: Tensor, kl_tau: float) -> Tensor:
    """The regularised preference P_τ(π ≻ π') = P(π ≻ π') − τKL(π‖μ) + τKL(π'‖μ). arXiv 2312.00886. -> scalar."""
    reference = game.reference.to(first)
    return win_rate(game, first, second) - kl_tau * kl(first, reference) + kl_tau * kl(second, reference)


def best_response(game: Game, opponent: Tensor, kl_tau: float) -> Tensor:
    """The regularised best response BR_τ(ν)(y) ∝ μ(y)exp(P(y ≻ ν)/τ), τ > 0. arXiv 2310.12036. [n] -> [n]."""
    _require(kl_tau > 0, f"kl_tau must be positive, not {kl_tau}")
    return torch.softmax(game.reference.to(opponent).log() + win_rates(game, opponent) / kl_tau, dim=0)


def _mix_logs(log_p: Tensor, log_q: Tensor, weight: float) -> Tensor:
    # Drop one side at weights 0 and 1, since 0·(−∞) is NaN.
    if weight in (0, 1):
        return log_q if weight else log_p
    return (1 - weight) * log_p + weight * log_q


def geometric_mixture(p: Tensor, q: Tensor, mix_beta: float) -> Tensor:
    """The normalised geometric mixture ∝ p^(1−β) q^β, β in [0, 1]. arXiv 2312.00886. [n], [n] -> [n]."""
    _require(0 <= mix_beta <= 1, f"mix_beta must lie in [0, 1], not {mix_beta}")
    return torch.softmax(_mix_logs(p.log(), q.log(), mix_beta), dim=0)


def duality_gap(game: Game, policy: Tensor, kl_tau: float) -> Tensor:
    """The regularised gap 2[τ log Σ_y μ(y)exp(P(y ≻ π)/τ) + τKL(π‖μ) − ½], zero at π*_τ only; [n] -> scalar.

    It is max_π' P_τ(π' ≻ π) − min_π' P_τ(π ≻ π') in the game of arXiv 2312.00886, and equals 2τKL(π‖BR_τ(π)).
    """
    _require(kl_tau > 0, f"kl_tau must be positive, not {kl_tau}")
    reference = game.reference.to(policy)
    best = kl_tau * torch.logsumexp(reference.log() + win_rates(game, policy) / kl_tau, dim=0)
    return 2 * (best + kl_tau * kl(policy, reference) - 0.5)


def exploitability(game: Game, policy: Tensor) -> Tensor:
    """The unregularised gain of the best action: max_y P(y ≻ π) − ½. arXiv 2312.00886. [n] -> scalar."""
    return win_rates(game, policy).max() - 0.5


def _pull(kl_tau: float, step_eta: float) -> float:
    pull = kl_tau * step_eta
    _require(0 <= pull <= 1 + 1e-9, f"kl_tau·step_eta must lie in [0, 1], not {pull}")
    return min(pull, 1.0)


def _mirror_step(game: Game, log_policy: Tensor, opponent: Tensor, kl_tau: float, step_eta: float) -> Tensor:
    """The log of the policy ∝ π^(1−ητ) μ^(ητ) exp(ηP(y ≻ opponent)), the step shared by all methods."""
    anchor = _mix_logs(log_policy, game.reference.to(log_policy).log(), _pull(kl_tau, step_eta))
    return torch.log_softmax(anchor + step_eta * win_rates(game, opponent), dim=0)


def nash_md_step(game: Game, policy: Tensor, kl_tau: float, step_eta: float) -> Tensor:
    """Nash-MD: π' ∝ π^μ(y)exp(ηP(y ≻ π^μ)) with π^μ ∝ π^(1−ητ) μ^(ητ). arXiv 2312.00886 Theorem 1. [n] -> [n].

    With a constant η it converges to `mixture_equilibrium` at β = ητ; a decreasing η_t = 2/(τ(t+2)) reaches π*_τ.
    """
    opponent = geometric_mixture(policy, game.reference.to(policy), _pull(kl_tau, step_eta))
    return _mirror_step(game, policy.log(), opponent, kl_tau, step_eta).exp()


def mirror_descent_step(game: Game, policy: Tensor, kl_tau: float, step_eta: float) -> Tensor:
    """Online mirror descent: π' ∝ π^(1−ητ) μ^(ητ) exp(ηP(y ≻ π)). arXiv 2312.00886 eq. 8. [n] -> [n]."""
    return _mirror_step(game, policy.log(), policy, kl_tau, step_eta).exp()


def extragradient_step(game: Game, policy: Tensor, kl_tau: float, step_eta: float) -> Tensor:
    """EGPO: a mirror step from π to π½, then one from π against π½. arXiv 2503.08942, 2505.19731. [n] -> [n]."""
    half = mirror_descent_step(game, policy, kl_tau, step_eta)
    return _mirror_step(game, policy.log(), half, kl_tau, step_eta).exp()


def optimistic_step(game: Game, policy: Tensor, previous: Tensor, step_eta: float) -> Tensor:
    """OMWU: π_{t+1} ∝ π_t exp(η(2P(y ≻ π_t) − P(y ≻ π_{t−1}))). arXiv 2512.24818. [n], [n] -> [n].

    From π_{−1} = π_0 these are also the steps of ONPO, arXiv 2502.16852.
    """
    return torch.softmax(policy.log() + step_eta * win_rates(game, 2 * policy - previous), dim=0)


@torch.no_grad()
def equilibrium(game: Game, kl_tau: float, *, max_steps: int = 100_000) -> Tensor:
    """The unique regularised Nash equilibrium π*_τ = BR_τ(π*_τ), by extragradient steps. arXiv 2505.19731. -> [n].

    Iterating the best response itself may cycle. Raises RunError if BR_τ(π) has not converged after `max_steps`.
    """
    _require(kl_tau > 0, f"kl_tau must be positive, not {kl_tau}; nash_equilibrium has no regularisation")
    # Use double precision and logarithms: the probability of an action may underflow along the way.
    log_policy = game.reference.double().log()
    step_eta = 2 / (1 + 2 * kl_tau)  # KL(π*‖π) contracts by 1/(1 + 2τ) in every game
    tolerance = 1e-12 * max(1.0, 1 / kl_tau)  # BR_τ has slope up to 1/τ, which amplifies rounding
    residual = float("inf")
    for _ in range(max_steps):
        policy = log_policy.exp()
        residual = (policy - best_response(game, policy, kl_tau)).abs().max().item()
        if residual <= tolerance:
            return policy.to(game.reference)
        half = _mirror_step(game, log_policy, policy, kl_tau, step_eta).exp()
        log_policy = _mirror_step(game, log_policy, half, kl_tau, step_eta)
    raise RunError(f"game: no equilibrium after {max_steps} steps (residual {residual:.1e}): use a larger kl_tau")


def largest_equilibrium(preferences: NDArray[np.float64]) -> NDArray[np.float64]:
    """A Nash equilibrium π of maximal support, max_y (Pπ)[y] = ½, by linear programming. [n, n] -> [n].

    Equilibria are the directions of the cone q ≥ 0, (P − ½)q ≤ 0. A maximiser of Σ_y min(q[y], 1) has q[y] ≥ 1 for
    every action in the support of any equilibrium. Raises RunError if the solver fails.
    """
    n = len(preferences)
    # P − ½, exactly antisymmetric; digits below the solver's tolerance could make it fail.
    edges = np.round((preferences - preferences.T) / 2, 9)
    identity = np.eye(n)
    result = linprog(
        c=[0.0] * n + [-1.0] * n,  # (q, t), t = min(q, 1)
        A_ub=np.block([[edges, np.zeros((n, n))], [-identity, identity]]),
        b_ub=[0.0] * (2 * n),
        bounds=[(0, None)] * n + [(0, 1)] * n,
    )
    if not result.success:
        raise RunError(f"game: the linear program has no solution: {result.message}")
    direction = np.where(result.x[n:] > 0.5, result.x[:n], 0)
    policy: NDArray[np.float64] = direction / direction.sum()
    return policy


def nash_equilibrium(game: Game) -> Tensor:
    """An unregularised Nash equilibrium, argmin_π max_y P(y ≻ π), from `largest_equilibrium`. -> [n].

    It need not be unique; every equilibrium has max_y P(y ≻ π) = ½. Raises RunError if the solver fails.
    """
    return torch.as_tensor(largest_equilibrium(game.preferences.double().cpu().numpy())).to(game.reference)


def mixture_equilibrium(game: Game, kl_tau: float, mix_beta: float) -> Tensor:
    """The limit of Nash-MD at a fixed β: π*_β = BR_τ(ν), ν ∝ π*_β^(1−β) μ^β. arXiv 2403.08635 Prop. 5.2. -> [n].

    The mixture ν is itself the equilibrium at temperature τ/(1−β); at β = 1 it is μ. Raises like `equilibrium`.
    """
    _require(0 <= mix_beta <= 1, f"mix_beta must lie in [0, 1], not {mix_beta}")
    opponent = game.reference if mix_beta == 1 else equilibrium(game, kl_tau / (1 - mix_beta))
    return best_response(game, opponent, kl_tau)
