"""Predicted memory against what torch's own allocator reports."""

from collections.abc import Callable

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from alignrun import cli
from alignrun.build import load_trained, make_encoding
from alignrun.compose import compose
from alignrun.memory_plan import largest_batches, make_plan
from alignrun.memory_trace import Pass, training_peak
from alignrun.models.policy import Policy, Role
from alignrun.models.sources import planned_architecture
from alignrun.types import Completions, PromptBatch


def measured_peak(run: Callable[[], None]) -> int:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


@pytest.mark.parametrize("overrides", [[], ["adapter=none"], ["model.gradient_checkpointing=true"]])
@pytest.mark.parametrize(("prompts", "completions", "prompt_tokens", "new"), [(4, 2, 37, 64), (2, 1, 100, 200)])
def test_the_traced_pass_holds_what_the_real_one_does(
    overrides: list[str], prompts: int, completions: int, prompt_tokens: int, new: int
) -> None:
    config = compose(["model=tiny", "model.dtype=float32", *overrides])
    policy = load_trained(config, make_encoding(config).tokenizer)
    assert isinstance(policy, Policy)
    work = Pass(prompts, completions, prompt_tokens, new, config.model.gradient_checkpointing, accumulating=False)
    predicted = training_peak(
        planned_architecture(config.model), config.adapter, torch.float32, config.model.attention.value, work
    )
    ids = torch.ones(prompts, prompt_tokens, dtype=torch.long)
    batch = PromptBatch(("",) * prompts, ids, torch.ones_like(ids))
    batch.attention_mask[0, 0] = 0
    tokens = torch.ones(prompts * completions, new, dtype=torch.long)
    sampled = Completions(tokens, torch.ones_like(tokens, dtype=torch.bool))
    measured = measured_peak(lambda: policy.log_probs(Role.policy, batch, sampled).sum().backward())
    assert predicted == pytest.approx(measured, rel=0.15)


def test_what_fits_grows_with_the_gpu_and_with_quantisation() -> None:
    lora, qlora = (
        largest_batches(compose(["model=llama-8b", "model.dtype=bfloat16", f"adapter={name}"]), (8, 24, 80))
        for name in ("lora", "qlora")
    )
    assert lora[0].learned == lora[0].drawn == 0  # 15 GiB of weights
    assert 0 < lora[1].learned < lora[2].learned
    assert lora[1].drawn < qlora[1].drawn


def test_a_value_function_and_kept_copies_are_counted() -> None:
    plain, ppo, average = (make_plan(compose(["model=tiny", f"algo={name}"])) for name in ("rloo", "ppo", "nash_ema"))
    assert ppo.adapters == average.adapters == 2 * plain.adapters
    assert ppo.moments == 2 * average.moments


@pytest.mark.parametrize(
    ("setting", "said"), [("plan.gpu=big", "is not a size of memory"), ("plan.cpu=3", "plan.cpu is unknown")]
)
def test_wrong_plan_settings_end_in_one_line(setting: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "model=tiny", setting]) == 2
    assert said in capsys.readouterr().err
