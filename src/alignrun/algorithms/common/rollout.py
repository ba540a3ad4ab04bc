"""Sampling and judging for the online algorithms."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from alignrun import distributed
from alignrun.algorithms.base import Tools
from alignrun.algorithms.common.batches import pieces, select, shared
from alignrun.algorithms.common.opponents import BOTH_ORDERS, Comparisons, draw_against, draw_among
from alignrun.algorithms.common.serving import ServedPolicy
from alignrun.config import Engine
from alignrun.data.completions import opened
from alignrun.generation.decode import Sampling, sample_completions
from alignrun.generation.streams import Source, Stream, decoding_roles, policy_alone
from alignrun.models.device import batch_to
from alignrun.models.policy import Policy
from alignrun.types import Completions, PromptBatch, Role

PURPOSES = 101
"""The purposes of draws within a step; each has its own random numbers."""
PAIRS = 50
"""The offset from a sampling purpose to that of drawing pairs of its samples."""


def step_seed(seed: int, step: int, purpose: int = 0) -> int:
    """A seed for a step and purpose of a run."""
    return ((seed * 1_000_003 + step) * PURPOSES + purpose) % (1 << 63)


def step_generator(device: torch.device, seed: int, step: int, purpose: int = 0) -> torch.Generator:
    """A generator that depends only on seed, step and purpose, so that resuming needs no saved state."""
    return torch.Generator(device=device).manual_seed(step_seed(seed, step, purpose))


def sampling_of(
    policy: Policy, max_new_tokens: int, temperature: float, top_k: int = 0, top_p: float = 1.0
) -> Sampling:
    """The sampling settings of a policy, with its own end tokens."""
    return Sampling(max_new_tokens, policy.stop_ids, policy.tokenizer.pad_token_id, temperature, top_k, top_p)


def sample_streams(
    policy: Policy,
    prompts: PromptBatch,
    sources: Sequence[Source],
    sampling: Sampling,
    generator: torch.Generator,
    temperatures: Sequence[float] | None = None,
    watch: Callable[[Tensor], None] | None = None,
) -> list[Completions]:
    """Draw one completion of every prompt from each source, all in one decoding loop.

    The random numbers are drawn for all prompts. Each process decodes its share of the prompts, and all processes
    gather all completions. In a single process, `watch` gets every position as in `sample_completions`.
    """
    roles = decoding_roles(sources)
    shape, device = (sampling.max_new_tokens, len(sources), len(prompts)), policy.device
    uniforms = torch.rand(shape, generator=generator, device=device, dtype=torch.float64)
    if distributed.size() == 1:
        decoder = policy.decoder(prompts, roles, sampling.max_new_tokens)
        return sample_completions(decoder, len(prompts), sources, sampling, uniforms, temperatures, watch)
    index = torch.tensor(distributed.share(len(prompts)), device=device)
    part = select(prompts, index)
    with distributed.raise_together():
        decoder = policy.decoder(part, roles, sampling.max_new_tokens)
        drawn = sample_completions(decoder, len(part), sources, sampling, uniforms[..., index], temperatures)
    length = distributed.largest(drawn[0].tokens.shape[1])
    ours = stack([pad_completions(stream, length, sampling.pad_id) for stream in drawn])
    tokens, mask = (distributed.gather(side, len(prompts)) for side in (ours.tokens, ours.mask))
    return [Completions(*stream) for stream in zip(tokens.unbind(1), mask.unbind(1), strict=True)]


@torch.no_grad()
def log_ratio(policy: Policy, role: Role, prompts: PromptBatch, completions: Completions, temperature: float) -> Tensor:
    """[B, T] log π/μ of a role at every token at the sampling temperature, with the prompts sharded over processes.

    It refers to the untruncated distributions: for completions sampled with top-k or top-p its mean is not a KL.
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
    """Decode completions to text, without special tokens and with the chat template's prefix of every answer."""
    lengths = completions.mask.sum(1).tolist()
    ids = [row[:length] for row, length in zip(completions.tokens.tolist(), lengths, strict=True)]
    begun = opened(policy.tokenizer)
    return [(begun + text).strip() for text in policy.tokenizer.batch_decode(ids, skip_special_tokens=True)]


