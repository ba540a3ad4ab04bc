"""SFT: packed demonstrations give the loss of each by itself, and its adapter serves as the reference of later runs."""

import json
from pathlib import Path

import pytest
import torch
from helpers import random_batch

from alignrun import cli
from alignrun.algorithms.common.rollout import sample_streams, step_generator
from alignrun.config import AdapterConfig, ReferenceConfig, ReferenceKind
from alignrun.generation.decode import Sampling
from alignrun.launch.build import assemble
from alignrun.launch.compose import compose
from alignrun.models.policy import Policy
from alignrun.models.sources import load_tokenizer
from alignrun.types import Role

TEXTS = [
    ("Say hello.", "Hello!"),
    ("Count to three.", "One, two, three."),
    ("Name a colour.", "Blue"),
    ("Why?", "Because it is so, and has always been so."),
    ("Go on.", "No."),
]


@pytest.fixture
def demonstrations(tmp_path: Path) -> Path:
    path = tmp_path / "demonstrations.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": x, "completion": y}) for x, y in TEXTS))
    return path


def overrides(path: Path, *more: str) -> list[str]:
    return [
        "experiment=smoke",
        "algo=sft",
        "data=jsonl",
        f"data.path={path}",
        f"data.eval_path={path}",
        "preference=none",
        *more,
    ]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("pack_tokens", ["null", "400"])
def test_the_packed_loss_and_gradient_are_those_of_each_demonstration_alone(
    demonstrations: Path, pack_tokens: str, attention: str
) -> None:
    given = overrides(demonstrations, f"algo.pack_tokens={pack_tokens}", f"model.attention={attention}")
    assembly = assemble(compose(given))
    policy = assembly.trained
    assert isinstance(policy, Policy)
    with torch.no_grad():
        for weight in policy.trainable().values():
            weight += 0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    batch = assembly.data.batch_at(0, len(TEXTS))
    assert len(batch.input_ids) < len(TEXTS)  # something is packed at all
    loss = assembly.algorithm.loss(batch)
    total, count = torch.zeros(()), 0
    for prompt, completion in TEXTS:
        turns = [{"role": "user", "content": prompt}]
        start = policy.tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        whole = [*start, *policy.tokenizer(completion)["input_ids"], policy.tokenizer.eos_token_id]
        logits = policy.model(input_ids=torch.tensor([whole]), use_cache=False).logits[0]
        targets = torch.tensor(whole[len(start) :])
        total = total - logits[len(start) - 1 : -1].log_softmax(-1).gather(1, targets[:, None]).sum()
        count += len(targets)
    assert int(loss.targets) == count
    torch.testing.assert_close(loss.total, total, rtol=1e-4, atol=1e-4)
    weights = list(policy.trainable().values())
    for packed, alone in zip(
        torch.autograd.grad(loss.total, weights), torch.autograd.grad(total, weights), strict=True
    ):
        torch.testing.assert_close(packed, alone, rtol=1e-3, atol=1e-4 * float(alone.abs().max()))


def test_an_sft_run_is_the_reference_of_a_nash_md_run(demonstrations: Path, tmp_path: Path) -> None:
    run = tmp_path / "sft"
    learning = ["optim.learning_rate=0.02", "train.steps=8", "train.batch_size=5"]
    assert cli.main([*overrides(demonstrations, *learning), f"run.dir={run}"]) == 0
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[-1] < 0.8 * losses[0]

    config = compose(["experiment=smoke"])
    trained = assemble(compose(overrides(demonstrations))).trained
    assert isinstance(trained, Policy)
    base = Policy.load(config.model, config.adapter, config.reference, load_tokenizer(config.model), config.seed)
    reference = ReferenceConfig(name=ReferenceKind.adapter, path=str(run))
    policy = Policy.load(config.model, AdapterConfig(), reference, load_tokenizer(config.model), config.seed)
    with torch.no_grad():  # move the policy away from its reference
        for weight in policy.trainable().values():
            weight += 0.2 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(3))
    prompts, completions = random_batch(policy)
    scored = policy.log_probs(Role.reference, prompts, completions)
    from peft import PeftModel

    loaded = PeftModel.from_pretrained(base.backbone.peft.unload(), run / "adapter").eval()
    for row in range(len(prompts)):
        prompt = prompts.input_ids[row][prompts.attention_mask[row].bool()]
        completion = completions.tokens[row][completions.mask[row]]
        with torch.no_grad():
            logits = loaded(input_ids=torch.cat([prompt, completion])[None]).logits[0, len(prompt) - 1 : -1]
        expected = logits.log_softmax(-1).gather(1, completion[:, None])[:, 0]
        torch.testing.assert_close(scored[row, : len(completion)], expected, rtol=1e-4, atol=1e-4)
    # In sampling too: a mixture of β = 1 is the SFT policy, token for token.
    sampling = Sampling(max_new_tokens=6, stop_ids=policy.stop_ids, pad_id=policy.tokenizer.pad_token_id)
    generator = step_generator(policy.device, 0, 0)
    (drawn,) = sample_streams(policy, prompts, [Role.reference], sampling, generator)
    sft = Policy.load(config.model, AdapterConfig(), reference, load_tokenizer(config.model), config.seed)
    (same,) = sample_streams(sft, prompts, [Role.policy], sampling, step_generator(policy.device, 0, 0))
    assert torch.equal(drawn.tokens, same.tokens)
    (other,) = sample_streams(policy, prompts, [Role.policy], sampling, step_generator(policy.device, 0, 0))
    assert not torch.equal(drawn.tokens, other.tokens)

    following = ["experiment=smoke", "reference=adapter", f"reference.path={run}", f"run.dir={tmp_path / 'nash'}"]
    assert cli.main(following) == 0
    first = json.loads((tmp_path / "nash" / "metrics.jsonl").read_text().splitlines()[0])
    assert first["kl"] == pytest.approx(0.0, abs=1e-4)  # the policy starts as its reference


def test_an_adapter_of_another_base_is_refused(
    demonstrations: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "sft"
    assert cli.main([*overrides(demonstrations), f"run.dir={run}"]) == 0
    given = ["experiment=smoke", "reference=adapter", f"reference.path={run}", "seed=1", f"run.dir={tmp_path / 'n'}"]
    assert cli.main(given) == 2  # a random base of another seed fits in shape only
    assert "trained on another base" in capsys.readouterr().err
