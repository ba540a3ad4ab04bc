"""The gain of a trained best response on held-out prompts: a lower bound on its opponent's exploitability."""

from collections.abc import Sequence

import torch

from alignrun.algorithms.common.rollout import Pace, decode_texts, sample_streams, sampling_of, step_generator
from alignrun.algorithms.common.scoring import log_ratio, scoring
from alignrun.config import EvaluationConfig
from alignrun.data.prompts import PromptSet
from alignrun.evaluation.best_of_n import GAIN
from alignrun.evaluation.bootstrap import mean_estimate
from alignrun.evaluation.results import Estimate
from alignrun.evaluation.settled import in_words, metrics_of, verdict
from alignrun.evaluation.truncation import truncation
from alignrun.models.device import batch_to
from alignrun.models.policy import Policy
from alignrun.preferences.base import Preference
from alignrun.types import Evaluation, Role

OPPONENT_STREAM = 2
"""The random stream, separate from those of training and of the win rate against the reference."""


class OpponentEvaluator:
    """P(π' ≻ π) − ½ and P_τ(π' ≻ π) − ½ of the policy π' against its opponent π, with intervals over prompts.

    P_τ(π' ≻ π) = P(π' ≻ π) − τ KL(π'‖μ) + τ KL(π‖μ) (arXiv 2312.00886). Any π' gives a lower bound: the first on the
    exploitability of π, the second on half its duality gap, at the policy's τ; it is omitted if sampling is truncated.
    """

    def __init__(
        self,
        policy: Policy,
        preference: Preference,
        prompts: PromptSet,
        config: EvaluationConfig,
        max_new_tokens: int,
        kl_tau: float,
        seed: int,
    ) -> None:
        self._policy, self._preference, self._prompts, self._config = policy, preference, prompts, config
        self._kl_tau, self._seed = kl_tau, seed
        self._pace, self._scoring = Pace(), scoring(None, "evaluation.batch_size")
        self._sampling = sampling_of(policy, max_new_tokens, config.temperature, config.top_k, config.top_p)

    def __call__(self) -> Evaluation:
        """The win rate against the opponent and both gains."""
        truncated = truncation(self._config.top_k, self._config.top_p)
        policy, streams = self._policy, self._config.samples_per_prompt
        generator = step_generator(policy.device, self._seed, 0, OPPONENT_STREAM)
        wins, penalties = [], []
        for batch in self._prompts.all_batches(self._config.batch_size):
            prompts = batch_to(batch, policy.device)
            roles = [Role.policy] * streams + [Role.opponent] * streams
            drawn = sample_streams(policy, prompts, roles, self._sampling, generator, pace=self._pace)
            for ours, theirs in zip(drawn[:streams], drawn[streams:], strict=True):
                first, second = decode_texts(policy, ours), decode_texts(policy, theirs)
                wins.append(self._preference(prompts.texts, first, second).double())
                if not truncated:
                    mine, others = (
                        log_ratio(policy, role, prompts, completions, self._config.temperature, self._scoring).sum(1)
                        for role, completions in ((Role.policy, ours), (Role.opponent, theirs))
                    )
                    penalties.append((mine - others).double().cpu())
        gains = _over_streams(wins, streams) - 0.5
        gain = mean_estimate(gains.tolist(), self._config.confidence, self._seed, GAIN)
        metrics = {"opponent/win_rate": gain.value + 0.5} | metrics_of("opponent/gain", gain)
        metrics["prompts"] = len(gains)
        shown = in_words(gain, self._config.confidence)
        lines = [
            ("win rate against the opponent", f"{gain.value + 0.5:z.3f}"),
            ("gain against the opponent", f"{shown}, {_claim(gain, 'its exploitability')}"),
        ]
        if truncated:
            lines.append(("regularised gain", f"left out: {truncated} truncates what is sampled"))
            return Evaluation(metrics, lines)
        regularised = mean_estimate(
            (gains - self._kl_tau * _over_streams(penalties, streams)).tolist(), self._config.confidence, self._seed
        )
        shown = in_words(regularised, self._config.confidence)
        claim = _claim(regularised, f"half its duality gap at τ={self._kl_tau:g}")
        lines.append(("regularised gain", f"{shown}, {claim}"))
        return Evaluation(metrics | metrics_of("opponent/regularised_gain", regularised), lines)


def _over_streams(parts: Sequence[torch.Tensor], streams: int) -> torch.Tensor:
    """Evaluate batches of prompts, each with all its streams; one mean over streams per prompt."""
    batches = [torch.stack(list(parts[start : start + streams])) for start in range(0, len(parts), streams)]
    return torch.cat([batch.mean(0) for batch in batches])


def _claim(gain: Estimate, quantity: str) -> str:
    """The claim that a gain supports: an uncertain gain does not show that the opponent is exploitable."""
    shown = verdict(gain, 0.0) > 0
    return f"a lower bound of {quantity}" if shown else f"which does not show that {quantity} is above 0"