class Rollouts:
    """Sampling and judging of completions for one run."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        generation = tools.config.generation
        self._chunk, self._device = generation.batch_size, tools.policy.device
        self._sampling = sampling_of(tools.policy, generation.max_new_tokens, generation.temperature)
        self._served = ServedPolicy(tools.policy, generation) if generation.engine is Engine.server else None
        self.questions = 0
        """Questions so far; each pair counts once per order."""

    def sample(
        self, prompts: PromptBatch, streams: Sequence[Stream], step: int, *, purpose: int = 0, judged: bool = True
    ) -> list[Completions]:
        """Sample the declared streams in one decoding loop, `generation.batch_size` prompts at a time.

        If a rollout server is configured and all streams are of the policy alone, the server samples them.

        Args:
            prompts: B prompts.
            streams: the samples to draw.
            step: determines the random numbers, together with the seed and the purpose.
            purpose: distinguishes several draws within a step.
            judged: whether the preference will be asked about these completions of these prompts.

        Returns:
            The K samples of each stream, [B, K, T], all padded to one length.
        """
        if self._served is not None and policy_alone(streams):
            drawn = self._from_server(self._served, prompts, streams, step, purpose)
        else:
            drawn = self._natively(prompts, streams, step, purpose, judged=judged)
        longest = max(one.tokens.shape[1] for one in drawn)
        padded = (pad_completions(one, longest, self._sampling.pad_id) for one in drawn)
        return [stack(list(islice(padded, stream.samples))) for stream in streams]

    def preference(
        self, prompts: PromptBatch, ours: Completions, theirs: Completions, step: int, purpose: int = 0
    ) -> Tensor:
        """[B, K] P(y ≻ y' | x) of each of our K completions, averaged over those of theirs that it is paired with."""
        judged = self.against(prompts, ours, theirs, step, purpose).labels
        return judged.reshape(len(prompts), ours.tokens.shape[1], -1).mean(2)

    def against(
        self, prompts: PromptBatch, ours: Completions, theirs: Completions, step: int, purpose: int = 0
    ) -> Comparisons:
        """Each of our K completions against theirs for the prompt: all L of them, or some that the step draws.

        They are drawn if each pair is a separate question (`Preference.by_pair`). The pairs of one of our
        completions are consecutive.
        """
        sizes = ours.tokens.shape[1], theirs.tokens.shape[1]
        generator = self._drawing(step, purpose)
        pairs = draw_against(generator, len(prompts), *sizes, self._opponents)
        ask = self._tools.preference.for_learner
        return self._judge(ask, prompts, pairs, self.texts(ours), self.texts(theirs))

    def among(self, prompts: PromptBatch, completions: Completions, step: int, *, every: bool = False) -> Comparisons:
        """K completions against each other, all pairs or as in `against`; a pair is judged once, since P + Pᵀ = 1."""
        return self.among_texts(prompts, self.texts(completions), step, every=every)

    def among_texts(
        self, prompts: PromptBatch, texts: Sequence[Sequence[str]], step: int, *, every: bool = False
    ) -> Comparisons:
        """The same of K lists of B texts."""
        opponents = None if every else self._opponents
        pairs = draw_among(self._drawing(step), len(prompts), len(texts), opponents)
        return self._judge(self._tools.preference, prompts, pairs, texts, texts)

    def matched_texts(
        self, prompts: PromptBatch, ours: Sequence[Sequence[str]], theirs: Sequence[Sequence[str]]
    ) -> Tensor:
        """[B, K] P(ours ≻ theirs), each of K lists of B texts against the one at its own place."""
        places = torch.arange(len(ours)).expand(2, len(prompts), -1)
        return self._judge(self._tools.preference.for_learner, prompts, places, ours, theirs).labels

    def texts(self, completions: Completions) -> list[list[str]]:
        """K lists of B texts, from completions [B, K, T]."""
        samples = zip(completions.tokens.unbind(1), completions.mask.unbind(1), strict=True)
        return [decode_texts(self._tools.policy, Completions(*sample)) for sample in samples]

    def _judge(
        self,
        ask: Callable[..., Tensor],
        prompts: PromptBatch,
        pairs: Tensor,
        ours: Sequence[Sequence[str]],
        theirs: Sequence[Sequence[str]],
    ) -> Comparisons:
        """Judge the pairs [2, B, M] of K and L lists of B texts."""
        first, second = (
            [texts[place][row] for places in side.T.tolist() for row, place in enumerate(places)]
            for side, texts in zip(pairs, (ours, theirs), strict=True)
        )
        judged = ask(prompts.texts * pairs.shape[2], first, second)
        self.questions += BOTH_ORDERS * len(first) if self._tools.preference.by_pair else 0
        labels = judged.reshape(-1, len(prompts)).T.to(self._device)
        one, other = pairs.to(self._device)
        return Comparisons(one, other, labels)

    @property
    def _opponents(self) -> int | None:
        """Opponents per completion; None for all, as when each completion is read once for all pairs."""
        opponents: int | None = getattr(self._tools.config.algo, "opponents_per_sample", None)
        return opponents if self._tools.preference.by_pair else None

    def _drawing(self, step: int, purpose: int = 0) -> torch.Generator:
        """Draws pairs: on the CPU, and thus the same for every device and process."""
        return step_generator(torch.device("cpu"), self._tools.config.seed, step, (purpose + PAIRS) % PURPOSES)

    def _natively(
        self, prompts: PromptBatch, streams: Sequence[Stream], step: int, purpose: int, *, judged: bool = True
    ) -> list[Completions]:
        """All samples of all streams in order, each [B, T], from the native engine."""
        sources = [stream.source for stream in streams for _ in range(stream.samples)]
        temperatures = self._temperatures(streams) if any(stream.temperature for stream in streams) else None
        generator = step_generator(self._device, self._tools.config.seed, step, purpose)
        chunks: list[list[Completions]] = []
        for part in pieces(prompts, self._chunk):
            chunks.append(sample_streams(self._tools.policy, part, sources, self._sampling, generator, temperatures))
            if judged and len(part) < len(prompts):  # judge these while the next ones are decoded
                texts = [text for one in chunks[-1] for text in decode_texts(self._tools.policy, one)]
                self._tools.preference.expect(part.texts * len(sources), texts)
        longest = max(chunk[0].tokens.shape[1] for chunk in chunks)
        padded = [[pad_completions(one, longest, self._sampling.pad_id) for one in chunk] for chunk in chunks]
        return [concatenate(parts) for parts in zip(*padded, strict=True)]

    def _from_server(
        self, server: ServedPolicy, prompts: PromptBatch, streams: Sequence[Stream], step: int, purpose: int
    ) -> list[Completions]:
        """All samples of all streams in order; the main process requests them and broadcasts them."""
        served = None
        with distributed.raise_together():
            if distributed.is_main():
                seed = step_seed(self._tools.config.seed, step, purpose)
                drawn = server.sample(prompts, self._temperatures(streams), self._sampling, seed)
                # On the CPU: otherwise the other processes would open the tensors on the main process's GPU.
                served = [batch_to(one, torch.device("cpu")) for one in drawn]
        return [batch_to(one, self._device) for one in distributed.broadcast(served)]

    def _temperatures(self, streams: Sequence[Stream]) -> list[float]:
        """The temperature of each sample."""
        usual = self._sampling.temperature
        return [stream.temperature or usual for stream in streams for _ in range(stream.samples)]


def stack(samples: Sequence[Completions]) -> Completions:
    """Stack K samples [B, T] of one length into [B, K, T]."""
    return Completions(torch.stack([one.tokens for one in samples], 1), torch.stack([one.mask for one in samples], 1))


def concatenate(parts: Sequence[Completions], dim: int = 0) -> Completions:
    """Concatenate completions of one length along a dimension."""
    return Completions(torch.cat([one.tokens for one in parts], dim), torch.cat([one.mask for one in parts], dim))


def pad_completions(completions: Completions, length: int, pad_id: int) -> Completions:
    """Pad completions to `length` tokens."""
    extra = (0, length - completions.tokens.shape[1])
    return Completions(
        torch.nn.functional.pad(completions.tokens, extra, value=pad_id),
        torch.nn.functional.pad(completions.mask, extra, value=False),
    )
