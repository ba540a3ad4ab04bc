"""Nash-MP: mirror prox, the extragradient method of preference games (arXiv 2505.19731; EGPO, arXiv 2503.08942)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from alignrun.algorithms.base import Algorithm, Loss, Tools, algorithm
from alignrun.algorithms.common.rollout import Rollouts
from alignrun.algorithms.common.rollout_metrics import rollout_metrics
from alignrun.config import Config, require, schema
from alignrun.generation.streams import Stream
from alignrun.objectives.nash import extragradient_loss
from alignrun.types import Completions, PromptBatch, Role


@schema
class NashMPConfig:
    """How strongly μ pulls, and where the regression is carried out."""

    name: str = "nash_mp"
    kl_tau: float = 0.1
    """τ, the weight of KL(π‖μ) against a win rate in [0, 1]."""
    samples_per_prompt: int = 4
    """Completions that are fitted, and as many that they are judged against, for every prompt and half-step."""
    explore_temperature: float = 2.0
    """Times `generation.temperature`: how flat the distribution is that the fitted completions come from."""

    def __post_init__(self) -> None:
        require(self.kl_tau > 0, "algo.kl_tau", f"must be positive, not {self.kl_tau}")
        require(self.samples_per_prompt >= 2, "algo.samples_per_prompt", "must be at least 2, to form pairs")
        require(self.explore_temperature > 0, "algo.explore_temperature", "must be positive")


@dataclass(frozen=True, slots=True)
class Opposed:
    """K completions to be fitted for each of B prompts, and K of the policy that they are judged against."""

    prompts: PromptBatch
    completions: Completions
    """[B, K, T]"""
    win_rates: Tensor
    """[B, K] P(y ≻ π'' | x)."""
    own: Completions | None
    """[B, K, T] samples of π_t, where their metrics are wanted."""


@algorithm("nash_mp", NashMPConfig)
class NashMP(Algorithm):
    """Two half-steps from the same weights and optimiser state, each a regression at pairs y, y' of a flat policy:

    τ(h − [P(y ≻ π'') − P(y' ≻ π'')]/τ)²,  π'' = π_t, then π'' = π_{t+½} where the first half-step has led.

    Only the second is kept. On a table of logits with uniform pairs the two are the steps of mirror prox,
    log π_{t+1} = (1−ητ) log π_t + ητ log μ + ηP(y ≻ π_{t+½}), and KL(π*_τ‖π_t) shrinks by a constant factor a step.
    The regression has its zero at the fixed point π*_τ wherever y and y' come from. The metrics of samples are those
    of π_t, the win rate that against π_{t+½}. Costs twice the steps of online IPO.
    """

    config: NashMPConfig
    tools: Tools
    half_steps = True

    def __init__(self, config: NashMPConfig, tools: Tools) -> None:
        super().__init__(config, tools)
        self.rollouts = Rollouts(tools)

    @classmethod
    def streams(cls, config: Config, step: int) -> Sequence[Stream]:
        """The completions to be fitted, from a flatter policy, and as many of the policy to judge them against."""
        samples, temperature = config.algo.samples_per_prompt, config.generation.temperature
        flat = temperature * config.algo.explore_temperature
        return Stream(Role.policy, samples, learned=samples, temperature=flat), Stream(Role.policy, samples)

    def collect(self, prompts: PromptBatch, step: int) -> Iterator[Opposed]:
        """The step, on completions judged against those of the policy to which the half-step leads."""
        streams = self.streams(self.tools.config, step)
        fitted, own = self.rollouts.sample(prompts, streams, step)
        win_rates = self.rollouts.preference(prompts, fitted, own)
        with self.half_step(Opposed(prompts, fitted, win_rates, None)):
            (opponents,) = self.rollouts.sample(prompts, streams[1:], step, purpose=1)
        win_rates = self.rollouts.preference(prompts, fitted, opponents)
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
        """The usual metrics, for which samples of the policy are needed and not those of a flatter one."""
        if batch.own is None:
            return {}
        policy, temperature = self.tools.policy, self.tools.config.generation.temperature
        own = batch.own.flat()
        reference, log_probs = (
            policy.log_probs(role, batch.prompts, own, temperature) for role in (Role.reference, Role.policy)
        )
        return rollout_metrics(policy, own, log_probs, log_probs - reference)
