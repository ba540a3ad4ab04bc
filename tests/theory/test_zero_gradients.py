"""Online algorithms as they are trained: at its own stationary point the expected gradient of each on CYC is zero.

A language model that plays the game is set to the closed form, and the expectation is the sum over all draws of the
step, each with its probability. A wrong opponent, anchor, sign or factor leaves a gradient as large as elsewhere.
"""

from collections.abc import Sequence
from itertools import islice, product
from typing import Any

import numpy as np
import pytest
import torch
from helpers import bradley_terry_fixed_point
from scipy.optimize import root
from scipy.special import softmax
from torch import Tensor

from alignrun.algorithms.base import Tools, discover
from alignrun.algorithms.common.rollout import Rollouts
from alignrun.games import CYC, best_response, equilibrium, geometric_mixture, mixture_equilibrium, nash_equilibrium
from alignrun.generation.streams import Mixture, Source, Stream
from alignrun.launch.compose import compose
from alignrun.models.policy import Policy
from alignrun.models.sources import load_tokenizer
from alignrun.preferences.base import build_preference
from alignrun.types import Completions, PromptBatch, Role

TAU = 0.1
MU = CYC.reference
NASH = equilibrium(CYC, TAU)
FREE = nash_equilibrium(CYC)
RESPONSE = best_response(CYC, MU, TAU)
PAIR = ("algo.samples_per_prompt=2",)
EVERY_PAIR = ("algo.pairing=all", "algo.label=win_rates", "algo.min_margin=0")
ONE = "algo.reference_samples=1"
PLAIN_PPO = ("algo.normalize_reward=false", "algo.whiten_advantages=false", "algo.epochs=1", "algo.minibatches=1")


def fixed_point(kl_tau: float, opponent: Any) -> Tensor:
    return torch.tensor(bradley_terry_fixed_point(CYC, kl_tau, opponent), dtype=torch.float64)


def regularised_both_ways(kl_tau: float, forward_kl_tau: float) -> Tensor:
    """The equilibrium of P(π ≻ π') − τ KL(π‖μ) − τ_f KL(μ‖π) on CYC: all actions have the same derivative."""
    table, mu = CYC.preferences.numpy(), MU.numpy()

    def policy(logits: np.ndarray) -> np.ndarray:
        return softmax(np.append(logits, 0.0))

    def differences(logits: np.ndarray) -> np.ndarray:
        pi = policy(logits)
        slope = table @ pi - kl_tau * np.log(pi / mu) + forward_kl_tau * mu / pi
        return slope[:-1] - slope[-1]

    return torch.tensor(policy(root(differences, [0.0, 0.0], tol=1e-12).x))


CASES: dict[str, tuple[tuple[str, ...], Tensor]] = {
    "rloo": ((*PAIR, "algo.kl_tau=0.1", ONE), RESPONSE),
    "grpo": ((*PAIR, "algo.kl_tau=0.1", ONE, "algo.scale_by_std=false", "algo.kl_estimator=k2"), RESPONSE),
    "ppo": (("algo.kl_tau=0.1", "algo.trace=1", ONE, *PLAIN_PPO), RESPONSE),
    "self_play": ((), NASH),
    "nash_ema": ((), NASH),
    "nash_prox": (("algo.anchor_tau=0.1",), NASH),
    "comal": (("algo.kl_tau=0",), FREE),
    "nash_md": (("algo.mix_beta=0.5",), mixture_equilibrium(CYC, TAU, 0.5)),
    "spo": (PAIR, NASH),
    "nash_pg": ((*PAIR, "algo.kl_tau=0", "algo.epochs=1"), nash_equilibrium(CYC)),
    "online_ipo": (PAIR, NASH),
    "ipo_md": (
        (
            *PAIR,
            "algo.mix_beta=0.5",
        ),
        mixture_equilibrium(CYC, TAU, 0.5),
    ),
    "inpo": (PAIR, NASH),
    "dno": (("algo.samples_per_prompt=3", *EVERY_PAIR), NASH),
    "rebel": ((*PAIR, "algo.kl_tau=0.1", ONE, "algo.epochs=1"), RESPONSE),
    "mnpo": ((*PAIR, "algo.past_opponents=false"), NASH),
    "omwu": ((*PAIR, "algo.kl_tau=0"), nash_equilibrium(CYC)),
    "onpo": ((*PAIR, "algo.kl_tau=0"), nash_equilibrium(CYC)),
    "rspo": (
        (*PAIR, "algo.kl_tau=0.05", "algo.forward_kl_tau=0.03", ONE),
        regularised_both_ways(0.05, 0.03),
    ),
    "online_dpo": (
        (
            *PAIR,
            "algo.kl_tau=1",
        ),
        fixed_point(1.0, lambda pi: pi),
    ),
    "xpo": (("algo.kl_tau=0.5", "algo.optimism=0"), fixed_point(0.5, lambda pi: MU.numpy())),
}


