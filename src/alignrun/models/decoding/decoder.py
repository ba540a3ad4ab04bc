"""Step-by-step decoding with a key-value cache, with the policy and the reference in one batch.

Row legend: the decoder's R rows are the policy's rows, then the reference's. V is the vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel

from alignrun import distributed
from alignrun.errors import InputError
from alignrun.models.adapters import Forward, Span, computed_in, forwards_as, forwards_on_rows, lora_layers
from alignrun.models.decoding.cache import attends, decoding_cache, select_rows
from alignrun.models.decoding.factors import RolloutFactors
from alignrun.models.decoding.replay import ReplayedSteps, can_replay
from alignrun.models.head import vocabulary_head
from alignrun.models.hidden import masked, position_ids
from alignrun.types import PromptBatch


class CachedDecoder:
    """Decode every prompt with each of the given adapters, on one base whose weights are read once per step.

    Where low-rank products are not float32, the adapters are copied: changes of their weights need a new decoder.

    Args:
        model: the causal language model, with or without LoRA layers.
        prompts: B prompts on the model's device.
        adapters: the adapter of each block of B rows; None is the bare base, and comes last.
        replay: the largest number of steps, to record and replay them as a CUDA graph if the model allows it; by
            default they run eagerly.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: PromptBatch,
        adapters: Sequence[str | None],
        replay: int | None = None,
    ) -> None:
        self._model = model
        self._head = vocabulary_head(model)
        self._layers = lora_layers(model)
        self._adapters = list(adapters)
        products = computed_in(self._layers)
        # float32 products read the factors themselves.
        self._factors = (
            None
            if products is torch.float32
            else RolloutFactors(model, [name for name in adapters if name is not None], products)
        )
        self._counts = [len(prompts)] * len(adapters)
        self._forwards = self._by_role()
        self._ids = prompts.input_ids.repeat(len(adapters), 1)
        self._mask = prompts.attention_mask.repeat(len(adapters), 1)
        # Without padding, no mask is needed and attention uses its fast path.
        self._padded = bool(prompts.padded)
        capacity = self._ids.shape[1] + replay if replay else None
        self._cache = decoding_cache(model.config, capacity)
        self._capacity = capacity if can_replay(model, self._cache) else None
        self._replayed: ReplayedSteps | None = None

    def prefill(self) -> Tensor:
        """Read the prompts; [R, V] logits of the first completion token."""
        return self._forward(self._ids, *masked(self._model, self._mask, self._padded), self._cache)

    def encode(self) -> Tensor:
        """Read the prompts; [R, D] hidden states at their ends."""
        return self._hidden(self._ids, *masked(self._model, self._mask, self._padded), self._cache)[:, -1]

    def read(self, tokens: Tensor, mask: Tensor, at_once: int) -> Tensor:
        """Append T tokens [R, T] to each row, padded on the right as in the mask; [R, T, D] hidden states at them.

        The columns are read in pieces of about `at_once` tokens. Only before the first `step`, and only where every
        layer is full attention (`plain_attention`): `hide` leaves gaps in the cache.
        """
        width, parts = max(1, at_once // max(1, len(tokens))), []
        for ids, real in zip(tokens.split(width, 1), mask.split(width, 1), strict=True):
            self._mask = torch.cat([self._mask, real.to(self._mask)], dim=1)
            positions = position_ids(self._mask)[:, -ids.shape[1] :]
            parts.append(self._hidden(ids, self._mask, positions, self._cache))
        return torch.cat(parts, 1)

    def hide(self, kept: Tensor) -> None:
        """Let later tokens attend only to those of the last T tokens that are true in [R, T]; others may be gaps."""
        self._mask[:, -kept.shape[1] :] *= kept.to(self._mask)
        self._padded = True

    def select(self, rows: Sequence[int]) -> None:
        """Keep (or repeat) the given rows; the blocks of the adapters must stay in their order."""
        bounds = [sum(self._counts[: block + 1]) for block in range(len(self._counts))]
        self._counts = [
            sum(bounds[block] - self._counts[block] <= row < bounds[block] for row in rows)
            for block in range(len(bounds))
        ]
        self._forwards = self._by_role()
        index = torch.tensor(rows, dtype=torch.long, device=self._mask.device)
        if self._replayed is not None:
            self._replayed.select(index)
            return
        self._mask = self._mask[index]
        select_rows(self._cache, index)

    def step(self, tokens: Tensor) -> Tensor:
        """Append one token [R] to each row; [R, V] logits of the next."""
        if self._capacity is not None:
            if self._replayed is None:
                self._replayed = ReplayedSteps(self._cache, self._mask, self._capacity)
            return self._replayed(tokens, self._forward)
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(self._mask), 1)], dim=1)
        mask = self._mask if self._padded and attends(self._cache) else None
        return self._forward(tokens[:, None], mask, self._mask.sum(1, keepdim=True) - 1, self._cache)

    def _forward(self, ids: Tensor, mask: Tensor | None, positions: Tensor | None, cache: Cache) -> Tensor:
        hidden = self._hidden(ids, mask, positions, cache)
        with torch.no_grad(), forwards_as(self._layers, self._forwards):
            # Use two dimensions: with three, some devices copy the head's weights for every row.
            return self._head(hidden[:, -1])

    def _hidden(self, ids: Tensor, mask: Tensor | None, positions: Tensor | None, cache: Cache) -> Tensor:
        with torch.no_grad(), forwards_as(self._layers, self._forwards):
            output = self._model.base_model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                cache=cache,
                use_cache=True,
            )
            hidden: Tensor = output.last_hidden_state
            return hidden

    def _by_role(self) -> list[Forward]:
        """The forward functions of the layers for the current row blocks."""
        spans: list[Span] = []
        start = 0
        for adapter, count in zip(self._adapters, self._counts, strict=True):
            if adapter is not None and count:
                spans.append((adapter, slice(start, start + count)))
            start += count
        if self._factors is not None:
            return self._factors.forwards(spans, start)
        return forwards_on_rows(self._layers, spans, start)


