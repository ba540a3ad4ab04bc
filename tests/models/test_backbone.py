"""The base that roles share: what identifies it, what is off in it, and which adapters it refuses."""

import json
from pathlib import Path

import pytest
import torch
from helpers import load_policy

from alignrun import cli
from alignrun.config import AdapterConfig
from alignrun.errors import InputError
from alignrun.launch.compose import compose
from alignrun.models.backbone import Backbone
from alignrun.models.sources import load_tokenizer


def load(*overrides: str) -> Backbone:
    config = compose(["experiment=smoke", *overrides])
    return Backbone.load(config.model, config.adapter, load_tokenizer(config.model), config.seed)


def test_the_fingerprint_is_of_the_base_alone() -> None:
    plain = load().fingerprint
    assert plain == load().fingerprint
    moved, _ = load_policy()  # an adapter with random weights on it
    assert moved.backbone.fingerprint == plain
    assert load("seed=1").fingerprint != plain
    changed = load()
    with torch.no_grad():
        changed.model.lm_head.weight[3, 4] += 0.1
    assert changed.fingerprint != plain
    swapped = load()
    with torch.no_grad():
        weight = swapped.model.lm_head.weight
        weight[[1, 2]] = weight[[2, 1]]
    assert swapped.fingerprint != plain


def test_the_fingerprint_is_equal_in_bfloat16_and_unknown_in_float16() -> None:
    single = load()
    with torch.no_grad():  # as of a model that is published in bfloat16
        for weight in single.model.parameters():
            weight.copy_(weight.bfloat16().float())
    half = load()
    half.model.load_state_dict(single.model.state_dict())
    assert single.fingerprint == Backbone(half.model.bfloat16(), half.tokenizer, half.config).fingerprint
    assert load("model.dtype=float16").fingerprint == ""


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's list of mapped files")
def test_a_loaded_model_does_not_hold_its_file_in_memory(tmp_path: Path) -> None:
    base = load()
    base.model.save_pretrained(tmp_path)
    base.tokenizer.save_pretrained(tmp_path)
    loaded = load("model=path", f"model.path={tmp_path}", "model.dtype=float32")
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()
    for name, weight in base.model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], weight)


def test_dropout_is_off_in_every_module() -> None:
    given = ["+model.architecture.attention_dropout=0.5", "model.gradient_checkpointing=true"]
    backbone = load(*given)
    backbone.add("policy", AdapterConfig())
    assert backbone.model.training
    ids = torch.arange(1, 9)[None]
    with torch.no_grad():
        first, second = (backbone.model(input_ids=ids).logits for _ in range(2))
    assert torch.equal(first, second)


def test_a_quantised_base_has_no_fingerprint() -> None:
    backbone = load()
    backbone.model.is_quantized = True
    assert backbone.fingerprint == ""


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"use_dora": True}, "is not a plain LoRA adapter"),
        ({"trainable_token_indices": [1, 2]}, "is not a plain LoRA adapter"),
        ({"modules_to_save": ["lm_head"]}, "is not a plain LoRA adapter"),
        ({"target_modules": ["embed_tokens", "q_proj"]}, r"adapts model\.embed_tokens \(Embedding\)"),
    ],
)
def test_adapters_that_are_more_than_linear_layers_are_refused(
    changes: dict[str, object], expected: str, tmp_path: Path
) -> None:
    policy, _ = load_policy()
    policy.save_adapter(tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(InputError, match=expected):
        load().read("reference", tmp_path / "adapter", trainable=False, key="reference.path")


def test_sampling_stops_at_what_the_chat_template_writes(tmp_path: Path) -> None:
    """A base model's EOS is often not the mark that its chat template ends a turn with."""
    from alignrun.launch.build import load_trained
    from alignrun.models.policy import Policy

    template = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_start|>{% endfor %}"
    config = compose(["experiment=smoke", f'model.chat_template="{template}"'])
    policy = load_trained(config, load_tokenizer(config.model))
    assert isinstance(policy, Policy)
    mark = policy.tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert policy.stop_ids == sorted([mark, policy.tokenizer.eos_token_id])
    policy.save_merged(tmp_path / "merged")
    assert mark in json.loads((tmp_path / "merged" / "generation_config.json").read_text())["eos_token_id"]


def test_a_wrong_preference_path_is_refused_before_anything_is_loaded(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    given = ["experiment=smoke", "preference=learned", f"preference.path={tmp_path}", f"run.dir={tmp_path / 'run'}"]
    assert cli.main(given) == 2
    captured = capsys.readouterr()
    assert "model:" not in captured.out
    assert "name a finished run of algo=preference_model" in captured.err
