"""What a game loses to a scalar reward: its cycles, the best Bradley-Terry reward, and RLHF's policy at a given KL."""

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import brentq, minimize
from torch import Tensor

from alignrun.games import Game, kl


def bradley_terry_rewards(game: Game) -> Tensor:
    """argmin_r −E_{y,y'∼μ}[P(y ≻ y') log σ(r(y) − r(y'))], with mean 0; [n]."""
    table = game.preferences.numpy()
    weight = np.outer(game.reference.numpy(), game.reference.numpy())

    def loss(rewards: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        margin = rewards[:, None] - rewards[None, :]
        pull = weight * (1 / (1 + np.exp(-margin)) - table)
        return float((weight * (np.logaddexp(0, margin) - table * margin)).sum()), pull.sum(1) - pull.sum(0)

    fitted = minimize(loss, np.zeros(len(table)), jac=True, method="L-BFGS-B", options={"maxiter": 5000, "ftol": 1e-14})
    return torch.as_tensor(fitted.x - fitted.x.mean())


def tilted(game: Game, rewards: Tensor, divergence: float) -> Tensor:
    """π ∝ μ exp(r/τ') with the τ' at which KL(π‖μ) is the one asked for; the largest there is where it is beyond."""

    def policy(log_inverse: float) -> Tensor:
        return torch.softmax(game.reference.log() + rewards * np.exp(log_inverse), dim=0)

    low, high = -12.0, 12.0
    if float(kl(policy(high), game.reference)) <= divergence:
        return policy(high)
    root = brentq(lambda x: float(kl(policy(x), game.reference)) - divergence, low, high)
    return policy(root)


def cyclic_share(game: Game) -> float:
    """The share of triples of actions that form a cycle."""
    beats = (game.preferences > 0.5).double()
    cycles = float(torch.trace(beats @ beats @ beats)) / 3
    n = len(game.actions)
    return cycles / (n * (n - 1) * (n - 2) / 6) if n > 2 else 0.0
