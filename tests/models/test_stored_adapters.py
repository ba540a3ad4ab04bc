"""Which adapters of others are read: what PEFT computes with them is the truth, and what is not computed is refused."""

import copy
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import random_batch
from peft import EvaConfig, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from alignrun.config import AdapterConfig, Config
from alignrun.errors import InputError
from alignrun.launch.compose import compose
from alignrun.models.adapter_fields import _COMPUTED, _IRRELEVANT, _VALUES, check_adapter
from alignrun.models.backbone import Backbone
from alignrun.models.policy import Policy
from alignrun.models.sources import load_tokenizer
from alignrun.types import Role


def smoke(*overrides: str) -> Config:
    return compose(["experiment=smoke", "model.dtype=float32", *overrides])


@pytest.fixture(scope="module")
def base() -> PreTrainedModel:
    config = smoke()
    return Backbone.load(config.model, config.adapter, load_tokenizer(config.model), config.seed).model


def store(base: PreTrainedModel, folder: Path, **fields: Any) -> PreTrainedModel:
    """Save a random adapter of PEFT's, and read it back as PEFT does."""
    given: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
    peft = get_peft_model(copy.deepcopy(base), LoraConfig(**given | fields))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in peft.named_parameters():
            if ".lora_" in name:
                weight += 0.2 * torch.randn(weight.shape, generator=generator)
    peft.save_pretrained(folder)
    return PeftModel.from_pretrained(copy.deepcopy(base), folder).eval()


@pytest.fixture(scope="module")
def stored(base: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stored")
    store(base, folder)
    return folder


def load(folder: Path) -> Policy:
    config = smoke("reference=adapter", f"reference.path={folder}")
    tokenizer = load_tokenizer(config.model)
    return Policy.load(config.model, AdapterConfig(), config.reference, tokenizer, config.seed)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.v_proj": 3}},
        {"layers_to_transform": [1], "layers_pattern": "layers"},
        {"target_modules": r".*\.layers\.1\..*(up|down)_proj"},
        {"target_modules": "all-linear", "exclude_modules": ["down_proj"]},
        {"lora_dropout": 0.5, "init_lora_weights": "gaussian"},
        {"init_lora_weights": False, "task_type": None},
        {"init_lora_weights": "orthogonal"},
        {"init_lora_weights": "eva", "eva_config": EvaConfig()},
    ],
    ids=str,
)
@torch.no_grad()
def test_what_is_accepted_is_computed_as_peft_does(
    base: PreTrainedModel, fields: dict[str, Any], tmp_path: Path
) -> None:
    theirs, policy = store(base, tmp_path, **fields), load(tmp_path)
    prompts, completions = random_batch(policy)
    for row in range(len(prompts)):
        prompt = prompts.input_ids[row][prompts.attention_mask[row].bool()]
        tokens = completions.tokens[row][completions.mask[row]]
        logits = theirs(input_ids=torch.cat([prompt, tokens])[None]).logits[0, len(prompt) - 1 : -1]
        expected = logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0]
        for role in (Role.policy, Role.reference):
            found = policy.log_probs(role, prompts, completions)[row][completions.mask[row]]
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    with theirs.disable_adapter():
        plain = theirs(input_ids=prompts.input_ids).logits
    torch.testing.assert_close(base(input_ids=prompts.input_ids).logits, plain, msg="the base stays what it was")


@pytest.mark.parametrize(
    "changes",
    [
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "pissa_niter_4"},
        {"init_lora_weights": "olora"},
        {"init_lora_weights": "loftq"},
        {"init_lora_weights": "corda"},
        {"init_lora_weights": "mica"},
        {"alora_invocation_tokens": [1, 2]},
        {"use_dora": True},
        {"bias": "all"},
        {"lora_bias": True},
        {"modules_to_save": ["lm_head"]},
        {"target_parameters": ["q_proj.weight"]},
        {"layer_replication": [[0, 1], [0, 1]]},
        {"use_qalora": True},
        {"trainable_token_indices": [1]},
        {"task_type": "SEQ_CLS"},
        {"peft_type": "IA3"},
        {"of_a_later_peft": "spectral"},
    ],
    ids=str,
)
def test_what_is_not_computed_is_refused_by_name(stored: Path, changes: dict[str, Any], tmp_path: Path) -> None:
    shutil.copytree(stored, tmp_path, dirs_exist_ok=True)
    check_adapter(tmp_path, "reference.path")
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(InputError, match=rf"its {next(iter(changes))} is .*merge it .* model=path") as refused:
        check_adapter(tmp_path, "reference.path")
    assert "\n" not in str(refused.value)


