"""What a trained best response gains against its opponent on held-out prompts: how exploitable that one is at least."""

import torch

from alignrun.algorithms.rollout import decode_texts, log_ratio, sample_streams, step_generator
from alignrun.config import EvaluationConfig
from alignrun.data import PromptSet
from alignrun.evaluation.intervals import mean_interval
from alignrun.generation.decode import Sampling
from alignrun.models.device import batch_to
from alignrun.models.policy import Policy, Role
from alignrun.preferences.base import Preference
from alignrun.types import Evaluation

OPPONENT_STREAM = 2
"""Random numbers apart from those of training and of the win rate against the reference."""


class OpponentEvaluator:
    """P(π' ≻ π) − ½ and P_τ(π' ≻ π) − ½ of the policy π' against its opponent π, with intervals over prompts.

    P_τ(π' ≻ π) = P(π' ≻ π) − τ KL(π'‖μ) + τ KL(π‖μ) (arXiv 2312.00886). Any π' gives a lower bound: the first on the
    exploitability of π, the second on half its duality gap, at the policy's own τ.
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
        self._sampling = Sampling(
            max_new_tokens=max_new_tokens,
            stop_ids=policy.stop_ids,
            pad_id=policy.tokenizer.pad_token_id,
            temperature=config.temperature,
            top_k=config.top_k,
            top_p=config.top_p,
        )

    def __call__(self) -> Evaluation:
        """The win rate against the opponent and both gains."""
        policy, streams = self._policy, self._config.samples_per_prompt
        generator = step_generator(policy.device, self._seed, 0, OPPONENT_STREAM)
        wins, penalties = [], []
        for batch in self._prompts.all_batches(self._config.batch_size):
            prompts = batch_to(batch, policy.device)
            roles = [0.0] * streams + [1.0] * streams
            drawn = sample_streams(policy, prompts, roles, self._sampling, generator, Role.opponent)
            for ours, theirs in zip(drawn[:streams], drawn[streams:], strict=True):
                first, second = decode_texts(policy, ours), decode_texts(policy, theirs)
                wins.append(self._preference(prompts.texts, first, second).double())
                mine, others = (
                    log_ratio(policy, role, prompts, completions, self._config.temperature).sum(1)
                    for role, completions in ((Role.policy, ours), (Role.opponent, theirs))
                )
                penalties.append((mine - others).double().cpu())
        # Batches of prompts, each with all its streams, back to one row for each prompt.
        win, penalty = (
            torch.cat([torch.stack(part[start : start + streams]).mean(0) for start in range(0, len(part), streams)])
            for part in (wins, penalties)
        )
        gain = win - 0.5
        low, high = mean_interval(gain.tolist(), self._config.confidence, self._seed)
        regularised = gain - self._kl_tau * penalty
        regularised_low, regularised_high = mean_interval(regularised.tolist(), self._config.confidence, self._seed)
        metrics = {
            "opponent/win_rate": float(win.mean()),
            "opponent/gain": float(gain.mean()),
            "opponent/gain_low": low,
            "opponent/gain_high": high,
            "opponent/regularised_gain": float(regularised.mean()),
            "opponent/regularised_gain_low": regularised_low,
            "opponent/regularised_gain_high": regularised_high,
        }
        interval = f"{self._config.confidence:.0%} interval"
        lines = [
            ("win rate against the opponent", f"{metrics['opponent/win_rate']:.3f}"),
            (
                "gain against the opponent",
                f"{metrics['opponent/gain']:.3f}  ({interval} {low:.3f} to {high:.3f}, {len(win)} held-out prompts): "
                "its exploitability is at least that",
            ),
            (
                "regularised gain",
                f"{metrics['opponent/regularised_gain']:.3f}  ({interval} {regularised_low:.3f} to "
                f"{regularised_high:.3f}): half its duality gap at τ={self._kl_tau:g} is at least that",
            ),
        ]
        return Evaluation(metrics, lines)
