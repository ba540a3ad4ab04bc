"""On a CUDA device: the numbers of a CPU, steps that are recorded, no waits, and the memory that was planned."""

from pathlib import Path

import pytest
import torch
from helpers import ONLINE, load_policy, random_batch
from transformers import AutoConfig, AutoModelForCausalLM

from alignrun import cli
from alignrun.launch.compose import compose
from alignrun.models.adapters import POLICY
from alignrun.models.decoding import replay
from alignrun.models.decoding.decoder import CachedDecoder
from alignrun.models.device import batch_to
from alignrun.models.policy import Policy
from alignrun.models.sources import load_model, load_tokenizer
from alignrun.planning.plan import make_plan
from alignrun.types import Completions, PromptBatch, Role

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

CUDA = torch.device("cuda")


def batch_on(policy: Policy, prompts: int = 3) -> tuple[PromptBatch, Completions]:
    batch, completions = random_batch(policy, prompts=prompts)
    return batch_to(batch, policy.device), batch_to(completions, policy.device)


def smoke(run: Path, *overrides: str) -> int:
    return cli.main(["experiment=smoke", "model.device=cuda", f"run.dir={run}", *overrides])


@pytest.mark.parametrize("role", [Role.policy, Role.reference])
def test_log_probabilities_are_those_of_the_cpu(role: Role) -> None:
    found = []
    for device in ("cpu", "cuda"):
        policy, _ = load_policy(f"model.device={device}", "model.dtype=float32")
        with torch.no_grad():
            found.append(policy.log_probs(role, *batch_on(policy)).cpu())
    torch.testing.assert_close(*found, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("bucket", [8, 128])
def test_recorded_steps_give_the_logits_of_plain_ones_also_when_rows_leave(
    dtype: str, bucket: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "BUCKET", bucket)
    policy, _ = load_policy("model.device=cuda", f"model.dtype={dtype}")
    prompts, _ = batch_on(policy, prompts=4)
    plain = CachedDecoder(policy.model, prompts, [POLICY, None])
    recorded = CachedDecoder(policy.model, prompts, [POLICY, None], replay=16)
    assert torch.equal(plain.prefill(), recorded.prefill())
    generator = torch.Generator(CUDA).manual_seed(0)
    rows = [0, 1, 2, 3, 0, 4, 5, 6, 7]
    tolerance = 1e-4 if dtype == "float32" else 5e-2
    for position in range(16):
        if position in (0, 8):
            for decoder in (plain, recorded):
                decoder.select(rows)
        tokens = torch.randint(policy.model.config.vocab_size, (len(rows),), generator=generator, device=CUDA)
        torch.testing.assert_close(recorded.step(tokens), plain.step(tokens), atol=tolerance, rtol=tolerance)
        if position == 7:
            rows = [1, 3, 5, 8]


@torch.no_grad()
def test_all_recordings_of_a_decoder_share_one_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "BUCKET", 4)
    policy, _ = load_policy("model.device=cuda")
    prompts, _ = batch_on(policy, prompts=4)
    decoder = CachedDecoder(policy.model, prompts, [POLICY], replay=16)
    decoder.prefill()
    pools, graphs = set(), []
    for position in range(16):
        if position == 8:
            decoder.select([0, 2])
        decoder.step(torch.zeros(4 if position < 8 else 2, dtype=torch.long, device=CUDA))
        graph = decoder._replayed._graph if decoder._replayed is not None else None
        if graph is not None:
            pools.add(graph.pool())
            graphs += [graph] * all(graph is not other for other in graphs)
    assert len(pools) == 1
    assert len(graphs) > 2


def test_a_recorded_step_sees_weights_that_change_in_place() -> None:
    policy, _ = load_policy("model.device=cuda", "model.dtype=float32")
    prompts, _ = batch_on(policy, prompts=2)
    decoder = CachedDecoder(policy.model, prompts, [POLICY], replay=8)
    with torch.no_grad():
        decoder.prefill()
        tokens = torch.tensor([5, 7], device=CUDA)
        for _ in range(3):
            before = decoder.step(tokens).clone()
        for weight in policy.trainable().values():
            weight.mul_(3)
        assert (decoder.step(tokens) - before).abs().max() > 1e-2


@torch.no_grad()
@pytest.mark.parametrize("products", ["float32", "bfloat16"])
def test_recorded_decoding_is_the_policy_that_is_trained(products: str) -> None:
    policy, _ = load_policy("model.device=cuda", "model.dtype=bfloat16", f"adapter.compute_dtype={products}")
    prompts, completions = batch_on(policy)
    decoder = CachedDecoder(policy.model, prompts, [POLICY], replay=8)
    logits = [decoder.prefill(), *(decoder.step(tokens).clone() for tokens in completions.tokens.T[:-1])]
    drawn = torch.stack(logits, 1).float().log_softmax(-1)
    found = drawn.gather(2, completions.tokens[..., None])[..., 0] * completions.mask
    torch.testing.assert_close(found, policy.log_probs(Role.policy, prompts, completions), atol=0.1, rtol=0.02)


