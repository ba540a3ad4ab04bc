"""Gradients from completions of a server that draws from another distribution than the policy's."""

import math
from dataclasses import replace
from itertools import product

import pytest
import torch
from helpers import Compared, load_policy
from torch import Tensor

from alignrun.algorithms.base import Tools, discover
from alignrun.algorithms.common.conversations import Conversations
from alignrun.algorithms.common.game_gradient import Judged
from alignrun.algorithms.common.mismatch import check_mismatch, mismatch_metrics
from alignrun.algorithms.common.rewards import Rewarded
from alignrun.algorithms.mtpo import JudgedConversations
from alignrun.algorithms.stackelberg import Led
from alignrun.errors import RunError
from alignrun.launch.compose import compose
from alignrun.models.policy import Policy
from alignrun.models.sources import load_tokenizer
from alignrun.objectives.importance import sequence_weights, token_weights
from alignrun.preferences import base as preferences
from alignrun.types import Completions, PromptBatch, Role


def test_weights_are_ratios_up_to_the_cap() -> None:
    ratio = torch.tensor([[1.5, 2.0, 0.5], [0.5, 0.5, 9.0], [3.0, 1.0, 1.0]]).log()
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0]]).bool()
    expected = torch.tensor([[1.5, 2.0, 0.5], [0.5, 0.5, 1.0], [2.0, 1.0, 1.0]])
    torch.testing.assert_close(token_weights(ratio, mask, 2.0), expected)
    torch.testing.assert_close(sequence_weights(ratio, mask, 2.0), torch.tensor([1.5, 0.25, 2.0]))
    torch.testing.assert_close(sequence_weights(ratio, mask, 9.0), torch.tensor([1.5, 0.25, 3.0]))


def built(name: str, cap: float) -> tuple:
    """The algorithm on the game LM, all pairs of tokens as completions, and how often an engine draws them."""
    settings = ["generation.max_new_tokens=2", f"generation.server_weight_cap={cap}", "algo.kl_tau=0.3"]
    config = compose(["experiment=game", f"algo={name}", *settings])
    policy = Policy.load(config.model, config.adapter, config.reference, load_tokenizer(config.model), 0)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in policy.trainable().values():
            weight += 0.1 * torch.randn(weight.shape, generator=generator)
    preference = preferences.discover()[config.preference.name].build(config.preference)
    algorithm = discover()[name](config.algo, Tools(policy, preference, config))
    tokens = torch.tensor(list(product(policy.tokenizer.convert_tokens_to_ids(list("abc")), repeat=2)))
    ids = torch.tensor([policy.tokenizer.encode("play")])
    prompt = PromptBatch(("play",), ids, torch.ones_like(ids))
    texts = Completions(tokens[None], torch.ones_like(tokens[None]).bool())
    log_pi = policy.log_probs(Role.policy, prompt, texts.flat()).detach()
    log_q = log_pi + 0.3 * torch.randn(log_pi.shape, generator=generator)
    return algorithm, prompt, texts, log_pi, log_q


def gradient(algorithm, batches: list, weights: Tensor) -> list[Tensor]:
    """Σ_y weight(y) ∇loss(y)."""
    trained = list(algorithm.tools.policy.trainable().values())
    total = sum(weight * algorithm.loss(batch).total for weight, batch in zip(weights, batches, strict=True))
    return list(torch.autograd.grad(total, trained))


