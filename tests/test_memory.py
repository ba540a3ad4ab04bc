"""Predicted memory against what torch's own allocator reports."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import load_policy
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig

from alignrun import cli
from alignrun.algorithms.base import discover
from alignrun.algorithms.common.paired import pair_uniforms, sample_pairs
from alignrun.algorithms.common.rollout import fitting, sample_streams
from alignrun.algorithms.common.workload import workload
from alignrun.config import AdapterKind, Config
from alignrun.errors import InputError
from alignrun.generation.decode import Sampling
from alignrun.generation.streams import Mixture
from alignrun.launch.build import load_trained, make_encoding
from alignrun.launch.compose import compose
from alignrun.models.policy import Policy
from alignrun.models.sources import planned_architecture
from alignrun.objectives.likelihood import CHUNK_SIZE
from alignrun.planning.automatic import largest_batches
from alignrun.planning.plan import MemoryPlan, drawing_bytes, make_plan, peak_sampling, sampling_bytes
from alignrun.planning.trace import Kept, Pass, kept_in_cache, training_peak
from alignrun.types import Completions, PromptBatch, Role


def measured_peak(run: Callable[[], Any]) -> int:
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
    work = Pass(prompts, completions, prompt_tokens, new, config.model.checkpointing, accumulating=False)
    predicted = training_peak(
        planned_architecture(config.model), config.adapter, torch.float32, config.model.attention.value, work
    )
    ids = torch.ones(prompts, prompt_tokens, dtype=torch.long)
    mask = torch.ones_like(ids)
    mask[0, 0] = 0
    batch = PromptBatch(("",) * prompts, ids, mask)
    tokens = torch.ones(prompts * completions, new, dtype=torch.long)
    sampled = Completions(tokens, torch.ones_like(tokens, dtype=torch.bool))
    measured = measured_peak(lambda: policy.log_probs(Role.policy, batch, sampled).sum().backward())
    assert predicted == pytest.approx(measured, rel=0.15)


SMALL = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2}
ATTENTION = SMALL | {"intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
PERIODS = {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1}
MAMBA = {"mamba_d_state": 8, "mamba_dt_rank": 4, "use_mamba_kernels": False}


def plan_of(folder: Path, family: str, fields: dict[str, Any], *overrides: str) -> Config:
    AutoConfig.for_model(family, **fields).save_pretrained(folder)
    model = ["model=path", f"model.path={folder}", "model.dtype=float32"]
    return compose([*model, "data.max_prompt_tokens=8", "generation.max_new_tokens=4", *overrides])


@pytest.mark.parametrize(
    ("family", "fields", "by_token", "state"),
    [
        ("mixtral", ATTENTION | {"num_local_experts": 4, "num_experts_per_tok": 2}, 2 * 2 * 2 * 8, 0),
        ("mamba", SMALL | {"state_size": 8}, 0, 2 * 64 * (4 + 8)),  # layers, inner size, convolution and state
        ("jamba", ATTENTION | {"num_experts": 4} | PERIODS | MAMBA, 2 * 2 * 8, 64 * (4 + 8)),  # a layer of each kind
    ],
)
def test_experts_and_recurrent_layers_are_planned(
    family: str, fields: dict[str, Any], by_token: int, state: int, tmp_path: Path
) -> None:
    config = plan_of(tmp_path, family, fields, *["model.attention=eager"] * (family == "mamba"))
    plan = make_plan(config)
    assert plan.training > 0 < plan.sampling
    assert kept_in_cache(planned_architecture(config.model)) == Kept(by_token, state)


def test_an_attention_that_a_model_lacks_ends_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot be traced .* set model\.attention=eager"):
        make_plan(plan_of(tmp_path, "bloom", {"vocab_size": 64, "hidden_size": 32, "n_layer": 2, "n_head": 4}))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nash_md", "self_play"])
def test_sampling_holds_what_is_planned(name: str) -> None:
    """On a base whose vocabulary and cache are large compared with everything else, as in real models."""
    config = compose(
        [
            "experiment=smoke",
            f"algo={name}",
            "generation.opponents=independent",
            "model.architecture={hidden_size: 64, intermediate_size: 64, num_hidden_layers: 8}",
            "train.batch_size=16",
            "generation.max_new_tokens=40",
            "data.max_prompt_tokens=40",
        ]
    )
    policy = load_trained(config, make_encoding(config).tokenizer)
    assert isinstance(policy, Policy)
    ids = torch.ones(16, 40, dtype=torch.long)
    prompts = PromptBatch(("",) * 16, ids, torch.ones_like(ids))
    sampling = Sampling(max_new_tokens=40, stop_ids=[], pad_id=0)
    sources = workload(config).drawn
    with torch.no_grad():
        measured = measured_peak(
            lambda: sample_streams(policy, prompts, sources, sampling, torch.Generator().manual_seed(0))
        )
    assert peak_sampling(config) == pytest.approx(measured, rel=0.15)


@pytest.mark.slow
def test_continued_drafts_hold_what_is_planned() -> None:
    """No token of a draft is kept, so that every opponent is drawn to its whole length."""
    wide = "hidden_size: 256, intermediate_size: 64, num_hidden_layers: 8, num_attention_heads: 8"
    config = compose(
        [
            "experiment=smoke",
            "algo=nash_md",
            "generation.opponents=drafted",
            f"model.architecture={{{wide}, num_key_value_heads: 2}}",
            "generation.max_new_tokens=120",
            "data.max_prompt_tokens=10",
        ]
    )
    policy = load_trained(config, make_encoding(config).tokenizer)
    assert isinstance(policy, Policy)
    ids = torch.ones(4, 10, dtype=torch.long)
    prompts = PromptBatch(("",) * 4, ids, torch.ones_like(ids))
    sampling = Sampling(max_new_tokens=120, stop_ids=[], pad_id=0)
    own, other = discover()["nash_md"].streams(config, 0)
    uniforms = pair_uniforms(4, own.samples, sampling, torch.Generator().manual_seed(0))
    uniforms[1] = 1
    measured = measured_peak(lambda: sample_pairs(policy, prompts, other.source, sampling, uniforms, fitting()))
    assert drawing_bytes(config, 4) == pytest.approx(measured, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("sources", [(Role.policy,) * 4, (Role.policy, Mixture(Role.policy, Role.reference, 0.125))])
def test_sampling_from_a_real_vocabulary_holds_what_is_planned(dtype: str, sources: tuple[Role | Mixture, ...]) -> None:
    config = compose(
        ["model=smollm2-135m", f"model.dtype={dtype}", "adapter.target_modules=[q_proj]", "data.max_prompt_tokens=20"]
    )
    config = replace(config, generation=replace(config.generation, max_new_tokens=4))
    policy = load_trained(config, make_encoding(config).tokenizer)
    assert isinstance(policy, Policy)
    ids = torch.ones(8, 20, dtype=torch.long)
    prompts, sampling = PromptBatch(("",) * 8, ids, torch.ones_like(ids)), Sampling(4, [], 0)
    with torch.no_grad():
        measured = measured_peak(
            lambda: sample_streams(policy, prompts, sources, sampling, torch.Generator().manual_seed(0))
        )
    assert sampling_bytes(config, sources, 8, policy.model.dtype) == pytest.approx(measured, rel=0.15)


class Widest(TorchDispatchMode):
    """The most numbers in a tensor whose last dimension is the vocabulary, weights left out."""

    def __init__(self, model: nn.Module, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary, self.numbers = vocabulary, 0
        self.weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            wide = isinstance(leaf, torch.Tensor) and leaf.dim() > 1 and leaf.shape[-1] == self.vocabulary
            if wide and leaf.untyped_storage().data_ptr() not in self.weights:
                self.numbers = max(self.numbers, leaf.numel())
        return result


def test_no_logits_of_a_whole_batch_are_held() -> None:
    policy, _ = load_policy()
    vocabulary = policy.model.config.vocab_size
    ids = torch.ones(4, 5, dtype=torch.long)
    prompts = PromptBatch(("",) * 4, ids, torch.ones_like(ids))
    tokens = torch.ones(12, 3 * CHUNK_SIZE // 12, dtype=torch.long)
    with Widest(policy.model, vocabulary) as widest:
        completions = Completions(tokens, torch.ones_like(tokens, dtype=torch.bool))
        policy.log_probs(Role.policy, prompts, completions).sum().backward()
    assert 0 < widest.numbers <= CHUNK_SIZE * vocabulary < tokens.numel() * vocabulary
    sampling = Sampling(max_new_tokens=20, stop_ids=[], pad_id=0)
    with Widest(policy.model, vocabulary) as widest:
        sources = [Role.policy, Mixture(Role.policy, Role.reference, 0.125)]
        sample_streams(policy, prompts, sources, sampling, torch.Generator().manual_seed(0))
    assert 0 < widest.numbers <= 3 * len(prompts) * vocabulary


def test_what_fits_grows_with_the_gpu_and_with_quantisation() -> None:
    config = compose(["model=llama-8b", "model.dtype=bfloat16", "model.gradient_checkpointing=true"])
    lora, qlora = largest_batches(config, (AdapterKind.lora, AdapterKind.qlora), (8, 24, 80)).values()
    assert lora[0].learned == lora[0].drawn == 0  # 15 GiB of weights
    assert 0 < lora[1].learned < lora[2].learned
    assert lora[1].drawn < qlora[1].drawn


def planned(*overrides: str) -> MemoryPlan:
    """The plan of a run with short rows, whose training pass is traced sooner."""
    return make_plan(compose([*overrides, "data.max_prompt_tokens=8", "generation.max_new_tokens=4"]))


def test_a_value_function_and_kept_copies_are_counted() -> None:
    plain, ppo, average = (planned("model=tiny", f"algo={name}") for name in ("rloo", "ppo", "nash_ema"))
    assert ppo.adapters == average.adapters == 2 * plain.adapters
    assert ppo.moments == 2 * average.moments


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("plan.gpu=big", "is not a memory size"),
        ("plan.cpu=3", "plan.cpu is unknown"),
        ("plan.shards=0", "is not a number of processes"),
    ],
)
def test_wrong_plan_settings_end_in_one_line(setting: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "model=tiny", setting]) == 2
    assert said in capsys.readouterr().err


def test_half_steps_and_mixtures_that_come_are_counted() -> None:
    play, prox = (planned("model=tiny", f"algo={name}") for name in ("self_play", "nash_mp"))
    assert prox.adapters == 4 * play.adapters
    for name in ("nash_md", "ipo_md"):
        kept, mixed, comes = (
            peak_sampling(compose(["model=tiny", f"algo={name}", "data.eval_size=1", *betas]))
            for betas in (["algo.mix_beta=0"], ["algo.mix_beta=0.5"], ["algo.mix_beta=0", "algo.mix_beta_end=0.5"])
        )
        assert kept < mixed == comes


def test_drafts_are_planned_where_the_run_will_be_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found, named, alone = (
        drawing_bytes(compose(["model=tiny", "algo=nash_md", "generation.max_new_tokens=512", key]), 4)
        for key in ("model.device=auto", "model.device=cpu", "generation.opponents=independent")
    )
    assert alone < found == named
