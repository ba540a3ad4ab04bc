"""Completions of the mixture of two policies from an engine that samples only one of them: draft and verify.

No inference engine samples the token-wise mixture m. The engine drafts from one side, π, and this process reads the
drafts once under both, which gives log m/π of every token. A token is accepted with probability min(1, m/π), the first
rejected one is redrawn from (m − π)₊, and the engine goes on from there, until every completion has ended
(`generation/verify.py`). If the engine draws from π, the result has exactly the mixture's distribution.

An engine with other numerics draws from some q. The result p is then what the same random map of tokens makes of q in
place of π. No map takes two distributions further apart, so at every token KL(p‖m) ≤ KL(q‖π), which is measured. A
test with m/q in place of m/π would need all of q for the redrawn token, and servers return that of the drawn ones.

Shape legend: B prompts, K completions of each, N = B·K rows, R of them that are not complete, T tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from alignrun.algorithms.base import Tools
from alignrun.algorithms.common.batches import select, shared
from alignrun.algorithms.common.mismatch import check_mismatch
from alignrun.generation.decode import Sampling
from alignrun.generation.server.protocol import Drawn
from alignrun.generation.streams import Mixture, Source, roles_of
from alignrun.generation.verify import verify
from alignrun.models.fitting import Pieces
from alignrun.objectives.divergence import kl_k3
from alignrun.types import Completions, PromptBatch, Role

GoOn = Callable[[Sequence[tuple[int, list[int]]], int], Sequence[Drawn]]
"""Continuations of rows, given as their numbers and the tokens so far, in a round 1, 2, …"""


def draft_role(source: Source) -> Role:
    """The role to draft a source from: itself, or of a mixture the side of larger weight."""
    first, *second = roles_of(source)
    return second[0] if isinstance(source, Mixture) and second and source.beta > 0.5 else first


@dataclass(frozen=True, slots=True)
class _Drafts:
    """Drafts to be verified, with the random numbers for that."""

    prompts: PromptBatch
    completions: Completions
    """[B, K, T]"""
    accepting: Tensor
    """[B, K, T] float64"""
    redrawing: Tensor
    """[B, K, T] float64"""


class Drafting:
    """Turns drafts into completions, and counts what happens to them; `memory` is what fits while they are read."""

    def __init__(self, tools: Tools, memory: Pieces) -> None:
        self._policy, self._config, self._memory = tools.policy, tools.config, memory
        self._accepted = self._rejected = self._rounds = self._calls = 0
        self._divergence = self._tokens = self._largest = 0.0

    def drain(self) -> dict[str, float]:
        """Since the last call: the share of drafted tokens accepted, mean rounds, KL(q‖π) per token, largest π/q."""
        if not self._calls:
            return {}
        measured = {
            "draft_acceptance": self._accepted / (self._accepted + self._rejected),
            "draft_rounds": self._rounds / self._calls,
            "draft_mismatch_kl": self._divergence / self._tokens,
            "draft_mismatch_largest": self._largest,
        }
        self._accepted = self._rejected = self._rounds = self._calls = 0
        self._divergence = self._tokens = self._largest = 0.0
        return measured

    def complete(
        self,
        prompts: PromptBatch,
        drafts: Completions,
        source: Source,
        sampling: Sampling,
        uniforms: Tensor,
        go_on: GoOn,
    ) -> Completions:
        """[B, K, T] completions of a mixture, the same on all processes.

        Args:
            prompts: B prompts.
            drafts: [B, K, T] drawn from `draft_role(source)`, with the engine's log-probabilities.
            source: the mixture.
            sampling: of drafts and result alike.
            uniforms: [2, B, K, T] float64 in [0, 1), T the largest length: for accepting and for redrawing each token.
            go_on: draws what follows known prefixes.

        Raises:
            RunError: the drafts are not of the policy, or what `go_on` raises.
        """
        samples = drafts.tokens.shape[1]
        state = _State(drafts.flat(), sampling)
        accepting, redrawing = uniforms.flatten(1, 2)
        live = torch.arange(len(state.tokens), device=drafts.tokens.device)
        rounds, tokens, divergence = 0, 0, 0.0
        while True:
            rounds += 1
            known, width = state.known[live], int(state.mask[live].sum(1).max())
            drafted = Completions(state.tokens[live, :width], state.mask[live, :width])
            new = drafted.mask & (torch.arange(width, device=live.device) >= known[:, None])
            accept = torch.where(new, accepting[live, :width], -1.0)  # what is known stays, whatever it rounds to
            batch = self._batch(prompts, drafted, accept, redrawing[live, :width], live, samples)
            verified = self._verify(batch, source, sampling)

            ratio = torch.where(new, verified.log_probs - state.log_q[live, :width], 0.0)
            tokens, divergence = tokens + int(new.sum()), divergence + float(kl_k3(-ratio).sum())
            self._largest = max(self._largest, float(ratio.max().exp()))
            state.keep(live, verified.prefix)
            rejected = int(verified.rejected.sum())
            self._rejected += rejected
            self._accepted += int((state.known[live] - known).sum()) - rejected
            live = live[~verified.ended]
            if not len(live):
                break
            rows = live.tolist()
            state.extend(rows, go_on([(row, state.prefix(row)) for row in rows], rounds))
        self._rounds, self._calls = self._rounds + rounds, self._calls + 1
        self._tokens, self._divergence = self._tokens + tokens, self._divergence + divergence
        check_mismatch(self._config, divergence / tokens, "the drafts of the mixture")
        longest = int(state.mask.sum(1).max())
        return Completions(*(part[:, :longest].unflatten(0, (-1, samples)) for part in (state.tokens, state.mask)))

    def _batch(
        self, prompts: PromptBatch, drafted: Completions, accept: Tensor, redraw: Tensor, live: Tensor, samples: int
    ) -> _Drafts:
        """The drafts [R, T] of the given rows with their prompts, which are read once each while all rows are there."""
        parts = drafted.tokens, drafted.mask, accept, redraw
        if len(live) == len(prompts) * samples:
            tokens, mask, accept, redraw = (part.unflatten(0, (-1, samples)) for part in parts)
        else:
            prompts = select(prompts, live // samples)
            tokens, mask, accept, redraw = (part[:, None] for part in parts)
        return _Drafts(prompts, Completions(tokens, mask), accept, redraw)

    def _verify(self, batch: _Drafts, source: Source, sampling: Sampling) -> "_Verified":
        """The verdict on R drafts, computed in the micro-batches of training and sharded over the processes."""
        width = batch.completions.tokens.shape[2]
        packed = shared(batch, lambda part: self._verified(part, source, sampling), self._memory).flatten(0, 1)
        tokens, mask, log_probs, ended, rejected = packed.split([width, width, width, 1, 1], dim=1)
        prefix = Completions(tokens.long(), mask.bool())
        return _Verified(prefix, log_probs, ended.squeeze(1).bool(), rejected.squeeze(1).bool())

    def _verified(self, batch: _Drafts, source: Source, sampling: Sampling) -> Tensor:
        """[B, K, 3T + 2] float64: the fields of `_Verified`, of this process's rows."""
        drafts, drafted_from = batch.completions.flat(), draft_role(source)
        log_probs = torch.zeros(drafts.tokens.numel(), dtype=torch.float64, device=drafts.tokens.device)
        logits = self._policy.logits(roles_of(source), batch.prompts, drafts)

        def read(role: Role, places: Tensor) -> Tensor:
            """The logits; those of the drafts' role also give log π of their tokens."""
            values = logits(role, places)
            if role is drafted_from:
                tempered = (values.float() / sampling.temperature).log_softmax(-1)
                log_probs[places] = tempered.gather(1, drafts.tokens.flatten()[places, None]).squeeze(1).double()
            return values

        accepting, redrawing = batch.accepting.flatten(0, 1), batch.redrawing.flatten(0, 1)
        found = verify(drafts, drafted_from, source, sampling, read, accepting, redrawing)
        columns = found.ended[:, None], found.rejected[:, None]
        parts = found.prefix.tokens, found.prefix.mask, log_probs.reshape(drafts.tokens.shape), *columns
        packed = torch.cat([part.double() for part in parts], 1)
        return packed.reshape(*batch.accepting.shape[:2], -1)