@pytest.mark.parametrize("cap", [50.0, 1.1])
def test_the_game_gradient_is_that_of_the_policy_where_the_cap_does_not_bind(cap: float) -> None:
    algorithm, prompt, texts, log_pi, log_q = built("self_play", cap)
    scores = torch.linspace(0.1, 0.9, texts.tokens.shape[1])

    def batches(drawn_with: Tensor | None) -> list[Judged]:
        every = range(len(scores))
        parts = [None if drawn_with is None else drawn_with[None, [one]] for one in every]
        return [
            Judged(prompt, Completions(texts.tokens[:, [one]], texts.mask[:, [one]], parts[one]), scores[None, [one]])
            for one in every
        ]

    chances, engine = log_pi.sum(1).exp(), log_q.sum(1).exp()
    ratios = chances / engine
    assert 1.1 < ratios.max() < 50
    expected = gradient(algorithm, batches(None), engine * ratios.clamp(max=cap))
    assert algorithm.correction.drain() == {}
    found = gradient(algorithm, batches(log_q), engine)
    uncorrected = gradient(algorithm, batches(None), engine)
    for one, other, plain in zip(found, expected, uncorrected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
        assert not torch.allclose(plain, other, atol=1e-4, rtol=1e-2) or other.abs().max() < 1e-3


def test_what_is_logged_is_the_divergence_per_token() -> None:
    _, _, texts, log_pi, log_q = built("self_play", 2.0)
    flat = replace(texts.flat(), drawn_with=log_q)
    assert mismatch_metrics(texts.flat(), log_pi) == {}
    found = mismatch_metrics(flat, log_pi)
    ratios = (log_pi - log_q).double()
    assert float(found["mismatch_kl"]) == pytest.approx(float((ratios.exp() - 1 - ratios).mean(1).sum()), rel=1e-5)
    assert float(found["mismatch_kl_k1"]) == pytest.approx(float(-ratios.mean(1).sum()), rel=1e-5)


@pytest.mark.parametrize("name", ["ppo", "grpo", "nash_pg", "rloo"])
def test_surrogates_of_other_methods_are_weighted_too(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With π/π_server = 1.5 at every token, tokens weigh 1.5 and completions of two tokens the cap."""
    plain = {"ppo": ["algo.value_weight=0"], "grpo": ["algo.kl_tau=0"]}.get(name, [])
    settings = ["preference=sentiment", "generation.max_new_tokens=2", "generation.temperature=1", *plain]
    policy, config = load_policy(f"algo={name}", *settings)
    preference = preferences.discover()["sentiment"].build(config.preference)
    algorithm = discover()[name](config.algo, Tools(policy, preference, config))
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 200, (1, 4, 2), generator=generator)
    ids = torch.tensor([[5, 6]])
    prompt = PromptBatch(("x",), ids, torch.ones_like(ids))
    texts = Completions(tokens, torch.ones_like(tokens).bool())
    log_pi = policy.log_probs(Role.policy, prompt, texts.flat()).detach().reshape(tokens.shape)

    def steps(shift: float | None) -> list[Tensor]:
        drawn_with = None if shift is None else log_pi - shift
        drawn, rewards = replace(texts, drawn_with=drawn_with), torch.randn(1, 4, generator=generator.manual_seed(1))
        compared = name == "nash_pg"
        rewarded = Judged(prompt, drawn, rewards) if compared else Rewarded(prompt, drawn, rewards, torch.zeros(1, 4))
        monkeypatch.setattr(algorithm, "draw", lambda *_, **__: rewarded)
        batch = next(iter(algorithm.collect(prompt, 0)))
        return list(torch.autograd.grad(algorithm.loss(batch).total, list(policy.trainable().values())))

    native, same, other = steps(None), steps(0.0), steps(torch.tensor(1.5).log().item())
    factor = min(1.5**2, 2.0) if name == "rloo" else 1.5
    for one, equal, weighted in zip(native, same, other, strict=True):
        torch.testing.assert_close(equal, one, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(weighted, factor * one, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("name", "batch_of"), [("mtpo", JudgedConversations), ("stackelberg", Led)])
def test_the_answers_of_a_conversation_are_weighted_as_one_sample(name: str, batch_of: type) -> None:
    policy, config = load_policy(f"algo={name}", "generation.max_new_tokens=2", "generation.temperature=1")
    algorithm = discover()[name](config.algo, Tools(policy, Compared(lambda *_: torch.empty(0)), config))
    generator = torch.Generator().manual_seed(0)
    first, later = (torch.randint(0, 200, shape, generator=generator) for shape in ((1, 4, 2), (1, 4, 1, 2)))
    ids = torch.tensor([[5, 6]])
    prompt = PromptBatch(("x",), ids, torch.ones_like(ids))
    asked = ids.expand(1, 4, 1, 2)
    texts = (Completions(tokens, torch.ones_like(tokens).bool()) for tokens in (first, later))
    said = Conversations(prompt, next(texts), asked, torch.ones_like(asked), next(texts))
    log_pi = [policy.log_probs(Role.policy, *turn).detach() for turn in said.turns()]

    def steps(ratio: float | None) -> list[Tensor]:
        opening, answer = said.first, said.later
        if ratio is not None:
            opening = replace(opening, drawn_with=log_pi[0].reshape(first.shape) - math.log(ratio))
            answer = replace(answer, drawn_with=log_pi[1].reshape(later.shape) - math.log(ratio))
        batch = batch_of(replace(said, first=opening, later=answer), torch.linspace(0.1, 0.9, 4)[None])
        loss = algorithm.loss(batch)
        if ratio is not None:  # of every token, in both turns
            expected = 4 * (ratio - 1 - math.log(ratio))
            assert float(loss.metrics["mismatch_kl"]) == pytest.approx(expected, rel=1e-3)
        return list(torch.autograd.grad(loss.total, list(policy.trainable().values())))

    native = steps(None)
    for ratio, factor in ((1.1, 1.1**4), (1.5, 2.0)):
        for one, weighted in zip(native, steps(ratio), strict=True):
            torch.testing.assert_close(weighted, factor * one, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("kind", "advice"),
    [
        ("vllm", "and start vLLM with --logprobs-mode processed_logprobs;"),
        ("sglang", "and start SGLang without SGLANG_RETURN_ORIGINAL_LOGPROB;"),
        ("auto", "processed_logprobs, or start SGLang without"),
    ],
)
def test_a_refused_mismatch_says_how_to_start_that_server(kind: str, advice: str) -> None:
    config = compose(["experiment=smoke", f"generation.server_kind={kind}"])
    with pytest.raises(RunError, match=advice):
        check_mismatch(config, 0.2)
