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
from scipy.special import entr, logsumexp
from torch import Tensor

from alignrun.games import CYC, Game, best_response, equilibrium, mixture_equilibrium, nash_equilibrium
from studies.solutions import bradley_terry_rewards

Shares = NDArray[np.float64]
"""[X, 3] how often a policy plays each style on each of X prompts."""
TABLE = CYC.preferences.numpy()


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
    """What the runs of one method play. Its functions below give one value for each run and prompt, [S, X]."""

    counts: NDArray[np.float64]
    """[S, X, 2, 3] for S seeds and X prompts, the styles of the first and second half of the completions."""
    kl: NDArray[np.float64]
    """[S, X] KL(π‖μ) of whole completions, in nats."""

    @property
    def shares(self) -> NDArray[np.float64]:
        """[S, X, 3] of all completions."""
        return _normalised(self.counts.sum(2))


def _normalised(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    shares: NDArray[np.float64] = counts / counts.sum(-1, keepdims=True)
    return shares


def win_rates_against(played: Played, reference: Shares) -> NDArray[np.float64]:
    """P(π ≻ π') for a π' that plays [X, 3]."""
    rates: NDArray[np.float64] = np.einsum("sxi,ij,xj->sx", played.shares, TABLE, reference)
    return rates


def win_rates_between(first: Played, second: Played) -> NDArray[np.float64]:
    """[S, S', X] P(π ≻ π') for all pairs of runs."""
    rates: NDArray[np.float64] = np.einsum("sxi,ij,txj->stx", first.shares, TABLE, second.shares)
    return rates


def exploited(played: Played) -> NDArray[np.float64]:
    """max_k P(k ≻ π) − ½, with a style chosen on one half of the completions and tried on the other.

    Its expectation is at most the exploitability; the maximum over all completions would exceed it by their noise.
    """
    gains = _normalised(played.counts) @ TABLE.T
    first, second = gains[:, :, 0], gains[:, :, 1]
    tried = [
        np.take_along_axis(trying, choosing.argmax(-1)[..., None], -1)[..., 0]
        for choosing, trying in ((first, second), (second, first))
    ]
    return np.mean(tried, 0) - 0.5


def most_exploited(played: Played) -> NDArray[np.float64]:
    """max_k P(k ≻ π) − ½ against the shares of all completions; its expectation is at least the exploitability."""
    return (played.shares @ TABLE.T).max(-1) - 0.5


def half_gaps(played: Played, reference: Shares, kl_tau: float) -> NDArray[np.float64]:
    """τ log Σ_k μ_k exp(P(k ≻ π)/τ) + τ KL(π‖μ) − ½, half the duality gap."""

    def best(shares: NDArray[np.float64]) -> NDArray[np.float64]:
        exponents = np.log(reference)[:, None] + (shares @ TABLE.T) / kl_tau
        return kl_tau * logsumexp(exponents, axis=-1)

    return _corrected(best, played) + kl_tau * played.kl - 0.5


def entropies(played: Played) -> NDArray[np.float64]:
    """−Σ_k π_k log π_k of the styles in nats, log 3 at most."""
    return _corrected(lambda shares: entr(shares).sum(-1), played)


def _corrected(function: Callable[[NDArray[np.float64]], NDArray[np.float64]], played: Played) -> NDArray[np.float64]:
    """A function of the shares without most of the bias of a curved function of noisy shares, which is about c/K.

    Twice its value for all K completions minus the mean of its values for the two halves has no term c/K. The function
    takes [S, X, N, 3] and returns [S, X, N].
    """
    whole = function(played.shares[:, :, None])[:, :, 0]
    return 2 * whole - function(_normalised(played.counts)).mean(-1)
