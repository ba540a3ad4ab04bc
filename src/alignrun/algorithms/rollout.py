"""Sampling and judging, as the online algorithms share it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from alignrun.algorithms.base import Tools
from alignrun.generation.decode import Sampling, needs_policy, needs_reference, sample_completions
from alignrun.models.policy import Policy, Role
from alignrun.types import Completions, PromptBatch


def step_generator(device: torch.device, seed: int, step: int, purpose: int = 0) -> torch.Generator:
    """Random numbers that depend on the seed and the step alone, so that resuming needs no saved state."""
    mixed = (seed * 1_000_003 + step) * 101 + purpose
    return torch.Generator(device=device).manual_seed(mixed % (1 << 63))


def sample_streams(
    policy: Policy, prompts: PromptBatch, mix_betas: Sequence[float], sampling: Sampling, generator: torch.Generator
) -> list[Completions]:
    """Draw one completion of every prompt for each β: the policy is 0, the reference 1."""
    roles = [
        role
        for role, needed in ((Role.policy, needs_policy), (Role.reference, needs_reference))
        if any(needed(beta) for beta in mix_betas)
    ]
    return sample_completions(policy.decoder(prompts, roles), len(prompts), mix_betas, sampling, generator)


def decode_texts(policy: Policy, completions: Completions) -> list[str]:
    """Completions as text, without special tokens."""
    lengths = completions.mask.sum(1).tolist()
    ids = [row[:length] for row, length in zip(completions.tokens.tolist(), lengths, strict=True)]
    return [text.strip() for text in policy.tokenizer.batch_decode(ids, skip_special_tokens=True)]


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

    def sample(self, prompts: PromptBatch, mix_betas: Sequence[float], step: int) -> list[Completions]:
        """Draw one completion of every prompt for each β, `generation.batch_size` prompts at a time."""
        policy = self._tools.policy
        generator = step_generator(policy.device, self._tools.config.seed, step)
        size = self._chunk or len(prompts)
        chunks = [
            sample_streams(
                policy,
                PromptBatch(
                    prompts.texts[start : start + size],
                    prompts.input_ids[start : start + size],
                    prompts.attention_mask[start : start + size],
                ),
                mix_betas,
                self._sampling,
                generator,
            )
            for start in range(0, len(prompts), size)
        ]
        return [join(parts, self._sampling.pad_id) for parts in zip(*chunks, strict=True)]

    def prefer(self, prompts: PromptBatch, first: Completions, second: Completions) -> Tensor:
        """[B] P(first ≻ second | prompt)."""
        policy = self._tools.policy
        judged = self._tools.preference(prompts.texts, decode_texts(policy, first), decode_texts(policy, second))
        return judged.to(policy.device)


def join(parts: Sequence[Completions], pad_id: int) -> Completions:
    """Completions of several chunks of prompts as one batch, padded to the longest."""
    if len(parts) == 1:
        return parts[0]
    longest = max(part.tokens.shape[1] for part in parts)
    pads = [longest - part.tokens.shape[1] for part in parts]
    pad = torch.nn.functional.pad
    return Completions(
        torch.cat([pad(part.tokens, (0, extra), value=pad_id) for part, extra in zip(parts, pads, strict=True)]),
        torch.cat([pad(part.mask, (0, extra), value=False) for part, extra in zip(parts, pads, strict=True)]),
    )
