"""What an algorithm says that a step asks of the model, against what a step asks."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from helpers import ONLINE, PAIR_BY_PAIR

from alignrun.algorithms.base import discover
from alignrun.algorithms.common import paired, rollout
from alignrun.algorithms.common.rewards import RewardAlgorithm
from alignrun.algorithms.common.workload import workload
from alignrun.generation.streams import Source, decoding_rows
from alignrun.launch.build import assemble
from alignrun.launch.compose import compose
from alignrun.models.policy import Policy


@pytest.mark.parametrize(
    ("name", "opponents"),
    [
        *((name, "independent") for name in ONLINE),
        ("self_play", "auto"),
        ("nash_md", "drafted"),
        ("nash_ema", "drafted"),
    ],
)
def test_a_step_is_as_large_as_it_says(name: str, opponents: str, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[Source, ...]] = []
    learned: list[int] = []
    sample, score = rollout.sample_completions, Policy.log_probs

    def sampling(decoder: Any, prompts: Any, sources: Any, *rest: Any) -> Any:
        drawn.append(tuple(sources))
        return sample(decoder, prompts, sources, *rest)

    def scoring(self: Any, role: Any, prompts: Any, completions: Any, *rest: Any) -> Any:
        found = score(self, role, prompts, completions, *rest)
        if found.requires_grad:
            learned.append(len(completions.tokens) // len(prompts))
        return found

    # A plan does not know whether the preference has a reward of its own, and counts the larger way.
    reward = ["algo.reward=win_rate"] if issubclass(discover()[name], RewardAlgorithm) else []
    config = compose(["experiment=smoke", f"algo={name}", *PAIR_BY_PAIR, *reward, f"generation.opponents={opponents}"])
    assembly = assemble(config)
    before = sum(weight.numel() for weight in assembly.trained.model.parameters())
    monkeypatch.setattr(rollout, "sample_completions", sampling)
    monkeypatch.setattr(paired, "sample_completions", sampling)
    monkeypatch.setattr(Policy, "log_probs", scoring)
    assembly.algorithm.half_step = nullcontext
    asked = assembly.algorithm.asked
    batch = next(iter(assembly.algorithm.collect(assembly.data.batch_at(0, 4), 0)))
    with torch.enable_grad():
        assembly.algorithm.loss(batch)
    work = workload(config)
    assert max(map(decoding_rows, drawn)) == decoding_rows(work.drawn)
    assert len(work.continued) == 2 * decoding_rows(work.drawn) * (opponents == "drafted")
    assert max(learned) == work.learned
    assert assembly.algorithm.asked - asked == 4 * work.questions > 0
    policy_size = sum(weight.numel() for weight in assembly.trained.trainable().values())
    base = sum(weight.numel() for key, weight in assembly.trained.model.named_parameters() if ".lora_" not in key)
    assert before == base + policy_size * (1 + work.copies + work.value)


def test_a_judge_is_asked_a_quarter_of_all_questions() -> None:
    """8 samples and 32 prompts, all pairs in both orders, are 4,096 questions."""
    judge = ["preference=judge", "preference.url=http://localhost/v1", "preference.model=m"]
    settings = ["experiment=smoke", "algo=nash_md", "train.batch_size=32"]
    assert 32 * workload(compose([*settings, *judge])).questions == 1024
    assert 32 * workload(compose([*settings, *judge, "algo.opponents_per_sample=null"])).questions == 4096
    assert workload(compose([*settings, "preference=sentiment"])).questions == 0