@dataclass(frozen=True, slots=True)
class _Verified:
    """The verdict on R drafts."""

    prefix: Completions
    """[R, T] what is accepted, and the redrawn token."""
    log_probs: Tensor
    """[R, T] log π of the drafts."""
    ended: Tensor
    """[R] whether the prefix is a whole completion."""
    rejected: Tensor
    """[R] whether its last token was redrawn."""


class _State:
    """N completions in the making: the tokens that are known, and behind them those that are drafted."""

    def __init__(self, drafts: Completions, sampling: Sampling) -> None:
        assert drafts.drawn_with is not None
        shape = (len(drafts.tokens), sampling.max_new_tokens)
        self._pad_id, width = sampling.pad_id, drafts.tokens.shape[1]
        self.tokens = drafts.tokens.new_full(shape, sampling.pad_id)
        self.mask, self.log_q = drafts.mask.new_zeros(shape), drafts.drawn_with.new_zeros(shape)
        self.tokens[:, :width], self.mask[:, :width], self.log_q[:, :width] = (
            drafts.tokens,
            drafts.mask,
            drafts.drawn_with,
        )
        self.known = drafts.tokens.new_zeros(shape[0])

    def keep(self, live: Tensor, prefix: Completions) -> None:
        """Make these prefixes what is known of the rows."""
        width = prefix.tokens.shape[1]
        self.tokens[live, :width] = torch.where(prefix.mask, prefix.tokens, self._pad_id)
        self.mask[live, :width] = prefix.mask
        self.known[live] = prefix.mask.sum(1)

    def prefix(self, row: int) -> list[int]:
        """What is known of a row."""
        tokens: list[int] = self.tokens[row, : int(self.known[row])].tolist()
        return tokens

    def extend(self, rows: Sequence[int], drawn: Sequence[Drawn]) -> None:
        """Put drafts behind what is known."""
        for row, one in zip(rows, drawn, strict=True):
            start = int(self.known[row])
            span = slice(start, start + len(one.tokens))
            self.tokens[row, span] = self.tokens.new_tensor(one.tokens)
            self.mask[row, span] = True
            self.log_q[row, span] = self.log_q.new_tensor(one.log_probs)
