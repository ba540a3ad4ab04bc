"""Disagreement: among annotators, between a model and the annotators' votes, and intransitivity of a preference.

Legend: N held-out pairs; `predicted` [N] is the model's P(chosen ≻ rejected), and the votes of a pair are 1 for
`chosen`, 0 for `rejected` and ½ for a tie, one vote per annotator. M triples of completions of one prompt.
"""

import itertools
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from alignrun.errors import InputError
from alignrun.evaluation.calibration import Floats, checked, label_entropy, log_loss
from alignrun.evaluation.intervals import SHARE, clustered_mean_interval
from alignrun.types import Example

Votes = Sequence[Sequence[float]]
Completion = TypeVar("Completion", bound=Hashable)
Ask = Callable[[Sequence[Example]], Floats]
"""P(chosen ≻ rejected) [N] of further pairs; NaN for those that it cannot judge."""


def _check(votes: Votes) -> None:
    for row, given in enumerate(votes):
        if not set(given) <= {0, 0.5, 1}:
            raise InputError(f"evaluation: a vote is 0, 0.5 or 1; row {row} has {tuple(given)}")


@dataclass(frozen=True, eq=False, slots=True)
class HumanCeiling:
    """One annotator against the majority of the others, over the K votes in which neither is tied."""

    agreement: float
    """How often they agree: the mean of `scores`."""
    scores: Floats
    """[K], 1 if they agree, else 0."""
    majorities: Floats
    """[K], the others' majority: 1 for `chosen`, 0 for `rejected`."""
    pairs: NDArray[np.int64]
    """[K], the row of each vote's pair."""


def human_ceiling(votes: Votes) -> HumanCeiling | None:
    """How well one annotator predicts the others: each vote against the majority of the other votes on its pair.

    Votes for a tie are left out, and so are votes whose other votes are split evenly: as with labels of ½ in
    `accuracy`, there is no right answer. Every remaining vote has the same weight. (Weighting pairs equally would
    overweight unanimous ones: of the votes 1, 1, 0, only for the last do the others agree.)

    A model is scored on the same questions by `accuracy(predicted[ceiling.pairs], ceiling.majorities)`, which may
    exceed the agreement: a model can be closer to the majority than a single person is. None if no vote remains, for
    example if no pair has two votes. Raises InputError for votes other than 0, ½ and 1.
    """
    _check(votes)
    scores, majorities, pairs = [], [], []
    for row, given in enumerate(votes):
        lead = sum(given) - len(given) / 2
        for vote in given:
            others = lead - (vote - 0.5)
            if vote != 0.5 and others != 0:
                scores.append(float((vote > 0.5) == (others > 0)))
                majorities.append(float(others > 0))
                pairs.append(row)
    if not scores:
        return None
    return HumanCeiling(float(np.mean(scores)), np.array(scores), np.array(majorities), np.array(pairs, dtype=np.int64))


@dataclass(frozen=True, slots=True)
class VoteAgreement:
    """A model against the division of the votes, on pairs with two or more votes."""

    pairs: int
    """The number of those pairs."""
    preference_correlation: float | None
    """Spearman's ρ of P with the share of votes, over both orders of each pair: does P rank pairs as the votes do?"""
    certainty_correlation: float | None
    """Spearman's ρ of |P − ½| with |share − ½|: is the model less certain when people are divided?"""
    excess_log_loss: float
    """The log loss against the shares minus their entropy, in nats: the mean KL(share‖P), 0 for a perfect model."""


def _spearman(first: Floats, second: Floats) -> float | None:
    # Rounded, since 1 − ⅓ and ⅔ are equal shares but unequal floats.
    first, second = first.round(12), second.round(12)
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(stats.spearmanr(first, second).statistic)


def agreement_with_disagreement(predicted: ArrayLike, votes: Votes) -> VoteAgreement | None:
    """Whether a model is uncertain when people disagree: predicted [N] against the share of each pair's votes.

    Both orders of every pair enter the first correlation, since with `chosen` first all shares are ½ or more; the
    second does not depend on the order. A pair with few votes has few possible shares, so neither correlation reaches 1
    in practice. A correlation is None if one side is constant, for example if all votes are unanimous. The result is
    None if no pair has two or more votes. Raises InputError.
    """
    p = checked("predicted", predicted)
    if len(p) != len(votes):
        raise InputError(f"evaluation: {len(p)} predictions for the votes of {len(votes)} pairs")
    _check(votes)
    several = [row for row, given in enumerate(votes) if len(given) >= 2]
    if not several:
        return None
    p, share = p[several], np.array([np.mean(votes[row]) for row in several])
    return VoteAgreement(
        pairs=len(several),
        preference_correlation=_spearman(np.concatenate([p, 1 - p]), np.concatenate([share, 1 - share])),
        certainty_correlation=_spearman(abs(p - 0.5), abs(share - 0.5)),
        excess_log_loss=log_loss(p, share) - label_entropy(share),
    )


@dataclass(frozen=True, eq=False, slots=True)
class Triples(Generic[Completion]):
    """M triples of completions, each of one prompt, and the Q questions that their preferences need."""

    pairs: tuple[tuple[int, Completion, Completion], ...]
    """Prompt, first and second completion of each question P(first ≻ second), none asked twice or in both orders."""
    questions: NDArray[np.int64]
    """[M, 3] which questions give P(a ≻ b), P(b ≻ c) and P(a ≻ c)."""
    prompts: NDArray[np.int64]
    """[M] the prompt of each triple."""

    def tables(self, answers: ArrayLike) -> Floats:
        """The preferences within each triple, from the answers to `pairs`: [Q] -> [M, 3, 3]. Raises InputError."""
        p = np.asarray(answers, dtype=np.float64)
        if p.shape != (len(self.pairs),):
            raise InputError(f"evaluation: {len(self.pairs)} questions, answers of shape {p.shape}")
        tables = np.full((len(self.questions), 3, 3), 0.5)
        for (a, b), question in zip(((0, 1), (1, 2), (0, 2)), self.questions.T, strict=True):
            tables[:, a, b], tables[:, b, a] = p[question], 1 - p[question]
        return tables


