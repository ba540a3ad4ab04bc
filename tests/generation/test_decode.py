"""The decoding loop, driven by models whose every distribution is known."""

import itertools
from collections.abc import Sequence

import pytest
import torch
from helpers import load_policy, random_batch

from alignrun.algorithms.common.rollout import sample_streams, step_generator
from alignrun.generation import decode
from alignrun.generation.decode import Sampling, sample_completions
from alignrun.generation.streams import Mixture
from alignrun.models.policy import Policy
from alignrun.types import PromptBatch, Role

STOP, PAD, VOCABULARY = 3, 0, 4


class MarkovDecoder:
    """Next-token distributions that depend on the role and the last token alone; counts what it is asked for."""

    def __init__(self, policy: torch.Tensor, reference: torch.Tensor | None, prompts: int) -> None:
        self.tables = [policy] if reference is None else [policy, reference]
        self.role = [role for role in range(len(self.tables)) for _ in range(prompts)]
        self.last = [1] * len(self.role)
        self.steps: list[int] = []

    def _logits(self) -> torch.Tensor:
        return torch.stack([self.tables[role][last] for role, last in zip(self.role, self.last, strict=True)])

    def prefill(self) -> torch.Tensor:
        return self._logits()

    def select(self, rows: Sequence[int]) -> None:
        self.role = [self.role[row] for row in rows]
        self.last = [self.last[row] for row in rows]
        assert self.role == sorted(self.role)

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        assert len(tokens) == len(self.role)
        self.last = tokens.tolist()
        self.steps.append(len(tokens))
        return self._logits()


