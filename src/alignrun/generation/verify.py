"""Draft and verify: completions of a target distribution from drafts of a nearby one (arXiv 2211.17192, 2302.01318).

A draft y ~ π becomes a completion of the target m. Token by token, y_n is accepted with probability min(1, m/π), given
the tokens before it. The first rejected token is redrawn from (m − π)₊/‖(m − π)₊‖₁, and from there the completion goes
on under m. Its distribution is exactly m, and a token is rejected with probability TV(π, m).

Between the policy and its mixture with μ, log m/π = β(log μ − log π) − log Z with Z = Σ_v π^{1−β} μ^β. Tempering the
mixture is mixing the tempered sides, so at temperature T this holds with π_T and μ_T in place of π and μ.

Shape legend: N drafts of T tokens, n positions at a time, V vocabulary.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from alignrun.generation.decode import Sampling
from alignrun.generation.mixture import source_log_probs
from alignrun.generation.sampling import sample, truncate
from alignrun.generation.streams import Source, roles_of
from alignrun.types import Completions, Role

POSITIONS = 512
"""Positions per pass through the vocabulary head."""

Logits = Callable[[Role, Tensor], Tensor]
"""[n, V] logits under a role at n positions of the drafts, given as indices row·T + token."""


@dataclass(frozen=True, slots=True)
class Verified:
    """How far drafts are completions of the target."""

    accepted: Tensor
    """[N] int64, the number of accepted tokens; those after a rejected token are not considered."""
    rejected: Tensor
    """[N] bool, whether a token was rejected."""
    redrawn: Tensor
    """[N] int64, the token in place of the rejected one; the padding token where none was."""
    prefix: Completions
    """[N, T] the accepted tokens, and the redrawn one."""
    ended: Tensor
    """[N] bool, whether the prefix is the whole completion: its last token ends it, or it has the largest length."""


@torch.no_grad()
def verify(
    drafts: Completions,
    drawn_from: Source,
    target: Source,
    sampling: Sampling,
    logits: Logits,
    accepting: Tensor,
    redrawing: Tensor,
) -> Verified:
    """Accept the tokens of drafts as the target's, up to the first that is not, and redraw that one.

    An end token is accepted or redrawn like any other. A completion that goes on after its prefix is drawn from the
    target, by any method. The largest tensors are a few of [`POSITIONS`, V].

    Args:
        drafts: N completions [N, T], drawn with `sampling`.
        drawn_from: π, the distribution of the drafts.
        target: m, the distribution of the results; the nearer to π, the more is accepted.
        sampling: of drafts and results alike.
        logits: the model's, before temperature and truncation; asked for every token of the drafts.
        accepting: [N, T] float64 in [0, 1), uniform and independent of the drafts.
        redrawing: [N, T] float64 in [0, 1), the same; that of the rejected token redraws it.
    """
    tokens, mask = drafts.tokens, drafts.mask

    def pieces(places: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Positions with the log-probabilities [n, V] there, of the drafts and of the target."""
        for part in places.split(POSITIONS):
            at = {role: logits(role, part) for role in dict.fromkeys((*roles_of(drawn_from), *roles_of(target)))}
            yield part, *(_log_probs(source, at, sampling) for source in (drawn_from, target))

    passed = ~mask.flatten()
    for part, before, after in pieces(mask.flatten().nonzero().squeeze(1)):
        passed[part] = accepting.flatten()[part] < acceptance(before, after, tokens.flatten()[part])
    passed = passed.reshape(mask.shape)
    rejected = ~passed.all(1)
    accepted = torch.where(rejected, passed.logical_not().int().argmax(1), mask.sum(1))

    redrawn = torch.full_like(accepted, sampling.pad_id)
    rows = rejected.nonzero().squeeze(1)
    for part, before, after in pieces(rows * tokens.shape[1] + accepted[rows]):
        redrawn[part // tokens.shape[1]] = sample(residual(before, after), redrawing.flatten()[part])

    places = torch.arange(tokens.shape[1], device=tokens.device)
    kept = places < accepted[:, None]
    here = (places == accepted[:, None]) & rejected[:, None]
    prefix = torch.where(here, redrawn[:, None], torch.where(kept, tokens, sampling.pad_id))
    stop = torch.tensor(list(sampling.stop_ids), device=tokens.device)
    last = torch.isin(redrawn, stop) | (accepted + 1 == sampling.max_new_tokens)
    return Verified(accepted, rejected, redrawn, Completions(prefix, kept | here), ~rejected | last)


def acceptance(before: Tensor, after: Tensor, tokens: Tensor) -> Tensor:
    """[n] min(1, m/π) of tokens [n], from log π and log m [n, V]; float64, and 0 where the target has no such token."""
    ours, theirs = (side.gather(-1, tokens[:, None]).squeeze(-1).double() for side in (before, after))
    return torch.where(theirs > -torch.inf, (theirs - ours).exp().clamp(max=1), 0.0)


def residual(before: Tensor, after: Tensor) -> Tensor:
    """log (m − π)₊, not normalised, from log π and log m; log m where rounding leaves nothing. All [n, V]."""
    target = after.exp()
    excess = (target - before.exp()).clamp(min=0)
    return torch.where(excess.sum(-1, keepdim=True) > 0, excess, target).log()


def _log_probs(source: Source, logits: dict[Role, Tensor], sampling: Sampling) -> Tensor:
    """[n, V] of a source, as the decoding loop draws from it."""
    mixed = source_log_probs(source, [logits[role] for role in roles_of(source)])
    return truncate(mixed, temperature=sampling.temperature, top_k=sampling.top_k, top_p=sampling.top_p)
