"""A majority of judges who disagree: a preference on text that need not be transitive, without a network.

Each judge ranks texts by a score of its own, and so never runs in a circle; a majority of such judges may
(Condorcet, Essai sur l'application de l'analyse, 1785). Then no completion is preferred to all others, only a mixture
is not beaten, and no Bradley-Terry reward can say what the panel prefers; Nash learning from human feedback starts from
this point (arXiv 2312.00886).
"""

import difflib
from collections.abc import Sequence
from dataclasses import field
from enum import Enum

import torch
from torch import Tensor

from alignrun.config import require, schema
from alignrun.preferences.base import Preference, Reward, preference
from alignrun.preferences.scorers import SCORERS, Scorer
from alignrun.preferences.texts import TextScores


class PanelRule(str, Enum):
    """How the judges' votes become one preference."""

    majority = "majority"
    """The probability that more than half of the judges, voting independently, are for y; half a win for a tie."""
    mean = "mean"
    """The probability that one judge, drawn at random, is for y. Where the judges are sure it is a share of votes."""


@schema
class PanelConfig:
    """Who sits on the panel. Judge m prefers y with p_m = σ((s_m(y) − s_m(y')) / (temperature · spread_m))."""

    name: str = "panel"
    scorers: list[str] = field(default_factory=lambda: ["readability", "formality", "spokenness"])
    """Different measures of preferences/scorers.py; an odd number of judges who are sure cannot be tied.

    The default three, easy words in short sentences, long words and function words, run in a circle on 9.5% of the
    triples of completions of the embedded model; three that rank independently of each other would on 1/18.
    """
    rule: PanelRule = PanelRule.majority
    temperature: float = 0.125
    """In typical differences (`Scorer.spread`): at 0.125 an eighth of one gets a judge's vote with probability 0.73.

    A whole one decides, and the vote for the more positive text is what `preference=sentiment` gives by itself. Votes
    must be decided for a majority to run in a circle: at 1 it hardly differs from the sum of the differences.
    """

    def __post_init__(self) -> None:
        known = ", ".join(SCORERS)
        for name in self.scorers:
            near = "".join(f"did you mean {match}? " for match in difflib.get_close_matches(name, SCORERS, n=1))
            require(name in SCORERS, "preference.scorers", f"has no {name}: {near}choose from {known}")
        different = len(set(self.scorers))
        require(different == len(self.scorers), "preference.scorers", f"names one twice: {', '.join(self.scorers)}")
        require(different >= 2, "preference.scorers", f"must name at least two, not {different}: choose from {known}")
        require(self.temperature > 0, "preference.temperature", f"must be positive, not {self.temperature}")


def majority(votes: Tensor) -> Tensor:
    """P(more than half vote yes) + ½ P(exactly half do) of M independent votes, which is 1 − its value at 1 − votes.

    The number of yes votes is Poisson-binomial; its distribution is built up judge by judge, exactly.

    Shapes: votes [M, ...] probabilities, the result [...].
    """
    judges = len(votes)
    counts = votes.new_zeros(judges + 1, *votes.shape[1:])
    counts[0] = 1
    for vote in votes:
        counts[1:] = counts[1:] * (1 - vote) + counts[:-1] * vote
        counts[0] = counts[0] * (1 - vote)
    won = counts[judges // 2 + 1 :].sum(0)
    return won if judges % 2 else won + counts[judges // 2] / 2


class Panel(Preference):
    """Several judges' preferences put together by a rule."""

    def __init__(self, judges: Sequence[Preference], rule: PanelRule) -> None:
        self._judges, self._rule = judges, rule

    @property
    def by_pair(self) -> bool:  # type: ignore[override]
        """Whether one of the judges is."""
        return any(judge.by_pair for judge in self._judges)

    def __call__(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> Tensor:
        """[B] of the judges' [M, B] votes the probability of a majority, or the mean."""
        votes = torch.stack([judge(prompts, first, second) for judge in self._judges]).double()
        return (majority(votes) if self._rule is PanelRule.majority else votes.mean(0)).float()

    def expect(self, prompts: Sequence[str], completions: Sequence[str]) -> None:
        """Let every judge start."""
        for judge in self._judges:
            judge.expect(prompts, completions)


class ScorerJudge(Reward):
    """Prefers the completion of the higher score."""

    def __init__(self, scorer: Scorer, temperature: float) -> None:
        super().__init__(temperature * scorer.spread)
        self._scores = TextScores.by_row(scorer.score)

    def rewards(self, prompts: Sequence[str], completions: Sequence[str]) -> Tensor:
        """[B] scores."""
        return self._scores(prompts, completions).float()

    def expect(self, prompts: Sequence[str], completions: Sequence[str]) -> None:
        """Start on the scores."""
        self._scores.expect(prompts, completions)


@preference("panel", PanelConfig)
def build(config: PanelConfig) -> Preference:
    """The preference that the configuration asks for."""
    return Panel([ScorerJudge(SCORERS[name], config.temperature) for name in config.scorers], config.rule)
