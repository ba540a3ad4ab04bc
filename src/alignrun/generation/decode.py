"""A cached decoding loop that draws several completions of every prompt together.

Every completion is drawn from a role or from the token-wise mixture of two roles. The model's rows form one block per
role; a completion from a mixture has a row in two blocks.

Shape legend: B prompts, K completions of each, S live sequences, R live model rows, T new tokens, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import Protocol

import torch
from torch import Tensor

from alignrun import distributed
from alignrun.generation.mixture import source_log_probs
from alignrun.generation.sampling import sample, truncate
from alignrun.generation.streams import Source, decoding_roles, roles_of
from alignrun.types import Completions


class Decoder(Protocol):
    """The model's side of the loop: one call of `prefill`, then any number of `select` and `step`."""

    def prefill(self) -> Tensor:
        """Encode the prompts; return [R, V] logits of the first completion token."""

    def select(self, rows: Sequence[int]) -> None:
        """Keep (or repeat) the given rows, in ascending order of role."""

    def step(self, tokens: Tensor) -> Tensor:
        """Append one token [R] to each row; return [R, V] logits of the next."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling settings. Temperature and truncation apply after the mixture is formed."""

    max_new_tokens: int
    stop_ids: Sequence[int]
    pad_id: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


def sample_completions(
    decoder: Decoder,
    prompts: int,
    sources: Sequence[Source],
    sampling: Sampling,
    uniforms: Tensor,
    temperatures: Sequence[float] | None = None,
    watch: Callable[[Tensor], None] | None = None,
    limits: Tensor | None = None,
) -> list[Completions]:
    """Draw one completion of every prompt from each source: a role, or y ~ Π_n softmax((1−β) log π + β log μ).

    A draw depends only on its own column of `uniforms` and the logits of its own row. So finished sequences can leave
    the batch without changing the others, and the batch can be split over prompts.

    Args:
        decoder: has a block of B rows for each role of `decoding_roles(sources)`, in that order.
        prompts: B.
        sources: the K sources.
        sampling: lengths, stop tokens, temperature and truncation.
        uniforms: [T, K, B] float64 in [0, 1) on the decoder's device, one number per token.
        temperatures: one per source; by default all use that of `sampling`.
        watch: gets each position as it is drawn, [K·B] token ids with padding where a completion has ended.
        limits: [K, B] the largest number of tokens of each, from 1 to that of `sampling`, which is the default.

    Returns:
        For each source, completions [B, T] of the B prompts, with T the longest length drawn.
    """
    device = uniforms.device
    logits = decoder.prefill()
    sequences = len(sources) * prompts
    length = sampling.max_new_tokens
    uniforms = uniforms.flatten(1)
    tokens = torch.full((sequences, length), sampling.pad_id, dtype=torch.long, device=device)
    mask = torch.zeros(sequences, length, dtype=torch.bool, device=device)
    stop = torch.tensor(list(sampling.stop_ids), device=device)

    row_temperatures = (
        None if temperatures is None else torch.tensor(temperatures, device=device).repeat_interleave(prompts)
    )
    live = list(range(sequences))  # sequence b of source k is k·B + b
    layout = _Layout(sources, prompts, live, device)
    expanded = layout.rows_in_prefill()
    decoder.select(expanded)
    logits = logits[torch.tensor(expanded, device=device)]
    index = torch.tensor(live, device=device)
    done = torch.zeros(sequences, dtype=torch.bool, device=device)
    check_every, worth = looks(device)

    for position in range(length):
        log_probs = truncate(
            layout.mix(logits),
            temperature=sampling.temperature if row_temperatures is None else row_temperatures[index, None],
            top_k=sampling.top_k,
            top_p=sampling.top_p,
        )
        drawn = sample(log_probs, uniforms[position, index])
        tokens[index, position] = torch.where(done, sampling.pad_id, drawn)
        mask[index, position] = ~done
        if watch is not None:
            watch(tokens[:, position])
        done = done | torch.isin(drawn, stop)
        if limits is not None:
            done = done | (limits.flatten()[index] <= position + 1)
        if position + 1 == length:
            break
        if (position + 1) % check_every == 0:
            keep = (~done).nonzero().flatten().tolist()
            if distributed.all_done(not keep):
                break
            if keep and len(keep) < len(live) and len(keep) <= worth * len(live):
                decoder.select(layout.rows_of(keep))
                live = [live[row] for row in keep]
                kept = torch.tensor(keep, device=device)
                index, done, drawn = index[kept], done[kept], drawn[kept]
                layout = _Layout(sources, prompts, live, device)
        logits = decoder.step(layout.spread(drawn))

    longest = int(mask.any(0).sum())
    return [
        Completions(tokens[start : start + prompts, :longest], mask[start : start + prompts, :longest])
        for start in range(0, sequences, prompts)
    ]


def looks(device: torch.device) -> tuple[int, float]:
    """Every how many tokens to look which rows have finished, and the largest share that is worth keeping alone.

    On a GPU a look waits for the device, and the rows that stay are copied and recorded again, in the time of about
    four steps (an estimate). A quarter fewer rows save those until the next look, where keys and values are most of
    what a step reads.
    """
    return (1, 1.0) if device.type == "cpu" else (16, 0.75)


class _Layout:
    """The mapping from live sequences to model rows; sequence b of source k has the number k·B + b."""

    def __init__(self, sources: Sequence[Source], prompts: int, live: Sequence[int], device: torch.device) -> None:
        self._prompts = prompts
        self._prompt = [sequence % prompts for sequence in live]
        drawn_from = [sources[sequence // prompts] for sequence in live]
        needed = [roles_of(source) for source in drawn_from]
        blocks = {
            role: [place for place, roles in enumerate(needed) if role in roles] for role in decoding_roles(sources)
        }
        self._blocks = list(blocks.values())
        self._places = [place for block in self._blocks for place in block]
        self._source = torch.tensor(self._places, device=device)
        # Live sequences stay ordered by source, so adjacent equal sources are contiguous rows of a block.
        self._runs: list[tuple[Source, list[slice]]] = []
        starts = dict(zip(blocks, accumulate(map(len, self._blocks), initial=0), strict=False))
        for source, members in groupby(drawn_from):
            size = len(list(members))
            self._runs.append((source, [slice(starts[role], starts[role] + size) for role in roles_of(source)]))
            starts |= {role: starts[role] + size for role in roles_of(source)}

    def rows_in_prefill(self) -> list[int]:
        """The prefill row (block, prompt) from which each model row starts."""
        return [
            number * self._prompts + self._prompt[place] for number, block in enumerate(self._blocks) for place in block
        ]

    def rows_of(self, places: Sequence[int]) -> list[int]:
        """The model rows of the given live sequences, in the model's order."""
        wanted = set(places)
        return [row for row, place in enumerate(self._places) if place in wanted]

    def spread(self, drawn: Tensor) -> Tensor:
        """Expand tokens [S] to [R]: both rows of a mixture get the same token."""
        return drawn[self._source]

    def mix(self, logits: Tensor) -> Tensor:
        """Combine logits [R, V] into log-probabilities [S, V]."""
        return torch.cat([source_log_probs(source, [logits[span] for span in spans]) for source, spans in self._runs])
