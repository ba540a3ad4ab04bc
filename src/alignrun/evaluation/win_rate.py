"""The win rate against the reference on held-out prompts, with an interval over prompts."""

from collections.abc import Sequence

import numpy as np
import torch

from alignrun.algorithms.rollout import decode_texts, log_ratio, sample_streams, step_generator
from alignrun.config import EvaluationConfig
from alignrun.data import PromptSet
from alignrun.evaluation.intervals import mean_interval
from alignrun.generation.decode import Sampling
from alignrun.models.device import batch_to
from alignrun.models.policy import Policy, Role
from alignrun.preferences.base import Preference
from alignrun.types import Evaluation, Sample

EVALUATION_STREAM = 1
"""Keeps evaluation's random numbers apart from training's: evaluating more often changes no training step."""


class WinRateEvaluator:
    """Draws completions from the policy and the reference for every held-out prompt and asks the preference, if any.

    The same random numbers are used at every evaluation, so that steps are compared on equal draws.
    """

    def __init__(
        self,
        policy: Policy,
        preference: Preference | None,
        prompts: PromptSet,
        config: EvaluationConfig,
        max_new_tokens: int,
        seed: int,
    ) -> None:
        self._policy, self._preference, self._prompts, self._config = policy, preference, prompts, config
        self._seed = seed
        self._sampling = Sampling(
            max_new_tokens=max_new_tokens,
            stop_ids=policy.stop_ids,
            pad_id=policy.tokenizer.pad_token_id,
            temperature=config.temperature,
            top_k=config.top_k,
            top_p=config.top_p,
        )

    def __call__(self) -> Evaluation:
        """Win rate with interval, KL(π‖μ), length and end-of-sequence rate."""
        generator = step_generator(self._policy.device, self._seed, 0, EVALUATION_STREAM)
        wins: list[list[float]] = []
        samples: list[Sample] = []
        totals = torch.zeros(4, dtype=torch.float64)
        for _ in range(self._config.samples_per_prompt):
            drawn: list[float] = []
            for batch in self._prompts.all_batches(self._config.batch_size):
                prompts = batch_to(batch, self._policy.device)
                ours, theirs = sample_streams(self._policy, prompts, [0.0, 1.0], self._sampling, generator)
                first, second = decode_texts(self._policy, ours), decode_texts(self._policy, theirs)
                preferred: Sequence[float | None] = [None] * len(prompts)
                if self._preference is not None:
                    preferred = self._preference(prompts.texts, first, second).double().tolist()
                log_ratios = log_ratio(self._policy, Role.policy, prompts, ours, self._config.temperature)
                totals += torch.stack(
                    [log_ratios.sum(), ours.mask.sum(), theirs.mask.sum(), self._policy.ends(ours).sum()]
                ).to(totals)
                drawn += [probability for probability in preferred if probability is not None]
                samples += [Sample(*row) for row in zip(prompts.texts, first, second, preferred, strict=True)]
            wins.append(drawn)
        draws = len(self._prompts) * self._config.samples_per_prompt
        kl, length, reference_length, ends = (totals / draws).tolist()
        metrics = {"kl": kl, "length": length, "reference_length": reference_length, "eos_rate": ends}
        lines = [
            ("KL(policy ‖ reference)", f"{kl:.2f} nats a completion"),
            ("length", f"{length:.1f} tokens (reference {reference_length:.1f})"),
        ]
        if self._preference is not None:
            per_prompt = np.mean(wins, axis=0).tolist()
            rate = sum(per_prompt) / len(per_prompt)
            low, high = mean_interval(per_prompt, self._config.confidence, self._seed)
            metrics = {"win_rate": rate, "win_rate_low": low, "win_rate_high": high} | metrics
            metrics |= self._preference.counts()
            shown = (
                f"{rate:.3f}  ({self._config.confidence:.0%} interval {low:.3f} to {high:.3f}, "
                f"{len(per_prompt)} held-out prompts)"
            )
            lines.insert(0, ("win rate against the reference", shown))
        return Evaluation(metrics=metrics, lines=lines, samples=samples)
