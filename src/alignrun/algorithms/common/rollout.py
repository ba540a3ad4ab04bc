"""Sampling and judging for the online algorithms."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import Tensor

from alignrun import distributed
from alignrun.algorithms.base import Tools
from alignrun.algorithms.common.batches import pieces, rows, select
from alignrun.algorithms.common.opponents import BOTH_ORDERS, Comparisons, draw_against, draw_among, draw_apart
from alignrun.algorithms.common.paired import Sides, always_paired, joined, may_pair, pair_uniforms, sample_pairs, worth
from alignrun.algorithms.common.scoring import scoring
from alignrun.algorithms.common.stacking import consecutive, pad_completions, stack
from alignrun.config import Engine, Opponents
from alignrun.data.completions import opened
from alignrun.errors import InputError
from alignrun.generation.decode import Sampling, sample_completions
from alignrun.generation.streams import Source, Stream, decoding_roles
from alignrun.models.fitting import Pieces
from alignrun.models.policy import Policy
from alignrun.types import Completions, PromptBatch

PURPOSES = 101
"""The purposes of draws within a step; each has its own random numbers."""
DRAFTED = "opponents_drafted"
"""The share of the opponents' tokens that are those of the policy's samples that drafted them, as a metric."""
AGAIN = 32
"""Steps from one measurement to the next where drafting does not pay."""
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
    pace: "Pace | None" = None,
) -> list[Completions]:
    """Draw one completion of every prompt from each source, all in one decoding loop unless `pace` says otherwise.

    The random numbers are drawn for all prompts, so no draw depends on how many are decoded together. Each process
    decodes its share of the prompts, and all processes gather all completions. In a single process, `watch` gets every
    position as in `sample_completions`.
    """
    shape, pace = (sampling.max_new_tokens, len(sources), len(prompts)), pace or Pace()
    uniforms = torch.rand(shape, generator=generator, device=policy.device, dtype=torch.float64)

    def decoded(part: PromptBatch, numbers: Tensor) -> list[Completions]:
        """This process's prompts, in as many loops as memory needs."""

        def in_loops(size: int) -> list[Completions]:
            loops = []
            for start in range(0, len(part), size):
                some = rows(part, slice(start, start + size)) if size < len(part) else part
                decoder = policy.decoder(some, decoding_roles(sources), sampling.max_new_tokens)
                drawn = numbers[..., start : start + size]
                loops.append(sample_completions(decoder, len(some), sources, sampling, drawn, temperatures, watch))
            return consecutive(loops, sampling.pad_id)

        return pace.memory.that_fit(len(part), in_loops)

    chunks, each = [], pace.chunk or len(prompts)
    for start in range(0, len(prompts), each):
        chunk = rows(prompts, slice(start, start + each)) if each < len(prompts) else prompts
        chunks.append(_on_all_processes(chunk, uniforms[..., start : start + each], decoded, sampling.pad_id))
        if each < len(prompts):
            pace.drawn(chunk, chunks[-1])
    return consecutive(chunks, sampling.pad_id)


def _on_all_processes(
    prompts: PromptBatch,
    uniforms: Tensor,
    decoded: Callable[[PromptBatch, Tensor], list[Completions]],
    pad_id: int,
) -> list[Completions]:
    """The completions of all prompts, of which each process decodes its share."""
    if distributed.size() == 1:
        return decoded(prompts, uniforms)
    index = torch.tensor(distributed.share(len(prompts)), device=uniforms.device)
    with distributed.raise_together():
        drawn = decoded(select(prompts, index), uniforms[..., index])
    length = distributed.largest(drawn[0].tokens.shape[1])
    ours = stack([pad_completions(stream, length, pad_id) for stream in drawn])
    tokens, mask = (distributed.gather(side, len(prompts)) for side in (ours.tokens, ours.mask))
    return [Completions(*stream) for stream in zip(tokens.unbind(1), mask.unbind(1), strict=True)]


def fitting() -> Pieces:
    """How many prompts this process decodes together, halved when memory runs out."""
    processes = distributed.size()
    return Pieces(None, "when sampling for", "generation.batch_size", "no random number", processes=processes)


