"""INPO: mirror descent by regression on pairs sampled from the last iterate (Zhang et al., arXiv 2407.00617)."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import ClassVar

from torch import Tensor

from alignrun.algorithms.base import algorithm
from alignrun.algorithms.common.anchor import refresh_anchor
from alignrun.algorithms.common.online_pairs import (
    JudgedPairs,
    OnlinePairs,
    OnlinePairsConfig,
    Pairing,
    judged_pairs,
)
from alignrun.algorithms.common.opponents import pairs_against
from alignrun.algorithms.common.schedules import check_refresh
from alignrun.config import Config, require, schema
from alignrun.generation.streams import Source, Stream
from alignrun.objectives.nash import online_ipo_loss
from alignrun.types import PromptBatch, Role


@schema
class INPOConfig(OnlinePairsConfig):
    """The mirror-descent step size, and the length of an iteration."""

    name: str = "inpo"
    step_eta: float = 3.0
    """The mirror-descent step size, 1/η in the paper (133 with τ = 0.0025); τ·step_eta must be below 1."""
    refresh_every: int = 8
    """Optimiser steps per iteration, all on samples of the policy at its start."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.step_eta > 0, "algo.step_eta", f"must be positive, not {self.step_eta}")
        require(
            self.kl_tau * self.step_eta < 1,
            "algo.step_eta",
            f"times algo.kl_tau={self.kl_tau} must be below 1, and {self.step_eta} is too large: lower one of them",
        )
        check_refresh(self.refresh_every)


@algorithm("inpo", INPOConfig)
class INPO(OnlinePairs):
    """h²/s − (2p−1)h,  y, y' ~ π_t, with the step size s and log ratios to μ^(sτ) π_t^(1−sτ):

    h = log π(y)/π(y') − sτ log μ(y)/μ(y') − (1−sτ) log π_t(y)/π_t(y')

    An exactly solved iteration is a mirror-descent step, π ∝ μ^(sτ) π_t^(1−sτ) exp(sP(y ≻ π_t)), whose fixed point is
    π*_τ. Sample metrics are those of π_t.
    """

    config: INPOConfig
    snapshots: ClassVar[Sequence[Role]] = (Role.anchor,)

    @classmethod
    def source_at(cls, config: Config, step: int) -> Source:
        """π_t."""
        return Role.anchor

    @classmethod
    def past(cls, config: Config) -> Sequence[Role]:
        """Policies of earlier iterations that the completions are judged against as well."""
        return ()

    @classmethod
    def streams(cls, config: Config, step: int) -> Sequence[Stream]:
        """K completions of π_t, all of which are learned from, and as many of each earlier policy."""
        others = (Stream(role, config.algo.samples_per_prompt) for role in cls.past(config))
        return *super().streams(config, step), *others

    @classmethod
    def pairs(cls, config: Config, opponents: int | None = None) -> int:
        """Pairs among the completions of π_t, and each of them against some of each earlier policy."""
        samples = config.algo.samples_per_prompt
        others = len(cls.past(config)) * pairs_against(samples, samples, opponents)
        return super().pairs(config, opponents) + others

    def collect(self, prompts: PromptBatch, step: int) -> Iterator[JudgedPairs]:
        """One batch of pairs; the first of an iteration renews what the log ratios are taken to."""
        self.renew(step)
        ours, *others = self.rollouts.sample(prompts, self.streams(self.tools.config, step), step)
        judged = self.rollouts.among(prompts, ours, step, every=self.config.pairing is Pairing.best_worst)
        batch = judged_pairs(prompts, ours, judged, self.config.pairing)
        edges = []
        for purpose, theirs in enumerate(others, 1):
            rates = self.rollouts.preference(prompts, ours, theirs, step, purpose)
            edges.append(rates.gather(1, batch.first) - rates.gather(1, batch.second))
        yield replace(batch, labels=self.labels(batch.labels, edges))

    def labels(self, labels: Tensor, edges: Sequence[Tensor]) -> Tensor:
        """[B, M] what is learned, from p and, for each earlier policy ν, P(y ≻ ν) − P(y' ≻ ν); all [B, M]."""
        return labels

    def renew(self, step: int) -> None:
        """Snapshot the policy as the anchor at the first step of an iteration."""
        refresh_anchor(self.tools.policy, step, self.config.refresh_every)

    def anchored(self, batch: JudgedPairs) -> Tensor:
        """[N, T] log π_t of all N = B·K completions."""
        return self.tools.policy.log_probs(Role.anchor, batch.prompts, batch.completions.flat(), self.temperature)

    def log_ratios(self, batch: JudgedPairs, log_probs: Tensor, reference: Tensor) -> Tensor:
        """[N, T] log π − sτ log μ − (1−sτ) log π_t."""
        share = self.config.step_eta * self.config.kl_tau
        return log_probs - share * reference - (1 - share) * self.anchored(batch)

    def objective(self, margins: Tensor, labels: Tensor) -> Tensor:
        """1/s times the paper's (h − s/2)², with soft labels and up to a constant."""
        return online_ipo_loss(margins, labels, 1 / self.config.step_eta)
