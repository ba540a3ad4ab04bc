"""SPPO: multiplicative weights by regression on samples of the last iterate (Wu et al., arXiv 2405.00675)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from alignrun.algorithms.base import Loss, algorithm
from alignrun.algorithms.common.anchor import refresh_anchor
from alignrun.algorithms.common.online import OnlineAlgorithm
from alignrun.algorithms.common.online_pairs import Pairing
from alignrun.algorithms.common.opponents import pairs_among
from alignrun.algorithms.common.rollout_metrics import rollout_metrics
from alignrun.algorithms.common.schedules import check_opponents, check_refresh
from alignrun.algorithms.common.stacking import concatenate
from alignrun.config import Config, require, schema
from alignrun.generation.streams import Stream
from alignrun.objectives.nash import self_play_regression_loss
from alignrun.types import Completions, PromptBatch, Role


@schema
class SPPOConfig:
    """The step size, and the samples to learn from."""

    name: str = "sppo"
    step_eta: float = 10.0
    """η, 1/β in the paper, which uses 1000 with a learning rate of 5e-7."""
    samples_per_prompt: int = 5
    """Completions drawn per prompt."""
    opponents_per_sample: int | None = None
    """With pairing=all: others that each is judged against, drawn if every pair is a question; null is all."""
    refresh_every: int = 8
    """Optimiser steps per iteration, all on samples of the policy at its start."""
    pairing: Pairing = Pairing.best_worst
    """Learn from all samples, or as in the paper from the best and the worst."""

    def __post_init__(self) -> None:
        require(self.step_eta > 0, "algo.step_eta", f"must be positive, not {self.step_eta}")
        require(self.samples_per_prompt >= 2, "algo.samples_per_prompt", "must be at least 2, to be compared")
        check_opponents(self.opponents_per_sample)
        require(
            self.opponents_per_sample is None or self.pairing is Pairing.all,
            "algo.opponents_per_sample",
            "must be null for algo.pairing=best_worst, which ranks by all pairs: leave it out, or set algo.pairing=all",
        )
        check_refresh(self.refresh_every)


@dataclass(frozen=True, slots=True)
class Ranked:
    """K completions of π_t for each of B prompts, and the win rate of each against π_t."""

    prompts: PromptBatch
    completions: Completions
    """[B, K, T], after them those that are not judged."""
    win_rates: Tensor
    """[B, K] P(y ≻ π_t | x), estimated from the other samples of the prompt."""


@algorithm("sppo", SPPOConfig)
class SPPO(OnlineAlgorithm):
    """(log π(y)/π_t(y) − η(P(y ≻ π_t) − ½))²/η,  y ~ π_t.

    There is no fixed reference and no penalty on KL(π‖μ). An iteration is a multiplicative-weights step,
    π ∝ π_t exp(ηP(y ≻ π_t)). On cyclic games only the average of the iterates approaches the equilibrium; the last
    iterate moves away from it. It is INPO at τ = 0 without pairwise differences. Sample metrics are means over the
    completions of π_t that are learned from, so `train.max_kl` applies to π at the start of an iteration.
    """

    config: SPPOConfig
    snapshots = (Role.anchor,)

    @classmethod
    def streams(cls, config: Config, step: int) -> Sequence[Stream]:
        """K completions of π_t; all of them or two are learned from."""
        samples = config.algo.samples_per_prompt
        learned = samples if config.algo.pairing is Pairing.all else 2
        return (Stream(Role.anchor, samples, learned=learned),)

    @classmethod
    def pairs(cls, config: Config, opponents: int | None = None) -> int:
        """Pairs of the completions."""
        return pairs_among(config.algo.samples_per_prompt, opponents)

    def collect(self, prompts: PromptBatch, step: int) -> Iterator[Ranked]:
        """Samples of π_t, each judged against the others; the first batch of an iteration updates π_t."""
        refresh_anchor(self.tools.policy, step, self.config.refresh_every)
        completions, *others = self.rollouts.sample(prompts, self.streams(self.tools.config, step), step)
        win_rates = self.rollouts.among(prompts, completions, step).win_rates(self.config.samples_per_prompt)
        if self.config.pairing is Pairing.best_worst:
            order = win_rates.argsort(dim=1, stable=True)
            kept = order[:, [-1, 0]]
            win_rates = win_rates.gather(1, kept)
            places = kept[..., None].expand(-1, -1, completions.tokens.shape[2])
            completions = Completions(completions.tokens.gather(1, places), completions.mask.gather(1, places))
        yield Ranked(prompts, concatenate([completions, *others], dim=1), win_rates)

    def penalty(self, log_ratio: Tensor, others: Tensor) -> Tensor | float:
        """A term added to the sum of the losses, from log π/μ of the N judged completions and log π of the others."""
        return 0.0

    def loss(self, batch: Ranked) -> Loss:
        """The regression summed over the completions of the micro-batch."""
        policy, temperature = self.tools.policy, self.tools.config.generation.temperature
        every, win_rates, count = batch.completions, batch.win_rates.flatten(), batch.win_rates.shape[1]
        completions = Completions(every.tokens[:, :count], every.mask[:, :count]).flat()
        reference, anchor = (
            policy.log_probs(role, batch.prompts, completions, temperature) for role in (Role.reference, Role.anchor)
        )
        both = policy.log_probs(Role.policy, batch.prompts, every.flat(), temperature).reshape(every.mask.shape)
        log_probs, others = both[:, :count].flatten(0, 1), both[:, count:].flatten(0, 1)
        moved, log_ratio = (log_probs - anchor).sum(1), log_probs - reference
        return Loss(
            total=self_play_regression_loss(moved, win_rates, self.config.step_eta).sum()
            + self.penalty(log_ratio.sum(1), others.sum(1)),
            targets=len(win_rates),
            metrics={
                "log_ratio_anchor": moved.detach().sum(),
                **rollout_metrics(policy, completions, log_probs, log_ratio),
            },
            tokens=every.mask.sum(),
        )
