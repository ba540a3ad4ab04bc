"""The game that styles play on each prompt, and what a policy's shares of the styles say about it.

P depends on two completions through their styles alone, so a best response only tilts the shares of μ's styles and the
equilibrium, RLHF's optimum, exploitability and duality gap of a prompt are those of a game with one action for each
style and μ's shares as its reference.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from solve_completions import bradley_terry_rewards
from torch import Tensor

from alignrun.games import CYC, Game, best_response, equilibrium, mixture_equilibrium, nash_equilibrium

Shares = NDArray[np.float64]
"""[X, 3] how often a policy plays each style on each of X prompts."""
RESAMPLES = 2_000


def centred(scores: NDArray[np.float64], shares: Sequence[float]) -> NDArray[np.float64]:
    """The centres at which each of k measures is the largest in units of its standard deviation as often as wanted.

    Args:
        scores: [N, k] the measures of completions of μ.
        shares: [k] how often each is to be the largest.
    """
    scale, centres, step = scores.std(0), scores.mean(0), 0.5
    for _ in range(400):
        largest = ((scores - centres) / scale).argmax(1)
        centres = centres + step * scale * (np.bincount(largest, minlength=len(shares)) / len(scores) - shares)
        step *= 0.99
    return centres


def games(reference: Shares) -> list[Game]:
    """CYC with μ's shares on each prompt."""
    return [replace(CYC, reference=torch.as_tensor(row)) for row in reference]


def solved(reference: Shares, solve: Callable[[Game], Tensor]) -> Shares:
    """What a solution plays on each prompt, as [X, 3]."""
    return np.stack([solve(game).numpy() for game in games(reference)])


def points(reference: Shares, kl_tau: float) -> dict[str, Shares]:
    """Where methods end, exactly: at the equilibrium π*_τ, near it, or at the optimum of RLHF."""

    def tilted(game: Game) -> Tensor:
        return torch.softmax(game.reference.log() + bradley_terry_rewards(game) / kl_tau, 0)

    return {
        "μ": reference,
        "equilibrium": solved(reference, lambda game: equilibrium(game, kl_tau)),
        "equilibrium of Nash-MD, β = 0.125": solved(reference, lambda game: mixture_equilibrium(game, kl_tau, 0.125)),
        "RLHF on the win rate": solved(reference, lambda game: best_response(game, game.reference, kl_tau)),
        "RLHF on a Bradley-Terry reward, DPO": solved(reference, tilted),
        "equilibrium at τ = 0": solved(reference, nash_equilibrium),
    }


@dataclass(frozen=True, slots=True)
class Played:
    """What the runs of one method play."""

    counts: NDArray[np.float64]
    """[S, X, 2, 3] for S seeds and X prompts, the styles of the first and second half of the completions."""
    kl: NDArray[np.float64]
    """[S, X] KL(π‖μ) of whole completions, in nats."""

    def taken(self, seeds: NDArray[np.intp], prompts: NDArray[np.intp]) -> "Played":
        """Some of the seeds and prompts, as a bootstrap draws them."""
        return Played(self.counts[seeds][:, prompts], self.kl[seeds][:, prompts])

    @property
    def shares(self) -> Shares:
        """[S, X, 3] of all completions."""
        return _normalised(self.counts.sum(2))


def _normalised(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    shares: NDArray[np.float64] = counts / counts.sum(-1, keepdims=True)
    return shares


def win_rate_of(first: Played, second: Shares) -> float:
    """The mean over prompts of P(π ≻ π'), with π' as [X, 3] or as [S, X, 3] for all pairs of seeds."""
    theirs = second if second.ndim == 2 else second.mean(0)
    return float(np.einsum("xi,ij,xj->x", first.shares.mean(0), CYC.preferences.numpy(), theirs).mean())


def exploited(played: Played) -> float:
    """max_k P(k ≻ π) − ½, each prompt's style chosen on one half of the completions and tried on the other.

    Its expectation is at most the exploitability; the maximum over all completions would exceed it by their noise.
    """
    against = _normalised(played.counts) @ CYC.preferences.numpy().T
    first, second = against[:, :, 0], against[:, :, 1]
    chosen = [
        np.take_along_axis(tried, choosing.argmax(-1)[..., None], -1)
        for choosing, tried in ((first, second), (second, first))
    ]
    return float(np.mean(chosen) - 0.5)


def half_gap(played: Played, reference: Shares, kl_tau: float) -> float:
    """τ log Σ_k μ_k exp(P(k ≻ π)/τ) + τ KL(π‖μ) − ½, half the duality gap, at most by the noise of the KL.

    The logarithm of noisy shares is too large by about c/K. Twice its value for K completions minus the mean of the
    values for the two halves has no such term.
    """

    def value(shares: NDArray[np.float64]) -> float:
        gains = shares @ CYC.preferences.numpy().T
        return float((kl_tau * np.log((reference * np.exp(gains / kl_tau)).sum(-1))).mean())

    halves = _normalised(played.counts)
    unbiased = 2 * value(played.shares) - (value(halves[:, :, 0]) + value(halves[:, :, 1])) / 2
    return unbiased + kl_tau * float(played.kl.mean()) - 0.5


def entropy(played: Played) -> float:
    """−Σ_k π_k log π_k of a prompt's styles in nats, log 3 at most; corrected like `half_gap`."""

    def value(shares: NDArray[np.float64]) -> float:
        return float(-(shares * np.log(np.maximum(shares, 1e-12))).sum(-1).mean())

    halves = _normalised(played.counts)
    return 2 * value(played.shares) - (value(halves[:, :, 0]) + value(halves[:, :, 1])) / 2


def interval(groups: Sequence[Played], statistic: Callable[..., float], confidence: float = 0.95) -> tuple[float, ...]:
    """The value of a statistic of one or more methods, and its percentile bootstrap interval over prompts and seeds.

    Prompts are drawn once for all methods, since all played the same ones; `statistic` gets the methods and the drawn
    prompts.
    """
    rng = np.random.default_rng(0)
    prompts = groups[0].counts.shape[1]

    def drawn() -> float:
        chosen = rng.integers(prompts, size=prompts)
        seeds = [rng.integers(len(one.counts), size=len(one.counts)) for one in groups]
        return statistic(*(one.taken(rows, chosen) for one, rows in zip(groups, seeds, strict=True)), chosen)

    values = [drawn() for _ in range(RESAMPLES)]
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return statistic(*groups, np.arange(prompts)), float(low), float(high)