def triples(groups: Sequence[Sequence[Completion]], cap: int, seed: int = 0) -> Triples[Completion]:
    """All sets of three different completions of each prompt, or a random choice of `cap` per prompt.

    The choice for a prompt depends only on its index, its number of different completions and the seed.
    """
    pairs: dict[tuple[int, Completion, Completion], int] = {}
    questions: list[tuple[int, int, int]] = []
    prompts: list[int] = []
    for prompt, group in enumerate(groups):
        found = list(itertools.combinations(dict.fromkeys(group), 3))
        if len(found) > cap:
            chosen = np.random.default_rng([seed, prompt]).choice(len(found), cap, replace=False)
            found = [found[place] for place in sorted(chosen)]
        for a, b, c in found:
            ask = [pairs.setdefault((prompt, *pair), len(pairs)) for pair in ((a, b), (b, c), (a, c))]
            questions.append((ask[0], ask[1], ask[2]))
            prompts.append(prompt)
    return Triples(
        tuple(pairs),
        np.array(questions, dtype=np.int64).reshape(-1, 3),
        np.array(prompts, dtype=np.int64),
    )


def triples_of_pairs(examples: Sequence[Example], cap: int, seed: int = 0) -> tuple[list[Example], Triples[str]]:
    """The `triples` of the completions in pairs, and an example for each of their prompts."""
    groups: dict[str, list[str]] = {}
    prompts: dict[str, Example] = {}
    for example in examples:
        prompts[example.text] = example
        groups.setdefault(example.text, []).extend([str(example.chosen), str(example.rejected)])
    return [prompts[text] for text in groups], triples(list(groups.values()), cap, seed)


@dataclass(frozen=True, slots=True)
class Intransitivity:
    """How often a preference is intransitive."""

    share: float
    low: float
    high: float
    """The bounds of the interval of the share over prompts."""
    triples: int


def intransitive_share(
    tables: ArrayLike, prompts: Sequence[int] | NDArray[np.int64], confidence: float, seed: int = 0
) -> Intransitivity | None:
    """The share of triples on which a ≻ b ≻ c ≻ a or the reverse, a ≻ b meaning P(a ≻ b) > ½ (strictly).

    Coin tosses give ¼ (Kendall & Babington Smith, Biometrika 1940), and a scalar reward exactly 0. Ties make no cycle,
    and the distance of P from ½ does not matter: a preference that is noise around ½ also has ¼. The interval resamples
    whole prompts, as in `clustered_mean_interval`. None without triples.

    Shapes: tables [M, 3, 3] with P + Pᵀ = 1, prompts [M]. Raises InputError.
    """
    p = np.asarray(tables, dtype=np.float64)
    if not len(p):
        return None
    if p.shape[1:] != (3, 3) or not np.allclose(p + p.transpose(0, 2, 1), 1, rtol=0, atol=1e-6):
        raise InputError(f"evaluation: triples must be [M, 3, 3] with P + Pᵀ = 1; the shape is {p.shape}")
    around = p[:, [0, 1, 2], [1, 2, 0]]
    cyclic = ((around > 0.5).all(1) | (around < 0.5).all(1)).astype(np.float64)
    low, high = clustered_mean_interval(cyclic, prompts, confidence, seed, SHARE)
    return Intransitivity(float(cyclic.mean()), low, high, len(p))


def intransitivity_of_pairs(
    examples: Sequence[Example], probabilities: Floats, ask: Ask, cap: int, confidence: float, seed: int
) -> Intransitivity | None:
    """`intransitive_share` of the completions of judged pairs; None if no triple is judged.

    Args:
        examples: N pairs.
        probabilities: [N] P(chosen ≻ rejected), of which P(rejected ≻ chosen) is the complement.
        ask: judges the further pairs that the triples need.
        cap: the maximum number of triples per prompt.
        confidence: the level of the interval, which is over prompts.
        seed: for the choice of triples and the interval.
    """
    prompts, asked = triples_of_pairs(examples, cap, seed)
    known: dict[tuple[str, str, str], float] = {}
    for example, probability in zip(examples, probabilities.tolist(), strict=True):
        chosen, rejected = str(example.chosen), str(example.rejected)
        known[example.text, chosen, rejected] = probability
        known[example.text, rejected, chosen] = 1 - probability
    missing = [
        replace(prompts[place], chosen=first, rejected=second, label=1.0, votes=(), chosen_turns=(), rejected_turns=())
        for place, first, second in asked.pairs
        if (prompts[place].text, first, second) not in known
    ]
    if missing:
        for example, probability in zip(missing, ask(missing).tolist(), strict=True):
            known[example.text, str(example.chosen), str(example.rejected)] = probability
    answers = np.array([known[prompts[place].text, first, second] for place, first, second in asked.pairs])
    whole = ~np.isnan(answers[asked.questions]).any(1) if len(asked.questions) else np.zeros(0, dtype=bool)
    tables = asked.tables(answers)[whole]
    return intransitive_share(tables, asked.prompts[whole], confidence, seed)
