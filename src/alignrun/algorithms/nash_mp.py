"""Nash-MP: mirror prox, an extragradient method for preference games (arXiv 2505.19731; EGPO, arXiv 2503.08942)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from alignrun.algorithms.base import Loss, algorithm
from alignrun.algorithms.common.online import OnlineAlgorithm
from alignrun.algorithms.common.opponents import pairs_against
from alignrun.algorithms.common.rollout_metrics import rollout_metrics
from alignrun.algorithms.common.schedules import check_opponents
from alignrun.config import Config, require, schema
from alignrun.generation.streams import Stream
from alignrun.objectives.nash import extragradient_loss
from alignrun.types import Completions, PromptBatch, Role


@schema
class NashMPConfig:
    """Regularisation towards μ, and the distribution of the regression."""

    name: str = "nash_mp"
    kl_tau: float = 0.1
    """τ, the weight of KL(π‖μ) against a win rate in [0, 1]."""
    samples_per_prompt: int = 4
    """Completions to fit, and as many opponents, per prompt and half-step."""
    opponents_per_sample: int | None = 2
    """Opponents that each is judged against, drawn if every pair is a question to the preference; null is all."""
    explore_temperature: float = 2.0
    """Multiplies `generation.temperature` for the completions to fit; higher is flatter."""

    def __post_init__(self) -> None:
        require(self.kl_tau > 0, "algo.kl_tau", f"must be positive, not {self.kl_tau}")
        require(self.samples_per_prompt >= 2, "algo.samples_per_prompt", "must be at least 2, to form pairs")
        check_opponents(self.opponents_per_sample)
        require(self.explore_temperature > 0, "algo.explore_temperature", "must be positive")


@dataclass(frozen=True, slots=True)
class Opposed:
    """K completions to fit for each of B prompts, and the win rate of each against the opponent."""

    prompts: PromptBatch
    completions: Completions
    """[B, K, T]"""
    win_rates: Tensor
    """[B, K] P(y ≻ π'' | x)."""
    own: Completions | None
    """[B, K, T] samples of π_t, if their metrics are logged."""


@algorithm("nash_mp", NashMPConfig)
class NashMP(OnlineAlgorithm):
    """Two half-steps from the same weights and optimiser state, each a regression on pairs y, y' of a flatter policy:

    τ(h − [P(y ≻ π'') − P(y' ≻ π'')]/τ)²,  first with π'' = π_t, then with π'' = π_{t+½}, the result of the first.

    Only the second is kept. For tabular logits and uniform pairs these are the steps of mirror prox,
    log π_{t+1} = (1−ητ) log π_t + ητ log μ + ηP(y ≻ π_{t+½}), and KL(π*_τ‖π_t) shrinks by a constant factor per step.
    The regression vanishes at the fixed point π*_τ for any distribution of y and y'. Sample metrics are those of π_t,
    and the win rate is against π_{t+½}. Each step costs twice a step of online IPO.
    """

    config: NashMPConfig
    half_steps = True

    @classmethod
    def streams(cls, config: Config, step: int) -> Sequence[Stream]:
        """The completions to fit, from a flatter policy, and as many of the policy to judge them against."""
        samples, temperature = config.algo.samples_per_prompt, config.generation.temperature
        flat = temperature * config.algo.explore_temperature
        return Stream(Role.policy, samples, learned=samples, temperature=flat), Stream(Role.policy, samples)

    @classmethod
    def pairs(cls, config: Config, opponents: int | None = None) -> int:
        """The completions against some of the opponents, in both half-steps."""
        samples = config.algo.samples_per_prompt
        return 2 * pairs_against(samples, samples, opponents)

    def collect(self, prompts: PromptBatch, step: int) -> Iterator[Opposed]:
        """One batch, judged against the policy after the half-step."""
        streams = self.streams(self.tools.config, step)
        fitted, own = self.rollouts.sample(prompts, streams, step)
        win_rates = self.rollouts.preference(prompts, fitted, own, step)
        with self.half_step(Opposed(prompts, fitted, win_rates, None)):
            (opponents,) = self.rollouts.sample(prompts, streams[1:], step, purpose=1)
        win_rates = self.rollouts.preference(prompts, fitted, opponents, step, 1)
        yield Opposed(prompts, fitted, win_rates, own)

    def loss(self, batch: Opposed) -> Loss:
        """The regression summed over the pairs of the micro-batch."""
        policy, temperature = self.tools.policy, self.tools.config.generation.temperature
        completions, shape = batch.completions.flat(), batch.win_rates.shape
        reference, log_probs = (
            policy.log_probs(role, batch.prompts, completions, temperature) for role in (Role.reference, Role.policy)
        )
        ratios = (log_probs - reference).sum(1).reshape(shape)
        first, second = torch.triu_indices(shape[1], shape[1], 1, device=ratios.device)
        margins = ratios[:, first] - ratios[:, second]
        edges = batch.win_rates[:, first] - batch.win_rates[:, second]
        pairs_per_completion = len(first) / shape[1]
        return Loss(
            total=extragradient_loss(margins.flatten(), edges.flatten(), self.config.kl_tau).sum(),
            targets=margins.numel(),
            metrics={
                "win_rate": batch.win_rates.sum() * pairs_per_completion,
                **{name: value * pairs_per_completion for name, value in self._watch(batch).items()},
            },
            tokens=completions.mask.sum(),
        )

    @torch.no_grad()
    def _watch(self, batch: Opposed) -> dict[str, Tensor]:
        """The usual rollout metrics, on samples of the policy itself rather than of the flatter one."""
        if batch.own is None:
            return {}
        policy, temperature = self.tools.policy, self.tools.config.generation.temperature
        own = batch.own.flat()
        reference, log_probs = (
            policy.log_probs(role, batch.prompts, own, temperature) for role in (Role.reference, Role.policy)
        )
        return rollout_metrics(policy, own, log_probs, log_probs - reference)