def tables(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    policy, reference = torch.randn(2, VOCABULARY, VOCABULARY, generator=generator)
    return policy, reference


def mixture(mix_beta: float) -> Mixture:
    return Mixture(Role.policy, Role.reference, mix_beta)


def draw(mix_betas, prompts=4000, tokens=3, seed=0, stop=STOP):
    policy, reference = tables(seed)
    decoder = MarkovDecoder(policy, reference if any(b > 0 for b in mix_betas) else None, prompts)
    if all(b >= 1 for b in mix_betas):
        decoder = MarkovDecoder(reference, None, prompts)
    sampling = Sampling(max_new_tokens=tokens, stop_ids=[stop], pad_id=PAD)
    shape = (tokens, len(mix_betas), prompts)
    uniforms = torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return sample_completions(decoder, prompts, [mixture(b) for b in mix_betas], sampling, uniforms), decoder


@pytest.mark.parametrize("mix_beta", [0.0, 0.3, 1.0])
def test_frequencies_follow_the_token_wise_mixture(mix_beta: float) -> None:
    policy, reference = tables(0)
    mixture = ((1 - mix_beta) * policy.log_softmax(-1) + mix_beta * reference.log_softmax(-1)).softmax(-1)
    (completions,), _ = draw([mix_beta], prompts=20000, tokens=2)
    first = torch.bincount(completions.tokens[:, 0], minlength=VOCABULARY) / 20000
    torch.testing.assert_close(first, mixture[1], atol=0.015, rtol=0)
    after = completions.tokens[completions.tokens[:, 0] == 2, 1]
    second = torch.bincount(after, minlength=VOCABULARY) / len(after)
    torch.testing.assert_close(second, mixture[2], atol=0.03, rtol=0)


def test_streams_are_drawn_independently_of_each_other() -> None:
    (first, second), _ = draw([0.0, 0.0])
    assert not torch.equal(first.tokens, second.tokens)
    agreement = (first.tokens[:, 0] == second.tokens[:, 0]).float().mean()
    squared = tables(0)[0][1].softmax(-1).square().sum()
    torch.testing.assert_close(agreement, squared, atol=0.03, rtol=0)


def test_finished_rows_leave_the_batch_and_change_no_other_draw() -> None:
    (first, second), decoder = draw([0.0, 0.5], prompts=50, tokens=12)
    assert decoder.steps[0] <= 150
    assert decoder.steps[-1] < decoder.steps[0], "rows must leave when their completion ends"
    (endless, _), _ = draw([0.0, 0.5], prompts=50, tokens=12, stop=99)
    width = first.tokens.shape[1]
    kept = first.mask
    assert torch.equal(first.tokens[kept], endless.tokens[:, :width][kept])
    for completions in (first, second):
        ends = (completions.tokens == STOP) & completions.mask
        assert (ends.sum(1) <= 1).all()
        lengths = completions.mask.sum(1)
        position = torch.where(ends.any(1), ends.int().argmax(1) + 1, 12)
        assert torch.equal(lengths, position), "the stop token is the last of its completion"
        assert (completions.tokens[~completions.mask] == PAD).all()


def test_looking_rarely_as_on_a_gpu_changes_no_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    often, usual = draw([0.0, 0.5], prompts=50, tokens=12)
    monkeypatch.setattr(decode, "looks", lambda device: (4, 0.75))
    rarely, decoder = draw([0.0, 0.5], prompts=50, tokens=12)
    for one, other in zip(often, rarely, strict=True):
        assert torch.equal(one.tokens, other.tokens)
        assert torch.equal(one.mask, other.mask)
    assert len(set(decoder.steps)) > 1, "rows must leave"
    assert all(less <= 0.75 * more for more, less in itertools.pairwise(dict.fromkeys(decoder.steps)))
    assert len(set(decoder.steps)) < len(set(usual.steps))


class UncachedDecoder:
    """The same roles, but every step reads the whole text again without a cache."""

    def __init__(self, policy: Policy, prompts: PromptBatch, roles: Sequence[Role]) -> None:
        self.policy = policy
        self.roles = [role for role in roles for _ in range(len(prompts))]
        self.texts = [
            prompts.input_ids[row][prompts.attention_mask[row].bool()] for _ in roles for row in range(len(prompts))
        ]

    def _logits(self) -> torch.Tensor:
        rows = []
        for role, text in zip(self.roles, self.texts, strict=True):
            one = PromptBatch(("",), text[None], torch.ones_like(text)[None])
            rows.append(self.policy.decoder(one, [role], 1).prefill()[0])
        return torch.stack(rows)

    def prefill(self) -> torch.Tensor:
        return self._logits()

    def select(self, rows: Sequence[int]) -> None:
        self.roles = [self.roles[row] for row in rows]
        self.texts = [self.texts[row] for row in rows]

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        self.texts = [torch.cat([text, token[None]]) for text, token in zip(self.texts, tokens, strict=True)]
        return self._logits()


def test_cached_equals_uncached_token_for_token(policy: Policy) -> None:
    prompts, _ = random_batch(policy, prompts=4)
    sources = [Role.policy, mixture(0.4)]
    sampling = Sampling(max_new_tokens=10, stop_ids=[*range(0, 60)], pad_id=policy.tokenizer.pad_token_id)
    cached = sample_streams(policy, prompts, sources, sampling, step_generator(policy.device, 5, 0))
    uncached = sample_completions(
        UncachedDecoder(policy, prompts, [Role.policy, Role.reference]),
        len(prompts),
        sources,
        sampling,
        torch.rand(10, 2, 4, generator=step_generator(policy.device, 5, 0), dtype=torch.float64),
    )
    assert cached[0].tokens.shape[1] > 1
    for one, other in zip(cached, uncached, strict=True):
        assert torch.equal(one.tokens, other.tokens)
        assert torch.equal(one.mask, other.mask)


def test_mix_beta_zero_and_one_are_the_policy_and_the_reference(policy: Policy) -> None:
    """A stream's draws depend on its own uniforms alone, so the same place gives the same completion."""
    prompts, _ = random_batch(policy, prompts=4)
    sampling = Sampling(max_new_tokens=8, stop_ids=[258], pad_id=policy.tokenizer.pad_token_id)

    def alone(mix_beta: float) -> torch.Tensor:
        return sample_streams(policy, prompts, [mixture(mix_beta)], sampling, step_generator(policy.device, 1, 0))[
            0
        ].tokens

    swapped, _ = load_policy()
    with torch.no_grad():
        for name, weight in swapped.trainable().items():
            if "lora_B" in name:
                weight.zero_()
    reference = sample_streams(swapped, prompts, [Role.policy], sampling, step_generator(policy.device, 1, 0))[0].tokens
    assert torch.equal(alone(1.0), reference)
    assert torch.equal(alone(1 - 1e-12), reference)
    assert torch.equal(alone(1e-12), alone(0.0))
    assert not torch.equal(alone(0.0), reference)


def test_a_seed_and_a_step_determine_the_draw(policy: Policy) -> None:
    prompts, _ = random_batch(policy)
    sampling = Sampling(max_new_tokens=6, stop_ids=[258], pad_id=0)

    def tokens(seed: int, step: int) -> torch.Tensor:
        return sample_streams(policy, prompts, [Role.policy], sampling, step_generator(policy.device, seed, step))[
            0
        ].tokens

    assert torch.equal(tokens(1, 2), tokens(1, 2))
    assert not torch.equal(tokens(1, 2), tokens(1, 3))
    assert not torch.equal(tokens(1, 2), tokens(2, 2))
