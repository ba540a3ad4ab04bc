"""Selects the pairs of completions to judge: all of them, or an unbiased sample.

If every pair is a question, K completions against K cost K² questions in both orders. A few opponents per completion
give the same expectation: every pair is drawn with the same probability, so the mean over the drawn pairs is an
unbiased estimate of the mean over all, and so is every gradient that is linear in the preference. Opponents are used
equally often, which minimises the variance for a given number of pairs: the covariance of two completions grows with
the number of opponents that they share.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

BOTH_ORDERS = 2
"""Questions about a pair: y against y', and y' against y."""


@dataclass(frozen=True, slots=True)
class Comparisons:
    """M pairs of completions of each of B prompts, and their preference."""

    first: Tensor
    """[B, M] the index of y."""
    second: Tensor
    """[B, M] the index of y'."""
    labels: Tensor
    """[B, M] P(y ≻ y' | x)."""

    def table(self, count: int) -> tuple[Tensor, Tensor]:
        """[B, K, K] P(y_i ≻ y_j) among K completions, ½ with itself and 0 if not asked; [B, K] opponents of each."""
        table = torch.diag_embed(self.labels.new_full((len(self.labels), count), 0.5))
        rows = torch.arange(len(table), device=table.device)[:, None]
        table[rows, self.first, self.second], table[rows, self.second, self.first] = self.labels, 1 - self.labels
        asked = torch.zeros_like(table)
        asked[rows, self.first, self.second] = asked[rows, self.second, self.first] = 1
        return table, asked.sum(2)

    def win_rates(self, count: int) -> Tensor:
        """[B, K] the mean of P(y ≻ y') over the other completions that each of K met."""
        table, opponents = self.table(count)
        return (table.sum(2) - 0.5) / opponents  # without each one's ½ against itself the estimate is unbiased


def all_against(samples: int, others: int) -> Tensor:
    """[2, M] all pairs of one of `samples` completions with one of `others`, as indices."""
    return against(torch.arange(others)[None], samples, others)[:, 0]


def all_among(samples: int) -> Tensor:
    """[2, M] all pairs among K completions, as indices, the smaller first."""
    return torch.triu_indices(samples, samples, 1)


def against(orders: Tensor, samples: int, opponents: int) -> Tensor:
    """[2, B, M] pairs of K completions with `opponents` ≤ L of L others each, from orders [B, L] of the others.

    Each completion takes the next ones in the order, so that use counts differ by at most one.
    """
    turns = torch.arange(samples * opponents)
    return torch.stack([(turns // opponents).expand(len(orders), -1), orders[:, turns % orders.shape[1]]])


def among(orders: Tensor, opponents: int) -> Tensor:
    """[2, B, M] pairs among K completions with `opponents` < K each, from orders [B, K] of them.

    The order is cyclic. Each meets its nearest neighbours on both sides, and for an odd number the opposite one too; if
    K is odd as well, one completion meets one more.
    """
    count = orders.shape[1]
    places = torch.arange(count)
    halves = places[: (count + 1) // 2 if opponents % 2 else 0]
    near = [(places, (places + distance) % count) for distance in range(1, opponents // 2 + 1)]
    first, second = (torch.cat(side) for side in zip(*near, (halves, halves + count // 2), strict=True))
    return torch.stack([orders[:, first], orders[:, second]])


def draw_against(generator: torch.Generator, prompts: int, samples: int, others: int, opponents: int | None) -> Tensor:
    """[2, B, M] pairs of K completions with L others of each prompt; all unless fewer opponents are requested."""
    if opponents is None or opponents >= others:
        return all_against(samples, others)[:, None].expand(-1, prompts, -1)
    return against(_orders(generator, prompts, others), samples, opponents)


def apart(orders: Tensor, opponents: int) -> Tensor:
    """[2, B, M] pairs of K completions with `opponents` < K others each, none of the same number, from orders [B, K].

    The order is cyclic, and each meets the next ones in it, so that all others are used equally often.
    """
    count = orders.shape[1]
    first = torch.arange(count).repeat_interleave(opponents)
    steps = torch.arange(1, opponents + 1).repeat(count)
    places = (orders.argsort(1)[:, first] + steps) % count
    return torch.stack([first.expand(len(orders), -1), orders.gather(1, places)])


def draw_apart(generator: torch.Generator, prompts: int, samples: int, opponents: int | None) -> Tensor:
    """[2, B, M] pairs of K completions with K others of each prompt, none of the same number."""
    fewer = opponents is not None and opponents < samples - 1
    orders = _orders(generator, prompts, samples) if fewer else torch.arange(samples).expand(prompts, -1)
    return apart(orders, min(samples - 1, opponents or samples))


def draw_among(generator: torch.Generator, prompts: int, samples: int, opponents: int | None) -> Tensor:
    """[2, B, M] pairs among K completions of each prompt; all of them unless fewer opponents are requested."""
    if opponents is None or opponents >= samples - 1:
        return all_among(samples)[:, None].expand(-1, prompts, -1)
    return among(_orders(generator, prompts, samples), opponents)


def pairs_against(samples: int, others: int, opponents: int | None) -> int:
    """M of `draw_against`."""
    return samples * min(others, opponents or others)


def pairs_apart(samples: int, opponents: int | None) -> int:
    """M of `draw_apart`."""
    return samples * min(samples - 1, opponents or samples)


def pairs_among(samples: int, opponents: int | None) -> int:
    """M of `draw_among`."""
    return (samples * min(samples - 1, opponents or samples) + 1) // 2


def _orders(generator: torch.Generator, prompts: int, count: int) -> Tensor:
    """[B, count] uniform permutations, independent for each prompt."""
    return torch.rand(prompts, count, generator=generator, dtype=torch.float64).argsort(1)
