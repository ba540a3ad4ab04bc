"""Opponents out of the policy's own samples, in the native engine: draft and verify (`generation/verify.py`).

Sample y_j of the policy is the draft of opponent y'_j: its tokens are accepted up to the first rejected one, which is
redrawn, and the decoding loop goes on from there. y'_j has exactly the opponent's distribution and is independent of
y_i for i ≠ j, though not of y_j. So means over pairs i ≠ j are unbiased, and i = j is left out.

The drafts are read once, under the policy and the opponent's roles in one batch. Their keys and values are kept, so
that going on costs one row per role and token, and the read gives log π/μ of the policy's samples as well.

Shape legend: B prompts, K samples of each, N = B·K drafts, T tokens, R model rows, D hidden size.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from alignrun import distributed
from alignrun.algorithms.common.batches import rows, select
from alignrun.algorithms.common.stacking import concatenate, pad_completions, stack
from alignrun.config import Engine, GenerationConfig, Opponents
from alignrun.generation.decode import Decoder, Sampling, sample_completions
from alignrun.generation.streams import Source, Stream, decoding_roles, roles_of
from alignrun.generation.verify import Verified, verify
from alignrun.models.decoding.decoder import CachedDecoder, JoinedDecoder
from alignrun.models.fitting import Pieces
from alignrun.models.policy import Policy
from alignrun.objectives.likelihood import token_log_probs
from alignrun.types import Completions, PromptBatch, Role, map_parts

AT_ONCE = 4096
"""Tokens in one pass over the drafts, unless the prompts are more."""
PASS, CHECK, STEP = 0.65, 0.4, 18
"""Costs on a CPU of reading a token, of verifying one, and of a decoding step without its rows, in decoded tokens."""


@dataclass(frozen=True, slots=True)
class Sides:
    """K completions of the policy for each of B prompts, and as many of its opponent."""

    ours: Completions
    """[B, K, T]"""
    theirs: Completions
    """[B, K, T]"""
    accepted: Tensor | None = None
    """[B, K] tokens of ours that are theirs too, if sample j of theirs was drafted by sample j of ours; else None."""
    log_ratio: Tensor | None = None
    """[B, K, T] log π/μ of ours at the sampling temperature, if it is known."""


def may_pair(stream: Stream) -> bool:
    """Whether a stream may be drafted at all: not for one sample, since none is left for it to meet."""
    return stream.drafted and stream.samples > 1


def always_paired(stream: Stream, generation: GenerationConfig) -> bool:
    """Whether a stream is drafted at every step: if configured so, or by itself if its source is the policy."""
    if not may_pair(stream) or generation.engine is not Engine.native:
        return False
    alone = roles_of(stream.source) == (Role.policy,)
    return generation.opponents is Opponents.drafted or (alone and generation.opponents is Opponents.auto)


def worth(opponent: Source, drafts: int, device: torch.device) -> float:
    """The least share of accepted tokens at which drafting N opponents costs less than drawing them; above 1: never.

    The costs, per token of the drafts and in units of a decoded token, are those of the rows saved, of the reads, and
    of the second loop of decoding; if the drafts are read under μ, the loss need not do so. They were measured on a
    CPU, so elsewhere this says never.
    """
    rows = roles_of(opponent)
    if device.type != "cpu":
        return math.inf
    reads = len({Role.policy, *rows}) - (Role.reference in rows)
    return (PASS * reads + CHECK + STEP / drafts) / len(rows)


def pair_uniforms(prompts: int, samples: int, sampling: Sampling, generator: torch.Generator) -> Tensor:
    """[3, T, K, B] float64 in [0, 1): the random numbers of `sample_pairs` for all prompts of a step.

    Drawn for the whole batch, so that no draw depends on how many prompts are decoded together.
    """
    shape = 3, sampling.max_new_tokens, samples, prompts
    return torch.rand(shape, generator=generator, device=generator.device, dtype=torch.float64)


def sample_pairs(
    policy: Policy,
    prompts: PromptBatch,
    opponent: Source,
    sampling: Sampling,
    uniforms: Tensor,
    memory: Pieces,
) -> Sides:
    """K ≥ 2 completions of the policy for each prompt, and opponents that are drafted by them.

    `uniforms` are those of the prompts from `pair_uniforms`. Each process decodes its share in the pieces that fit its
    memory, as in `sample_streams`.
    """

    def drawn(part: PromptBatch, numbers: Tensor) -> Sides:
        def in_loops(size: int) -> Sides:
            spans = [slice(start, start + size) for start in range(0, len(part), size)]
            loops = [_sample(policy, rows(part, span), opponent, sampling, numbers[..., span]) for span in spans]
            return joined(loops, sampling.pad_id)

        return memory.that_fit(len(part), in_loops)

    if distributed.size() == 1:
        return drawn(prompts, uniforms)
    index = torch.tensor(distributed.share(len(prompts)), device=policy.device)
    with distributed.raise_together():
        part = drawn(select(prompts, index), uniforms[..., index])
    ours, theirs = (distributed.largest(side.tokens.shape[2]) for side in (part.ours, part.theirs))
    return map_parts(_padded(part, ours, theirs, sampling.pad_id), lambda one: _gathered(one, len(prompts)))


def joined(parts: Sequence[Sides], pad_id: int) -> Sides:
    """Both sides of consecutive prompts as one."""
    if len(parts) == 1:
        return parts[0]
    ours, theirs = (
        max(side.tokens.shape[2] for side in sides) for sides in zip(*((p.ours, p.theirs) for p in parts), strict=True)
    )
    alike = [_padded(part, ours, theirs, pad_id) for part in parts]
    ratios = [part.log_ratio for part in alike if part.log_ratio is not None]
    return Sides(
        concatenate([part.ours for part in alike]),
        concatenate([part.theirs for part in alike]),
        torch.cat([part.accepted for part in alike if part.accepted is not None]),
        torch.cat(ratios) if ratios else None,
    )


def _padded(sides: Sides, ours: int, theirs: int, pad_id: int) -> Sides:
    """Both sides padded to the given lengths."""
    ratio = sides.log_ratio
    return Sides(
        pad_completions(sides.ours, ours, pad_id),
        pad_completions(sides.theirs, theirs, pad_id),
        sides.accepted,
        None if ratio is None else F.pad(ratio, (0, ours - ratio.shape[2])),
    )


def _gathered(rows: Tensor | None, count: int) -> Tensor | None:
    return None if rows is None else distributed.gather(rows, count)


def _sample(policy: Policy, prompts: PromptBatch, opponent: Source, sampling: Sampling, uniforms: Tensor) -> Sides:
    """`sample_pairs` with its random numbers [3, T, K, B]: for drawing drafts, accepting them, and redrawing."""
    samples = uniforms.shape[2]
    decoder = policy.decoder(prompts, [Role.policy], sampling.max_new_tokens)
    drawn = sample_completions(decoder, len(prompts), [Role.policy] * samples, sampling, uniforms[0])
    del decoder  # its keys and values
    accepting, redrawing = (part.permute(2, 1, 0).flatten(0, 1) for part in uniforms[1:])
    return pair(policy, prompts, stack(drawn), opponent, sampling, accepting, redrawing)


def pair(
    policy: Policy,
    prompts: PromptBatch,
    ours: Completions,
    opponent: Source,
    sampling: Sampling,
    accepting: Tensor,
    redrawing: Tensor,
) -> Sides:
    """Opponents out of the policy's samples.

    Args:
        policy: one for which `Policy.rereads` holds.
        prompts: B prompts.
        ours: [B, K, T] samples of the policy.
        opponent: the distribution of theirs.
        sampling: of both.
        accepting: [N, max_new_tokens] uniform numbers to accept tokens with.
        redrawing: [N, max_new_tokens] uniform numbers to draw tokens with.
    """
    if roles_of(opponent) == (Role.policy,):
        return Sides(ours, ours, ours.mask.sum(2))
    drafts, roles = ours.flat(), decoding_roles([Role.policy, opponent])
    decoder = policy.decoder(prompts, roles, 2 * sampling.max_new_tokens)
    hidden = _read(decoder, prompts, drafts, len(roles))
    log_probs = {role: torch.zeros(drafts.tokens.numel(), device=policy.device) for role in roles}

    def logits(role: Role, places: Tensor) -> Tensor:
        """Those that `verify` asks for; they also give the log-probabilities of the drafts' tokens."""
        values = policy.head_logits(role, hidden[roles.index(role)][places])
        targets = drafts.tokens.flatten()[places]
        own = token_log_probs(values, lambda logits: logits, targets, temperature=sampling.temperature)
        log_probs[role][places] = own.to(log_probs[role])
        return values

    width = drafts.tokens.shape[1]
    found = verify(drafts, Role.policy, opponent, sampling, logits, accepting[:, :width], redrawing[:, :width])
    theirs = _go_on(decoder, roles, opponent, found, redrawing, sampling)
    theirs = Completions(*(side.unflatten(0, ours.tokens.shape[:2]) for side in (theirs.tokens, theirs.mask)))
    known = Role.reference in roles
    log_ratio = (log_probs[Role.policy] - log_probs[Role.reference]).reshape(ours.tokens.shape) if known else None
    return Sides(ours, theirs, found.accepted.reshape(ours.tokens.shape[:2]), log_ratio)