@torch.no_grad()
def test_a_window_that_holds_the_whole_text_is_recorded() -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
    fields = {"vocab_size": 64, "num_hidden_layers": 2, "sliding_window": 32, **sizes}
    torch.manual_seed(0)
    with CUDA:
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model("mistral", **fields)).eval()
        ids = torch.randint(0, 64, (3, 5))
    prompts = PromptBatch(("",) * 3, ids, torch.ones_like(ids), padded=False)
    plain, recorded = (CachedDecoder(model, prompts, [None], replay) for replay in (None, 8))
    assert torch.equal(plain.prefill(), recorded.prefill())
    for tokens in torch.randint(0, 64, (8, 3), device=CUDA):
        torch.testing.assert_close(recorded.step(tokens), plain.step(tokens), atol=1e-4, rtol=1e-4)
    assert recorded._replayed is not None
    assert recorded._replayed._graph is not None


def gradients(*overrides: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of a batch, and their gradient."""
    policy, _ = load_policy("model.device=cuda", *overrides)
    log_probs = policy.log_probs(Role.policy, *batch_on(policy))
    log_probs.sum().backward()
    weights = policy.trainable().values()
    return log_probs.detach(), torch.cat([weight.grad.flatten() for weight in weights if weight.grad is not None])


def test_tf32_is_used_where_it_is_allowed() -> None:
    try:
        exact, exact_gradient = gradients("model.dtype=float32")
        assert torch.get_float32_matmul_precision() == "highest"
        rounded, gradient = gradients("model.dtype=float32", "model.tf32=true")
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
    torch.testing.assert_close(rounded, exact, atol=0.1, rtol=0.02)
    assert 0 < (gradient - exact_gradient).norm() / exact_gradient.norm() < 0.1


def test_fused_kernels_compute_the_same() -> None:
    pytest.importorskip("liger_kernel")
    usual, usual_gradient = gradients("model.dtype=float32")
    fused, gradient = gradients("model.dtype=float32", "model.kernels=liger")
    torch.testing.assert_close(fused, usual, atol=1e-3, rtol=1e-3)
    assert (gradient - usual_gradient).norm() / usual_gradient.norm() < 1e-3


def test_a_run_with_fused_kernels_ends_well(tmp_path: Path) -> None:
    pytest.importorskip("liger_kernel")
    settings = ["model.kernels=liger", "model.dtype=bfloat16", "model.gradient_checkpointing=true"]
    assert smoke(tmp_path / "run", "algo=nash_md", *settings) == 0


@pytest.mark.parametrize("name", ONLINE)
def test_every_online_algorithm_trains(name: str, tmp_path: Path) -> None:
    assert smoke(tmp_path / "run", f"algo={name}", "model.dtype=bfloat16") == 0


def test_a_stopped_run_continues(tmp_path: Path) -> None:
    assert smoke(tmp_path / "run", "train.steps=2") == 0
    assert cli.main(["resume", str(tmp_path / "run"), "train.steps=3"]) == 0


def test_a_quantised_base_trains(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    config = compose(["experiment=smoke"])
    tokenizer = load_tokenizer(config.model)
    load_model(config.model, tokenizer, torch.float32).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    base = ["model=path", f"model.path={tmp_path / 'base'}"]
    assert smoke(tmp_path / "run", *base, "adapter=qlora") == 0
    assert cli.main(["export", str(tmp_path / "run"), "--merge"]) == 0


def test_a_pass_and_its_gradient_wait_for_nothing() -> None:
    policy, _ = load_policy("model.device=cuda")
    prompts, completions = batch_on(policy)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        log_probs = policy.log_probs(Role.policy, prompts, completions)
        reference = policy.log_probs(Role.reference, prompts, completions)
        (log_probs - reference).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", ["nash_md", "ppo", "nash_ema"])
def test_the_peak_is_the_planned_one(name: str, tmp_path: Path) -> None:
    """Of a model that is large against the kernels' workspaces, on prompts of 64 tokens, 19 of them the template's."""
    settings = [
        "model.architecture={hidden_size: 1024, intermediate_size: 4096, num_hidden_layers: 8,"
        " num_attention_heads: 16, num_key_value_heads: 4}",
        "data=inline",
        f"data.prompts={[f'{number:045}' for number in range(20)]}",
        "data.max_prompt_tokens=64",
        "data.eval_size=2",
        "generation.max_new_tokens=256",
        "train.batch_size=16",
        "train.steps=2",
        f"algo={name}",
    ]
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()
    assert smoke(tmp_path / "run", *settings) == 0
    planned = make_plan(compose(["experiment=smoke", "model.device=cuda", *settings])).peak
    assert planned == pytest.approx(torch.cuda.max_memory_allocated() - held, rel=0.15)
