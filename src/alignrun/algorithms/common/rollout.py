"""Sampling and judging, as the online algorithms share it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from alignrun import distributed
from alignrun.algorithms.base import Tools
from alignrun.algorithms.common.batches import pieces, select, shared
from alignrun.algorithms.common.serving import ServedPolicy
from alignrun.config import Engine
from alignrun.data import opened
from alignrun.generation.decode import Sampling, needs_policy, needs_reference, sample_completions
from alignrun.models.device import batch_to
from alignrun.models.policy import Policy, Role
from alignrun.types import Completions, PromptBatch


def step_seed(seed: int, step: int, purpose: int = 0) -> int:
    """A number for every step and purpose of a run."""
    return ((seed * 1_000_003 + step) * 101 + purpose) % (1 << 63)


def step_generator(device: torch.device, seed: int, step: int, purpose: int = 0) -> torch.Generator:
    """Random numbers that depend on the seed and the step alone, so that resuming needs no saved state."""
    return torch.Generator(device=device).manual_seed(step_seed(seed, step, purpose))


def sample_streams(
    policy: Policy,
    prompts: PromptBatch,
    mix_betas: Sequence[float],
    sampling: Sampling,
    generator: torch.Generator,
    other: Role = Role.reference,
    temperatures: Sequence[float] | None = None,
) -> list[Completions]:
    """Draw one completion of every prompt for each β: the policy is 0, the other role 1.

    The random numbers are those of all prompts; each process decodes its share of them, and all get the completions.
    """
    roles = [
        role
        for role, needed in ((Role.policy, needs_policy), (other, needs_reference))
        if any(needed(beta) for beta in mix_betas)
    ]
    shape, device = (sampling.max_new_tokens, len(mix_betas), len(prompts)), policy.device
    uniforms = torch.rand(shape, generator=generator, device=device, dtype=torch.float64)
    if distributed.size() == 1:
        decoder = policy.decoder(prompts, roles, sampling.max_new_tokens)
        return sample_completions(decoder, len(prompts), mix_betas, sampling, uniforms, temperatures)
    index = torch.tensor(distributed.share(len(prompts)), device=device)
    part = select(prompts, index)
    with distributed.raise_together():
        decoder = policy.decoder(part, roles, sampling.max_new_tokens)
        drawn = sample_completions(decoder, len(part), mix_betas, sampling, uniforms[..., index], temperatures)
    length = distributed.largest(drawn[0].tokens.shape[1])
    ours = stack([pad(stream, length, sampling.pad_id) for stream in drawn])
    tokens, mask = (distributed.gather(side, len(prompts)) for side in (ours.tokens, ours.mask))
    return [Completions(*stream) for stream in zip(tokens.unbind(1), mask.unbind(1), strict=True)]


@torch.no_grad()
def log_ratio(policy: Policy, role: Role, prompts: PromptBatch, completions: Completions, temperature: float) -> Tensor:
    """[B, T] log π/μ of a role at every token, of the distributions that are sampled, each process taking its share.

    Of the whole distributions: with completions of truncated ones it is the log ratio of neither, and its mean no KL.
    """

    def of(part: _Drawn) -> Tensor:
        ours, base = (
            policy.log_probs(name, part.prompts, part.completions, temperature) for name in (role, Role.reference)
        )
        return ours - base

    return shared(_Drawn(prompts, completions), of)


@dataclass(frozen=True, slots=True)
class _Drawn:
    """One completion for each of B prompts."""

    prompts: PromptBatch
    completions: Completions


def decode_texts(policy: Policy, completions: Completions) -> list[str]:
    """Completions as text, without special tokens, and with what the chat template has begun of every answer."""
    lengths = completions.mask.sum(1).tolist()
    ids = [row[:length] for row, length in zip(completions.tokens.tolist(), lengths, strict=True)]
    begun = opened(policy.tokenizer)
    return [(begun + text).strip() for text in policy.tokenizer.batch_decode(ids, skip_special_tokens=True)]


class Rollouts:
    """Draws and judges pairs of completions for one run."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        generation = tools.config.generation
        self._chunk = generation.batch_size
        self._sampling = Sampling(
            max_new_tokens=generation.max_new_tokens,
            stop_ids=tools.policy.stop_ids,
            pad_id=tools.policy.tokenizer.pad_token_id,
            temperature=generation.temperature,
        )
        self._served = ServedPolicy(tools.policy, generation) if generation.engine is Engine.server else None

    def sample(
        self,
        prompts: PromptBatch,
        mix_betas: Sequence[float],
        step: int,
        other: Role = Role.reference,
        *,
        temperatures: Sequence[float] | None = None,
        purpose: int = 0,
    ) -> list[Completions]:
        """Draw one completion of every prompt for each β, `generation.batch_size` prompts at a time.

        All streams are padded to one length. Where no stream but the policy's is wanted, a rollout server draws it if
        there is one; a server knows no mixtures and no other role.

        Args:
            prompts: B prompts.
            mix_betas: one for each stream, the weight of the other role in its mixture with the policy.
            step: with the seed and the purpose, what the random numbers depend on.
            other: whose distribution β = 1 is.
            temperatures: one for each stream, where they are not all `generation.temperature`.
            purpose: tells several draws of one step apart.
        """
        policy, seed = self._tools.policy, self._tools.config.seed
        if self._served is not None and not any(mix_betas):
            each = temperatures or [self._sampling.temperature] * len(mix_betas)
            served = None
            with distributed.raise_together():
                if distributed.is_main():
                    drawn = self._served.sample(prompts, each, self._sampling, step_seed(seed, step, purpose))
                    # On the CPU, or the others would open what they are told on the main one's GPU.
                    served = [batch_to(stream, torch.device("cpu")) for stream in drawn]
            chunks = [[batch_to(stream, policy.device) for stream in distributed.broadcast(served)]]
        else:
            generator = step_generator(policy.device, seed, step, purpose)
            chunks = [
                sample_streams(policy, part, mix_betas, self._sampling, generator, other, temperatures)
                for part in pieces(prompts, self._chunk)
            ]
        pad_id = self._sampling.pad_id
        longest = max(completions.tokens.shape[1] for chunk in chunks for completions in chunk)
        streams = zip(*([pad(part, longest, pad_id) for part in chunk] for chunk in chunks), strict=True)
        return [
            Completions(torch.cat([part.tokens for part in stream]), torch.cat([part.mask for part in stream]))
            for stream in streams
        ]

    def preference(self, prompts: PromptBatch, ours: Sequence[Completions], theirs: Sequence[Completions]) -> Tensor:
        """[B, K] P(y ≻ y' | x) of each of our K streams, averaged over all of theirs for the same prompt."""
        return self.pairwise(prompts, ours, theirs).mean(2)

    def pairwise(self, prompts: PromptBatch, ours: Sequence[Completions], theirs: Sequence[Completions]) -> Tensor:
        """[B, K, L] P(y ≻ y' | x) of each of our K streams against each of their L for the same prompt."""
        first, second = ([decode_texts(self._tools.policy, stream) for stream in side] for side in (ours, theirs))
        pairs = [(mine, other) for mine in first for other in second]
        return self._judge(prompts, pairs).reshape(len(prompts), len(ours), len(theirs))

    def table(self, prompts: PromptBatch, streams: Sequence[Completions]) -> Tensor:
        """[B, K, K] P(y_i ≻ y_j | x) between the K streams; every pair is asked about once, since P + Pᵀ = 1."""
        texts = [decode_texts(self._tools.policy, stream) for stream in streams]
        first, second = torch.triu_indices(len(texts), len(texts), 1)
        judged = self._judge(prompts, [(texts[i], texts[j]) for i, j in zip(first, second, strict=True)])
        table = judged.new_full((len(prompts), len(texts), len(texts)), 0.5)
        table[:, first, second], table[:, second, first] = judged, 1 - judged
        return table

    def _judge(self, prompts: PromptBatch, pairs: Sequence[tuple[list[str], list[str]]]) -> Tensor:
        """[B, M] P(first ≻ second | x) of M pairs of streams, as texts."""
        judged = self._tools.preference(
            prompts.texts * len(pairs),
            [text for first, _ in pairs for text in first],
            [text for _, second in pairs for text in second],
        )
        return judged.reshape(len(pairs), len(prompts)).T.to(self._tools.policy.device)


def stack(streams: Sequence[Completions]) -> Completions:
    """K streams of B completions of one length as [B, K, T]."""
    return Completions(
        torch.stack([stream.tokens for stream in streams], dim=1),
        torch.stack([stream.mask for stream in streams], dim=1),
    )


def pad(completions: Completions, length: int, pad_id: int) -> Completions:
    """The same completions with padding up to `length` tokens."""
    extra = (0, length - completions.tokens.shape[1])
    return Completions(
        torch.nn.functional.pad(completions.tokens, extra, value=pad_id),
        torch.nn.functional.pad(completions.mask, extra, value=False),
    )
