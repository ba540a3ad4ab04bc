"""The win rate against the reference on held-out prompts, with an interval over prompts."""

from collections.abc import Sequence

import numpy as np
import torch

from alignrun.algorithms.common.rollout import Pace, decode_texts, sample_streams, sampling_of, step_generator
from alignrun.algorithms.common.scoring import log_ratio, scoring
from alignrun.config import EvaluationConfig
from alignrun.data.prompts import PromptSet
from alignrun.evaluation.bootstrap import mean_estimate
from alignrun.evaluation.intervals import SHARE
from alignrun.evaluation.settled import in_words, metrics_of
from alignrun.evaluation.truncation import truncation
from alignrun.models.device import batch_to
from alignrun.models.policy import Policy
from alignrun.preferences.base import Preference
from alignrun.types import Evaluation, Role, Sample

EVALUATION_STREAM = 1
"""Separates evaluation's random numbers from training's: evaluating more often changes no training step."""


class WinRateEvaluator:
    """Samples completions of the policy and the reference for every held-out prompt, and judges them if it can.

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
        self._pace, self._scoring = Pace(), scoring(None, "evaluation.batch_size")
        self._sampling = sampling_of(policy, max_new_tokens, config.temperature, config.top_k, config.top_p)

    def __call__(self) -> Evaluation:
        """Win rate with its interval, KL(π‖μ) unless sampling is truncated, length and end-of-sequence rate."""
        truncated = truncation(self._config.top_k, self._config.top_p)
        generator = step_generator(self._policy.device, self._seed, 0, EVALUATION_STREAM)
        wins: list[list[float]] = []
        samples: list[Sample] = []
        totals, moved = torch.zeros(3, dtype=torch.float64), 0.0
        if self._preference is not None:
            self._preference.drain()  # questions before this evaluation
        for _ in range(self._config.samples_per_prompt):
            drawn: list[float] = []
            for batch in self._prompts.all_batches(self._config.batch_size):
                prompts = batch_to(batch, self._policy.device)
                roles = [Role.policy, Role.reference]
                ours, theirs = sample_streams(self._policy, prompts, roles, self._sampling, generator, pace=self._pace)
                first, second = decode_texts(self._policy, ours), decode_texts(self._policy, theirs)
                preferred: Sequence[float | None] = [None] * len(prompts)
                if self._preference is not None:
                    preferred = self._preference(prompts.texts, first, second).double().tolist()
                if not truncated:
                    at = self._config.temperature, self._scoring
                    ratios = log_ratio(self._policy, Role.policy, prompts, ours, *at)
                    moved += float(ratios.double().sum())
                ended, other_ended = self._policy.ends(ours), self._policy.ends(theirs)
                totals += torch.stack([ours.mask.sum(), theirs.mask.sum(), ended.sum()]).to(totals)
                drawn += [probability for probability in preferred if probability is not None]
                rows = (map(str, prompts.texts), first, second, preferred, ended.tolist(), other_ended.tolist())
                samples += [Sample(*row) for row in zip(*rows, strict=True)]
            wins.append(drawn)
        draws = len(self._prompts) * self._config.samples_per_prompt
        length, reference_length, ends = (totals / draws).tolist()
        metrics = {"prompts": len(self._prompts)} | ({} if truncated else {"kl": moved / draws})
        metrics |= {"length": length, "reference_length": reference_length, "eos_rate": ends}
        kl = f"{moved / draws:z.2f} nats a completion"
        if truncated:
            kl = f"left out: {truncated} truncates what is sampled"
        lines = [
            ("KL(policy ‖ reference)", kl),
            ("length", f"{length:z.1f} tokens (reference {reference_length:z.1f})"),
        ]
        if self._preference is not None:
            per_prompt = np.mean(wins, axis=0).tolist()
            rate = mean_estimate(per_prompt, self._config.confidence, self._seed, SHARE)
            metrics = metrics_of("win_rate", rate) | metrics | self._preference.counts() | self._preference.drain()
            lines.insert(
                0, ("win rate against the reference", in_words(rate, self._config.confidence, "the reference"))
            )
        return Evaluation(metrics=metrics, lines=lines, samples=samples)