@dataclass(frozen=True, slots=True)
class Pace:
    """How many prompts are decoded together."""

    chunk: int | None = None
    """Prompts, over all processes; None takes all at once."""
    memory: Pieces = field(default_factory=fitting)
    """What fits on this process."""
    drawn: Callable[[PromptBatch, list[Completions]], None] = lambda _prompts, _drawn: None
    """Gets the prompts and completions of each of several chunks, once it is drawn."""


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
        self._device = tools.policy.device
        self._chunk = generation.chunk
        self.memory = fitting()
        """What has been found to fit while sampling."""
        self.scoring = scoring(tools.config.train.micro, "train.micro_batch_size")
        """What has been found to fit while scoring."""
        self._sampling = sampling_of(tools.policy, generation.max_new_tokens, generation.temperature)
        if generation.opponents is Opponents.drafted and not tools.policy.rereads:
            raise InputError(
                "generation.opponents=drafted needs a model whose layers are all full attention: leave it out"
            )
        self.questions = 0
        """Questions so far; each pair counts once per order."""
        self.measured = {DRAFTED: 1.0}
        """What the next steps depend on: the share of the last drafted opponents' tokens that the drafts had."""
        self._drafted: list[float] = []

    def sample(
        self, prompts: PromptBatch, streams: Sequence[Stream], step: int, *, purpose: int = 0, judged: bool = True
    ) -> list[Completions]:
        """Sample the declared streams in one decoding loop, `generation.batch_size` prompts at a time.

        Args:
            prompts: B prompts.
            streams: the samples to draw.
            step: determines the random numbers, together with the seed and the purpose.
            purpose: distinguishes several draws within a step.
            judged: whether the preference will be asked about these completions of these prompts.

        Returns:
            The K samples of each stream, [B, K, T], all padded to one length.
        """
        drawn = self._draw(prompts, streams, step, purpose, judged=judged)
        longest = max(one.tokens.shape[1] for one in drawn)
        padded = (pad_completions(one, longest, self._sampling.pad_id) for one in drawn)
        return [stack(list(islice(padded, stream.samples))) for stream in streams]

    def opposed(self, prompts: PromptBatch, streams: Sequence[Stream], step: int) -> Sides:
        """Sample the policy's stream and its opponent's, independently or by draft and verify (`drafts`)."""
        own, other = streams
        if not self.drafts(streams, len(prompts), step):
            self._drafted.append(0.0)
            ours, theirs = self.sample(prompts, streams, step)
            return Sides(ours, theirs)
        generator = step_generator(self._device, self._tools.config.seed, step)
        uniforms = pair_uniforms(len(prompts), own.samples, self._sampling, generator)
        chunks: list[Sides] = []
        for part, numbers in zip(
            pieces(prompts, self._chunk), uniforms.split(self._chunk or len(prompts), -1), strict=True
        ):
            chunks.append(sample_pairs(self._tools.policy, part, other.source, self._sampling, numbers, self.memory))
            if len(part) < len(prompts):  # judged while the next are decoded
                both = (self.texts(side) for side in (chunks[-1].ours, chunks[-1].theirs))
                texts = [text for side in both for sample in side for text in sample]
                self._tools.preference.expect(part.texts * (2 * own.samples), texts)
        sides = joined(chunks, self._sampling.pad_id)
        assert sides.accepted is not None
        self.measured[DRAFTED] = float(sides.accepted.sum() / sides.theirs.mask.sum())
        self._drafted.append(self.measured[DRAFTED])
        return sides

    def drafts(self, streams: Sequence[Stream], prompts: int, step: int) -> bool:
        """Whether a step takes its opponents from the policy's samples: as configured, or where that pays.

        `auto` drafts while the last drafted opponents had so many of their tokens from the drafts that this is `worth`
        it, and once in `AGAIN` steps to measure it anew. The choice does not depend on the samples of the step itself,
        which would bias them, nor on time or the number of processes.
        """
        own, other = streams
        generation = self._tools.config.generation
        if always_paired(other, generation):
            return True
        able = generation.engine is Engine.native and self._tools.policy.rereads
        if not (able and may_pair(other)) or generation.opponents is Opponents.independent:
            return False
        least = worth(other.source, own.samples * min(prompts, self._chunk or prompts), self._device)
        return self.measured[DRAFTED] >= least or (least <= 1 and step % AGAIN == 0)

    def preference(
        self,
        prompts: PromptBatch,
        ours: Completions,
        theirs: Completions,
        step: int,
        purpose: int = 0,
        *,
        apart: bool = False,
    ) -> Tensor:
        """[B, K] P(y ≻ y' | x) of each of our K completions, averaged over those of theirs that it is paired with."""
        judged = self.against(prompts, ours, theirs, step, purpose, apart=apart).labels
        return judged.reshape(len(prompts), ours.tokens.shape[1], -1).mean(2)

    def against(
        self,
        prompts: PromptBatch,
        ours: Completions,
        theirs: Completions,
        step: int,
        purpose: int = 0,
        *,
        apart: bool = False,
    ) -> Comparisons:
        """Each of our K completions against theirs for the prompt: all L of them, or some that the step draws.

        They are drawn if each pair is a separate question (`Preference.by_pair`). The pairs of one of our
        completions are consecutive. With `apart`, ours and theirs of the same number are not paired, since one depends
        on the other.
        """
        sizes = ours.tokens.shape[1], theirs.tokens.shape[1]
        generator = self._drawing(step, purpose)
        if apart:
            pairs = draw_apart(generator, len(prompts), sizes[0], self._opponents)
        else:
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

    def drain(self) -> dict[str, float]:
        """Since the last call: the share of the opponents' tokens that were drafts, 0 where they are independent."""
        shares, self._drafted = self._drafted, []
        return {DRAFTED: sum(shares) / len(shares)} if shares else {}

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

    def _draw(
        self, prompts: PromptBatch, streams: Sequence[Stream], step: int, purpose: int, *, judged: bool
    ) -> list[Completions]:
        """All samples of all streams in order, each [B, T]; the preference may begin with those that are `judged`."""
        sources = [stream.source for stream in streams for _ in range(stream.samples)]
        temperatures = self._temperatures(streams) if any(stream.temperature for stream in streams) else None
        generator = step_generator(self._device, self._tools.config.seed, step, purpose)
        pace = Pace(self._chunk, self.memory, self._expect) if judged else Pace(self._chunk, self.memory)
        return sample_streams(self._tools.policy, prompts, sources, self._sampling, generator, temperatures, None, pace)

    def _expect(self, prompts: PromptBatch, drawn: Sequence[Completions]) -> None:
        """Have them judged while the next are decoded."""
        texts = [text for one in drawn for text in decode_texts(self._tools.policy, one)]
        self._tools.preference.expect(prompts.texts * len(drawn), texts)

    def _temperatures(self, streams: Sequence[Stream]) -> list[float]:
        """The temperature of each sample."""
        usual = self._sampling.temperature
        return [stream.temperature or usual for stream in streams for _ in range(stream.samples)]