def _read(decoder: CachedDecoder | JoinedDecoder, prompts: PromptBatch, drafts: Completions, roles: int) -> Tensor:
    """[roles, N·T, D] the hidden states before every token of the drafts; each prompt is read once for its drafts."""
    count = len(prompts)
    first = decoder.encode()
    rows = torch.arange(roles * count).repeat_interleave(len(drafts.tokens) // count)
    decoder.select(rows.tolist())
    parts = [first[rows.to(first.device), None]]
    if drafts.tokens.shape[1] > 1:  # the last token is only a target
        tokens, mask = (side[:, :-1].repeat(roles, 1) for side in (drafts.tokens, drafts.mask))
        parts.append(decoder.read(tokens, mask, max(AT_ONCE, roles * prompts.input_ids.numel())))
    return torch.cat(parts, 1).reshape(roles, drafts.tokens.numel(), -1)


def _go_on(
    decoder: CachedDecoder | JoinedDecoder,
    roles: Sequence[Role],
    opponent: Source,
    found: Verified,
    redrawing: Tensor,
    sampling: Sampling,
) -> Completions:
    """[N, T] the opponent's completions after the verified prefixes, from a decoder that has read the drafts."""
    prefix, length = found.prefix, sampling.max_new_tokens
    count, width = prefix.tokens.shape
    tokens = F.pad(prefix.tokens, (0, length - width), value=sampling.pad_id)
    mask = F.pad(prefix.mask, (0, length - width))
    live = (~found.ended).nonzero().squeeze(1)
    if len(live):
        places = torch.arange(length, device=live.device)
        if width > 1:
            decoder.hide((places[: width - 1] < found.accepted[:, None]).repeat(len(roles), 1))
        own = decoding_roles([opponent])
        decoder.select([roles.index(role) * count + row for role in own for row in live.tolist()])
        start = found.accepted[live] + 1
        limits = length - start
        longest = int(limits.max())
        ahead = (start[:, None] + places[:longest]).clamp(max=length - 1)
        (rest,) = sample_completions(
            _Resumed(decoder, found.redrawn[live].repeat(len(own))),
            len(live),
            [opponent],
            replace(sampling, max_new_tokens=longest),
            redrawing[live].gather(1, ahead).T[:, None],
            limits=limits[None],
        )
        row, place = rest.mask.nonzero(as_tuple=True)
        tokens[live[row], start[row] + place] = rest.tokens[row, place]
        mask[live[row], start[row] + place] = True
    longest = int(mask.any(0).sum())
    return Completions(tokens[:, :longest], mask[:, :longest])


class _Resumed:
    """A decoder that has read prompts and prefixes, as one that begins with the next token of each row."""

    def __init__(self, decoder: Decoder, tokens: Tensor) -> None:
        self._decoder, self._tokens, self._rows = decoder, tokens, len(tokens)

    def step(self, tokens: Tensor) -> Tensor:
        """Append one token [R] to each row; [R, V] logits of the next."""
        return self._decoder.step(tokens)

    def prefill(self) -> Tensor:
        """Append the given tokens; [R, V] logits of the next."""
        return self._decoder.step(self._tokens)

    def select(self, rows: Sequence[int]) -> None:
        """Keep (or repeat) the given rows; all of them as they are need no copy."""
        if list(rows) != list(range(self._rows)):
            self._decoder.select(rows)
            self._rows = len(rows)
