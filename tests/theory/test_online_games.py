"""Every online algorithm through the real loop, on a language model that plays CYC, to its own stationary point.

The distances that a wrong opponent, anchor or sign would leave are many times those that are allowed. Online DPO and
XPO fit a Bradley-Terry reward; where they stop is solved for here, from the conditions of a Bradley-Terry fit.
"""

import json
from pathlib import Path

import pytest
import torch
from helpers import bradley_terry_fixed_point

from alignrun import cli
from alignrun.games import CYC, best_response, equilibrium, mixture_equilibrium

TAU = 0.1
NASH = equilibrium(CYC, TAU).tolist()


RESPONSE = best_response(CYC, CYC.reference, TAU).tolist()
"""RLHF's optimum μ exp(r/τ) for the reward r(y) = P(y ≻ μ), which is all that a scalar can express of CYC."""

CASES = {
    "rloo": (("algo.kl_tau=0.1",), RESPONSE),
    "ppo": (
        (
            "algo.normalize_reward=false",
            "algo.whiten_advantages=false",
            "algo.trace=1",
            "algo.epochs=2",
            "algo.minibatches=2",
            "train.steps=200",
        ),
        RESPONSE,
    ),
    "grpo": (("algo.scale_by_std=false", "algo.kl_estimator=k2"), RESPONSE),
    "self_play": ((), NASH),
    "nash_ema": (("algo.ema_decay=0.9",), NASH),
    "nash_prox": (("algo.anchor_tau=0.1",), NASH),
    "comal": (
        ("algo.kl_tau=0", "train.steps=800", "optim.learning_rate=2e-3", "optim.schedule=constant"),
        [1 / 3, 2 / 9, 4 / 9],
    ),
    "spo": ((), NASH),
    "nash_pg": (
        (
            "algo.kl_tau=0",
            "algo.refresh_every=20",
            "train.steps=400",
            "optim.learning_rate=2e-3",
            "optim.schedule=constant",
        ),
        [1 / 3, 2 / 9, 4 / 9],
    ),
    "omwu": (
        (
            "algo.kl_tau=0",
            "algo.refresh_every=10",
            "train.steps=800",
            "train.batch_size=64",
            "optim.learning_rate=1e-2",
            "optim.beta2=0.95",
        ),
        [1 / 3, 2 / 9, 4 / 9],
    ),
    "omwu regularised": ((), NASH),
    "onpo": ((), NASH),
    "mnpo": ((), NASH),
    "rspo": (("algo.forward_kl_tau=0",), NASH),
    "nash_md": (("algo.mix_beta=0.5", "algo.mix_beta_end=0"), NASH),
    "online_ipo": ((), NASH),
    "ipo_md": (("algo.mix_beta=0.5",), mixture_equilibrium(CYC, TAU, 0.5).tolist()),
    "inpo": ((), NASH),
    "dno": (("algo.pairing=all", "algo.label=win_rates", "algo.min_margin=0"), NASH),
    "rebel": ((), RESPONSE),
    "nash_mp": (("train.steps=200",), NASH),
    "online_dpo": (("algo.kl_tau=1",), bradley_terry_fixed_point(CYC, 1.0, lambda pi: pi)),
    "xpo": (
        ("algo.kl_tau=0.5", "algo.samples_per_prompt=8"),
        bradley_terry_fixed_point(CYC, 0.5, lambda pi: CYC.reference.numpy()),
    ),
}


WHOLE_LOOP = ("nash_mp",)
"""What `make test` trains, besides Nash-MD in test_game_lm; all others are in test_zero_gradients."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in WHOLE_LOOP else pytest.mark.nightly) for name in CASES]
)
def test_it_reaches_its_stationary_point(tmp_path: Path, name: str) -> None:
    overrides, target = CASES[name]
    run = tmp_path / "run"
    started = ["experiment=game", f"algo={name.split()[0]}", "evaluation.every=0", *overrides, f"run.dir={run}"]
    assert cli.main(started) == 0
    found = json.loads((run / "summary.json").read_text())
    policy = [found[f"policy/{action}"] for action in "abc"]
    distance = sum(abs(p - q) for p, q in zip(policy, target, strict=True)) / 2
    moved = sum(abs(p - q) for p, q in zip(CYC.reference.tolist(), target, strict=True)) / 2
    assert moved > 0.1, "the reference is not near the target"
    assert distance < 0.045, policy


def test_the_targets_differ() -> None:
    """Of any two algorithms with different targets, each is further from the other's than it may be from its own."""
    targets = {name: torch.tensor(target) for name, (_, target) in CASES.items()}
    names = ("self_play", "ipo_md", "online_dpo", "xpo", "ppo")
    for one in names:
        for other in names:
            if one != other:
                assert (targets[one] - targets[other]).abs().sum() / 2 > 0.06, (one, other)