def test_an_adapter_that_changes_its_base_is_refused_as_peft_writes_it(base: PreTrainedModel, tmp_path: Path) -> None:
    store(base, tmp_path, init_lora_weights="pissa")
    with pytest.raises(InputError, match="its init_lora_weights is pissa"):
        load(tmp_path)


def test_every_field_of_peft_is_known_or_empty_by_default() -> None:
    fields = LoraConfig(task_type="CAUSAL_LM").to_dict()
    for field in fields.keys() - _COMPUTED - _IRRELEVANT:
        assert fields[field] in _VALUES[field] if field in _VALUES else not fields[field], field


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda weight: weight.mul(100).to(torch.int64), "holds torch.int64 and not real numbers"),
        (lambda weight: weight > 0, "holds torch.bool and not real numbers"),
        (lambda weight: weight * float("nan"), "is not finite"),
        (lambda weight: weight.fill_diagonal_(float("inf")), "is not finite"),
    ],
    ids=["int64", "bool", "nan", "inf"],
)
@pytest.mark.parametrize("key", ["reference.path", "algo.opponent"])
def test_weights_that_are_no_finite_real_numbers_are_refused(
    stored: Path, change: Callable[[torch.Tensor], torch.Tensor], expected: str, key: str, tmp_path: Path
) -> None:
    shutil.copytree(stored, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "adapter_model.safetensors"
    weights = load_file(file)
    name = max(weights)
    save_file(weights | {name: change(weights[name])}, file)
    opponent = str(tmp_path) if key == "algo.opponent" else None
    config = smoke(*(["reference=adapter", f"reference.path={tmp_path}"] if opponent is None else []))
    with pytest.raises(InputError, match=rf"^{key}: .*{re.escape(name)} {expected}: name another run or adapter"):
        Policy.load(
            config.model,
            AdapterConfig(),
            config.reference,
            load_tokenizer(config.model),
            config.seed,
            opponent=opponent,
        )


@pytest.mark.parametrize("bad", ["nan", "int64"])
def test_a_base_of_such_weights_is_refused(base: PreTrainedModel, bad: str, tmp_path: Path) -> None:
    base.save_pretrained(tmp_path)
    load_tokenizer(smoke().model).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    name = next(name for name in weights if "q_proj" in name)
    changed = weights[name] * float("nan") if bad == "nan" else weights[name].mul(100).to(torch.int64)
    save_file(weights | {name: changed}, file, {"format": "pt"})
    config = smoke("model=path", f"model.path={tmp_path}", "model.chat_template=null")
    expected = "is not finite" if bad == "nan" else "holds I64 and not real numbers"
    with pytest.raises(InputError, match=rf"{re.escape(name)} {expected}"):
        Backbone.load(config.model, config.adapter, load_tokenizer(config.model), config.seed)


@pytest.mark.parametrize(
    ("lost", "added", "expected"),
    [
        ("layers.0.self_attn.q_proj", "", "weights are stored"),
        ("", "base_model.model.lm_head.weight", "holds whole weights"),
        ("", "base_model.model.model.embed_tokens.lora_embedding_A", "adapts embeddings"),
        ("", "base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight", "weights are stored"),
    ],
)
def test_an_adapter_is_all_that_its_file_holds(
    stored: Path, lost: str, added: str, expected: str, tmp_path: Path
) -> None:
    shutil.copytree(stored, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "adapter_model.safetensors"
    weights = {name: weight for name, weight in load_file(file).items() if not lost or lost not in name}
    save_file(weights | ({added: torch.ones(4, 4)} if added else {}), file)
    with pytest.raises(InputError, match=expected):
        load(tmp_path)
