"""One cached loop that draws several completions of every prompt at once.

Every stream of completions is a token-wise geometric mixture of the policy and the reference: the policy is
mix_beta = 0, the reference 1. The model's rows are those of the policy, then those of the reference; a stream
strictly between 0 and 1 has a row in each.

Shape legend: B prompts, S live sequences, R live model rows, T new tokens, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

import torch
from torch import Tensor

from alignrun import distributed
from alignrun.generation.mixture import mix_log_probs
from alignrun.generation.sampling import sample, truncate
from alignrun.types import Completions


class Decoder(Protocol):
    """The model's side of the loop."""

    def prefill(self) -> Tensor:
        """Read the prompts; [R, V] logits of the first completion token."""

    def select(self, rows: Sequence[int]) -> None:
        """Keep (or repeat) the given rows."""

    def step(self, tokens: Tensor) -> Tensor:
        """Append one token [R] to each row; [R, V] logits of the next."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn. Temperature and truncation act after the mixture is formed."""

    max_new_tokens: int
    stop_ids: Sequence[int]
    pad_id: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


def needs_policy(mix_beta: float) -> bool:
    """Whether a stream has a row of the policy."""
    return mix_beta < 1


def needs_reference(mix_beta: float) -> bool:
    """Whether a stream has a row of the reference."""
    return mix_beta > 0


def sample_completions(
    decoder: Decoder,
    prompts: int,
    mix_betas: Sequence[float],
    sampling: Sampling,
    uniforms: Tensor,
    temperatures: Sequence[float] | None = None,
) -> list[Completions]:
    """Draw one completion of every prompt for each stream, y ~ Π_n softmax((1−β) log π + β log μ).

    A draw depends only on its own column of `uniforms` and on its row's own logits: finished sequences leave the batch
    without changing the others, and prompts may be drawn together or apart.

    Args:
        decoder: rows of the roles that the streams need, each role a block of B rows, the policy's first.
        prompts: B.
        mix_betas: one β for each stream.
        sampling: lengths, stop tokens, temperature and truncation.
        uniforms: [T, K, B] float64 in [0, 1) on the decoder's device, a number for every token that may be drawn.
        temperatures: one for each stream, where they are not all that of `sampling`.

    Returns:
        For each stream, completions of the B prompts, [B, T] with T the longest that was drawn.
    """
    device = uniforms.device
    logits = decoder.prefill()
    sequences = len(mix_betas) * prompts
    length = sampling.max_new_tokens
    uniforms = uniforms.flatten(1)
    tokens = torch.full((sequences, length), sampling.pad_id, dtype=torch.long, device=device)
    mask = torch.zeros(sequences, length, dtype=torch.bool, device=device)
    stop = torch.tensor(list(sampling.stop_ids), device=device)

    row_temperatures = (
        None if temperatures is None else torch.tensor(temperatures, device=device).repeat_interleave(prompts)
    )
    live = list(range(sequences))  # sequence b of stream k is k * B + b
    layout = _Layout(mix_betas, prompts, live, device)
    expanded = layout.rows_in_prefill()
    decoder.select(expanded)
    logits = logits[torch.tensor(expanded, device=device)]
    index = torch.tensor(live, device=device)
    done = torch.zeros(sequences, dtype=torch.bool, device=device)
    # On a GPU, asking which rows are finished stalls the queue of kernels, and fewer rows cost hardly less: it is asked
    # seldom, and rows leave once they are half of all.
    check_every, worth = (1, 1.0) if device.type == "cpu" else (16, 0.5)

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
        done = done | torch.isin(drawn, stop)
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
                layout = _Layout(mix_betas, prompts, live, device)
        logits = decoder.step(layout.spread(drawn))

    longest = int(mask.any(0).sum())
    return [
        Completions(tokens[start : start + prompts, :longest], mask[start : start + prompts, :longest])
        for start in range(0, sequences, prompts)
    ]


class _Layout:
    """Which model rows belong to which live sequence."""

    def __init__(self, mix_betas: Sequence[float], prompts: int, live: Sequence[int], device: torch.device) -> None:
        streams = [sequence // prompts for sequence in live]
        self._prompt = [sequence % prompts for sequence in live]
        self._prompts = prompts
        self._policy = [place for place, stream in enumerate(streams) if needs_policy(mix_betas[stream])]
        self._reference = [place for place, stream in enumerate(streams) if needs_reference(mix_betas[stream])]
        self._source = torch.tensor([*self._policy, *self._reference], device=device)
        # Live sequences stay ordered by stream, so neighbouring streams of one β are one run of rows in each role.
        self._runs: list[tuple[float, slice | None, slice | None]] = []
        policy_start, reference_start = 0, len(self._policy)
        for mix_beta, members in groupby(mix_betas[stream] for stream in streams):
            size = len(list(members))
            policy = slice(policy_start, policy_start + size) if needs_policy(mix_beta) else None
            reference = slice(reference_start, reference_start + size) if needs_reference(mix_beta) else None
            policy_start += size if policy else 0
            reference_start += size if reference else 0
            self._runs.append((mix_beta, policy, reference))

    def rows_in_prefill(self) -> list[int]:
        """The prefill row (role block, prompt) that each model row starts from."""
        offset = self._prompts if self._policy else 0
        return [self._prompt[place] for place in self._policy] + [
            offset + self._prompt[place] for place in self._reference
        ]

    def rows_of(self, places: Sequence[int]) -> list[int]:
        """The model rows of some of the live sequences, in the model's order."""
        wanted = set(places)
        return [row for row, place in enumerate([*self._policy, *self._reference]) if place in wanted]

    def spread(self, drawn: Tensor) -> Tensor:
        """[S] tokens to [R]: both rows of a mixture get the same token."""
        return drawn[self._source]

    def mix(self, logits: Tensor) -> Tensor:
        """[R, V] logits to [S, V] log-probabilities."""
        parts = []
        for mix_beta, policy, reference in self._runs:
            if policy is not None and reference is not None:
                parts.append(mix_log_probs(logits[policy], logits[reference], mix_beta))
            else:
                parts.append(logits[policy or reference].float().log_softmax(-1))
        return torch.cat(parts)
