"""DNO: direct Nash optimisation, contrastive steps on samples of the last iterate (Rosset et al., arXiv 2404.03715)."""

from collections.abc import Iterator
from dataclasses import replace
from enum import Enum
from typing import ClassVar

import torch
from torch import Tensor

from alignrun.algorithms.base import algorithm
from alignrun.algorithms.common.online_pairs import JudgedPairs, Pairing, judged_pairs
from alignrun.algorithms.common.opponents import pairs_among
from alignrun.algorithms.inpo import INPO, INPOConfig
from alignrun.config import Config, require, schema
from alignrun.objectives.preference import dpo_loss
from alignrun.types import PromptBatch


class PairLabel(str, Enum):
    """What a pair says of its completions."""

    better = "better"
    """1 for the completion with the higher win rate, as in the paper's practical algorithm."""
    win_rates = "win_rates"
    """σ(r(y) − r(y')) for the win rates r, as in its conceptual one: the only choice with an equilibrium as target."""


@schema
class DNOConfig(INPOConfig):
    """The step size, and the pairs to learn from."""

    name: str = "dno"
    kl_tau: float = 0.0
    """τ, the weight of KL(π‖μ), as in the paper's appendix; 0 is its main algorithm."""
    step_eta: float = 5.0
    """The step size, 1/η in the paper: π ∝ π_t exp(step_eta·r); kl_tau·step_eta must be below 1."""
    samples_per_prompt: int = 5
    """Completions drawn per prompt."""
    opponents_per_sample: int | None = None
    """Others that each is judged against with pairing=all, drawn if every pair is a question; null is all."""
    pairing: Pairing = Pairing.best_worst
    """Pairs to form: the best and the worst completion of a prompt, or all."""
    label: PairLabel = PairLabel.better
    min_margin: float = 0.2
    """Leave out pairs whose win rates differ by less; their share is logged as `kept`."""
    unregularised: ClassVar[bool] = True
    least_samples: ClassVar[int] = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        few = self.opponents_per_sample is not None and self.opponents_per_sample < 2
        require(not few, "algo.opponents_per_sample", "must be at least 2, of which one may be the other of a pair")
        require(0 <= self.min_margin < 1, "algo.min_margin", f"must lie in [0, 1), not {self.min_margin}")
        require(
            self.opponents_per_sample is None or self.pairing is Pairing.all,
            "algo.opponents_per_sample",
            "must be null for algo.pairing=best_worst, which ranks by all pairs: leave it out, or set algo.pairing=all",
        )


@algorithm("dno", DNOConfig)
class DNO(INPO):
    """−q log σ(h/s) − (1−q) log σ(−h/s),  y, y' ~ π_t, with the step size s and log ratios to μ^(sτ) π_t^(1−sτ).

    With `label=win_rates`, q = σ(r(y) − r(y')) for r(y) = P(y ≻ π_t): the solution is π ∝ π_t exp(sr) at τ = 0, a step
    of multiplicative weights, and the fixed point is the unregularised equilibrium; with τ > 0 it is π*_τ. That is the
    paper's algorithm 1. Its practical one is the default: q = 1 for the best against the worst of K samples, where the
    margin is large. This does not stop at an equilibrium, since h grows without bound where one completion always wins.
    The paper's further sample per prompt from a stronger model is not drawn here. Win rates are over the other samples;
    in σ(r(y) − r(y')), where a pair must not judge itself, over those that are neither y nor y'. They are estimates,
    and σ is not linear, so the fixed point is exact in the limit of many samples.
    """

    config: DNOConfig

    @classmethod
    def pairs(cls, config: Config, opponents: int | None = None) -> int:
        """Pairs of the completions."""
        return pairs_among(config.algo.samples_per_prompt, opponents)

    def collect(self, prompts: PromptBatch, step: int) -> Iterator[JudgedPairs]:
        """One batch of pairs, labelled by the win rates of their completions."""
        self.renew(step)
        (completions,) = self.rollouts.sample(prompts, self.streams(self.tools.config, step), step)
        judged = self.rollouts.among(prompts, completions, step)
        win_rates = judged.win_rates(self.config.samples_per_prompt)
        pairs = judged_pairs(prompts, completions, judged, self.config.pairing)
        gain = win_rates.gather(1, pairs.first) - win_rates.gather(1, pairs.second)
        labels = (1 + gain.sign()) / 2
        if self.config.label is PairLabel.win_rates:
            table, opponents = judged.table(self.config.samples_per_prompt)
            labels = torch.sigmoid(_gain_over_others(table, opponents, pairs))
        yield replace(pairs, labels=labels, kept=gain.abs() >= self.config.min_margin)

    def objective(self, margins: Tensor, labels: Tensor) -> Tensor:
        """The soft-label DPO loss with the last iterate as reference."""
        return dpo_loss(margins, labels, 1 / self.config.step_eta)


def _gain_over_others(table: Tensor, opponents: Tensor, pairs: JudgedPairs) -> Tensor:
    """[B, M] r(y) − r(y') against the samples that are neither: given the pair, only those are independent of it."""
    rows = torch.arange(len(table), device=table.device)[:, None]
    met = table.sum(2) - 0.5

    def rate(place: Tensor, other: Tensor) -> Tensor:
        return (met[rows, place] - table[rows, place, other]) / (opponents[rows, place] - 1)

    return rate(pairs.first, pairs.second) - rate(pairs.second, pairs.first)