def actions(policy: Policy) -> Tensor:
    return torch.tensor([policy.tokenizer(name, add_special_tokens=False).input_ids[-1] for name in "abc"])


def log_probs(policy: Policy, prompt: PromptBatch) -> Tensor:
    """[3] log π of the actions."""
    prompts = PromptBatch(prompt.texts * 3, prompt.input_ids.repeat(3, 1), prompt.attention_mask.repeat(3, 1))
    played = Completions(actions(policy)[:, None], torch.ones(3, 1, dtype=torch.bool))
    return policy.log_probs(Role.policy, prompts, played)[:, 0]


def distribution(source: Source, target: Tensor) -> Tensor:
    """[3] what a source plays; all roles but the reference are copies of the policy."""
    if isinstance(source, Mixture):
        sides = (distribution(role, target) for role in (source.first, source.second))
        return geometric_mixture(*sides, source.beta)
    return MU if source is Role.reference else target


def play_as(policy: Policy, target: Tensor, prompt: PromptBatch) -> None:
    """Give the policy a distribution over the actions, by its trained weights."""
    weights = [weight.requires_grad_() for weight in policy.trainable().values()]
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in weights:
            weight += 0.02 * torch.randn(weight.shape, generator=generator)
    steps = torch.optim.LBFGS(weights, max_iter=60, tolerance_grad=1e-6, tolerance_change=1e-9)

    def loss() -> Tensor:
        steps.zero_grad()
        value = (log_probs(policy, prompt) - target.log().float()).square().sum()
        value.backward()
        return value

    steps.step(loss)
    steps.zero_grad()
    reached = log_probs(policy, prompt).detach().exp().double()
    torch.testing.assert_close(reached, target, rtol=0, atol=2e-5)


def share_that_is_left(name: str, overrides: Sequence[str], target: Tensor, monkeypatch: pytest.MonkeyPatch) -> float:
    """|E g| / E|g| of a step's gradient g in all trained weights, over everything that the step might draw."""
    config = compose(["experiment=game", f"algo={name}", "algo.samples_per_prompt=1", *overrides])
    policy = Policy.load(config.model, config.adapter, config.reference, load_tokenizer(config.model), config.seed)
    ids = torch.tensor([policy.tokenizer("play", add_special_tokens=False).input_ids])
    prompt = PromptBatch(("play",), ids, torch.ones_like(ids))
    play_as(policy, target, prompt)
    tools = Tools(policy, build_preference(config.preference, policy.backbone), config)
    algorithm = discover()[name](config.algo, tools)
    drawn: list[int] = []
    chances: list[Tensor] = []

    def sample(self: Rollouts, prompts: Any, streams: Sequence[Stream], step: int, **_: Any) -> list[Completions]:
        chances[:] = [distribution(stream.source, target) for stream in streams for _ in range(stream.samples)]
        places = iter(drawn or [0] * len(chances))
        played = [actions(policy)[list(islice(places, stream.samples))] for stream in streams]
        return [
            Completions(tokens[None, :, None], torch.ones(1, len(tokens), 1, dtype=torch.bool)) for tokens in played
        ]

    monkeypatch.setattr(Rollouts, "sample", sample)
    list(algorithm.collect(prompt, step=0))
    weights = list(policy.trainable().values())
    mean, size = torch.zeros(sum(weight.numel() for weight in weights)), 0.0
    for places in product(range(3), repeat=len(chances)):
        drawn[:] = places
        (batch,) = list(algorithm.collect(prompt, step=0))
        gradients = torch.autograd.grad(algorithm.loss(batch).total, weights, allow_unused=True, materialize_grads=True)
        chance = float(torch.stack([chances[stream][place] for stream, place in enumerate(places)]).prod())
        gradient = chance * torch.cat([gradient.flatten() for gradient in gradients])
        mean, size = mean + gradient, size + float(gradient.norm())
    return float(mean.norm()) / size


@pytest.mark.parametrize("name", CASES)
def test_the_expected_gradient_vanishes_at_the_closed_form(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides, target = CASES[name]
    assert share_that_is_left(name, overrides, target, monkeypatch) < 0.01


def test_without_regularisation_dno_rests_at_the_equilibrium_of_the_preference(monkeypatch: pytest.MonkeyPatch) -> None:
    assert share_that_is_left("dno", (*CASES["dno"][0], "algo.kl_tau=0"), FREE, monkeypatch) < 0.01


def test_it_does_not_vanish_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = 0.8 * NASH + 0.2 / 3
    for name, target in (
        ("self_play", RESPONSE),
        ("online_ipo", elsewhere),
        ("nash_pg", NASH),
        ("rspo", NASH),
    ):
        assert share_that_is_left(name, CASES[name][0], target, monkeypatch) > 0.05
