"""COMAL: the unregularised equilibrium, by games with a renewed reference (arXiv 2410.23223; MPO, arXiv 2410.16714)."""

from alignrun.algorithms.base import algorithm
from alignrun.algorithms.nash_prox import NashProx, NashProxConfig
from alignrun.config import schema


@schema
class COMALConfig(NashProxConfig):
    """The penalty of each game, and its length."""

    name: str = "comal"
    kl_tau: float = 0.0
    """τ, the weight of KL(π‖μ); at 0 the policy leaves μ behind."""
    anchor_tau: float = 0.2
    """The weight of KL(π‖π_k) in game k: larger values give more games, each easier to solve."""
    refresh_every: int = 60
    """Optimiser steps per game, after which the policy becomes the reference π_k of the next one."""


@algorithm("comal", COMALConfig)
class COMAL(NashProx):
    """π_{k+1} is the equilibrium of the game with reference π_k; π_k tends to an equilibrium of the preference itself.

    y ~ π,  y' ~ π,  π_0 = μ
    ∇ = E[Σ_n ∇log π(y_n) · (P(y ≻ y' | x) − ½ − τ_a Σ_{m≥n} log π(y_m)/π_k(y_m))],  τ_a = `anchor_tau`

    These are Nash-Prox's steps without the penalty towards μ, so the KL to μ is not limited: see `train.max_kl`. The
    papers solve each game by INPO, or by mirror descent; here it gets `refresh_every` steps of self-play. That must be
    enough to come near its solution: on CYC, games of 60 steps ended 0.01 (TV) from the equilibrium, games of 12 steps
    at a single action.
    """

    config: COMALConfig