@torch.no_grad()
def check_replay(model: PreTrainedModel) -> None:
    """Compare replayed decoding steps with eager ones.

    Raises:
        InputError: they differ.
    """
    ids = torch.tensor([[0, 1, 2], [2, 1, 0]], device=model.device)
    prompts = PromptBatch(("", ""), ids, torch.ones_like(ids), padded=False)
    plain, replayed = (CachedDecoder(model, prompts, [None], replay) for replay in (None, 3))
    expected, found = plain.prefill(), replayed.prefill()
    for tokens in ids.T:  # the first runs eagerly, the second is recorded
        expected, found = plain.step(tokens), replayed.step(tokens)
    # Half precision reorders sums; the logits of a wrong token would differ by their own magnitude.
    if not (found - expected).abs().max() <= 0.1 * expected.abs().max():
        raise InputError(
            f"{model.config.model_type} models decode differently where their steps are replayed as a CUDA graph: "
            "set model.cuda_graphs=false"
        )


class JoinedDecoder:
    """Several decoders as one, for roles that share no weights; each holds one block of rows."""

    def __init__(self, parts: Sequence[CachedDecoder], prompts: int) -> None:
        self._parts = parts
        self._counts = [prompts] * len(parts)

    def prefill(self) -> Tensor:
        """Read the prompts; [R, V] logits of the first completion token."""
        return torch.cat([part.prefill() for part in self._parts])

    def encode(self) -> Tensor:
        """Read the prompts; [R, D] hidden states at their ends."""
        return torch.cat([part.encode() for part in self._parts])

    def read(self, tokens: Tensor, mask: Tensor, at_once: int) -> Tensor:
        """As `CachedDecoder.read`."""
        shares = zip(self._parts, tokens.split(self._counts), mask.split(self._counts), strict=True)
        return torch.cat([part.read(ids, real, at_once) for part, ids, real in shares])

    def hide(self, kept: Tensor) -> None:
        """As `CachedDecoder.hide`."""
        for part, share in zip(self._parts, kept.split(self._counts), strict=True):
            part.hide(share)

    def select(self, rows: Sequence[int]) -> None:
        """Keep (or repeat) the given rows; the blocks must stay in their order."""
        start, counts = 0, []
        for part, count in zip(self._parts, self._counts, strict=True):
            kept = [row - start for row in rows if start <= row < start + count]
            part.select(kept or [0] if distributed.sharded() else kept)
            counts.append(len(kept))
            start += count
        self._counts = counts

    def step(self, tokens: Tensor) -> Tensor:
        """Append one token [R] to each row; [R, V] logits of the next."""
        shares = zip(self._parts, tokens.split(self._counts), strict=True)
        if not distributed.sharded():
            return torch.cat([part.step(share) for part, share in shares if len(share)])
        # A part without rows goes on with one that does not count: other processes may have rows of its model.
        return torch.cat([part.step(share if len(share) else tokens[:1])[: len(share)] for part, share in shares])
