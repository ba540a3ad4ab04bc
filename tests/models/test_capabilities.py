"""What a model can do is measured when it is loaded, and said in one line where it is not enough."""

from pathlib import Path

import pytest
import torch
from helpers import load_policy
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from alignrun.config import ModelConfig
from alignrun.errors import InputError
from alignrun.launch.compose import compose
from alignrun.models import capabilities
from alignrun.models.backbone import Backbone
from alignrun.models.capabilities import check_passes, differences, relative_error
from alignrun.models.loading_errors import remedy
from alignrun.models.policy import Policy
from alignrun.models.sources import load_model, load_tokenizer
from alignrun.models.tiny import byte_tokenizer
from alignrun.types import Role

SMALL = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "pad_token_id": 0}
MIXTRAL = SMALL | {
    "intermediate_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4,
    "num_experts_per_tok": 2, "initializer_range": 0.2,
}  # fmt: skip
RWKV = SMALL | {"attention_hidden_size": 32, "intermediate_size": 48, "context_length": 64}


def tiny(family: str, **sizes: object) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes)).eval()


def smoke(*overrides: str) -> PreTrainedModel:
    """The bare base of the smoke preset."""
    config = compose(["experiment=smoke", *overrides])
    return Backbone.load(config.model, config.adapter, load_tokenizer(config.model), config.seed).model


def save(model: PreTrainedModel, folder: Path) -> str:
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return str(folder)


def test_a_state_that_takes_padding_for_text_is_refused() -> None:
    with pytest.raises(InputError, match="rwkv models cannot be trained here: padding on the left changes"):
        check_passes(tiny("rwkv", **RWKV))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_pass_that_differs_is_found(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of the three passes is broken alone; the others stay as they are."""
    model = smoke(f"model.dtype={str(dtype).removeprefix('torch.')}")
    limit = capabilities.tolerance(model)
    assert max(error for error, _ in differences(model)) < limit / 3

    def wrong(*_: object, **__: object) -> tuple[None, None]:
        return None, None  # padding is read as text

    monkeypatch.setattr("alignrun.models.hidden.masked", wrong)
    assert [error > limit for error, _ in differences(model)] == [True, True, False]
    monkeypatch.undo()
    monkeypatch.setattr("alignrun.models.decoding.decoder.masked", wrong)
    assert [error > limit for error, _ in differences(model)] == [False, False, True]


def test_a_pass_that_fails_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise AttributeError("no such layer")

    monkeypatch.setattr("alignrun.models.decoding.decoder.select_rows", missing)
    monkeypatch.setattr(capabilities, "_checked", set())
    with pytest.raises(InputError, match=r"decoding with a cache gives .* \(no such layer\): choose another model"):
        check_passes(smoke())


def test_a_configuration_is_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = smoke()

    def again(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(capabilities, "differences", again)
    check_passes(model)


def test_one_token_with_another_expert_does_not_count_where_products_are_rounded() -> None:
    expected = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
    found = expected.clone()
    found[0, 1] += 1
    assert relative_error(found, expected) > 0.5
    assert relative_error(found, expected, worst=False) == 0
    assert relative_error(found + 1, expected, worst=False) > 0.5


def test_a_model_with_experts_gets_its_adapter_on_attention(tmp_path: Path) -> None:
    folder = save(tiny("mixtral", **MIXTRAL), tmp_path / "base")
    policy, _ = load_policy("model=path", f"model.path={folder}")
    names = {name.split(".lora_")[0].split(".")[-1] for name in policy.trainable()}
    assert names == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert policy.backbone.notes == ["adapter: without 2 blocks of experts with their routers, which stay as they are"]
    policy.save_adapter(tmp_path / "adapter")
    again = compose(["experiment=smoke", "model=path", f"model.path={folder}", "reference=adapter",
                     f"reference.path={tmp_path / 'adapter'}"])  # fmt: skip
    read = Policy.load(again.model, again.adapter, again.reference, policy.tokenizer, 0)
    assert read.fingerprint(Role.policy) == policy.fingerprint(Role.policy)


@pytest.mark.parametrize(
    ("targets", "unfit"),
    [("gate", "MixtralTopKRouter"), ("w1,w2,w3", "MixtralExperts"), ("q_proj,w1", "Cannot convert")],
)
def test_a_named_layer_that_cannot_be_adapted_is_a_line(targets: str, unfit: str, tmp_path: Path) -> None:
    folder = save(tiny("mixtral", **MIXTRAL), tmp_path)
    with pytest.raises(InputError, match=rf"{unfit}.*or some of k_proj, o_proj, q_proj, v_proj$"):
        load_policy("model=path", f"model.path={folder}", f"adapter.target_modules=[{targets}]")


def test_a_layer_that_gets_all_rows_in_one_list_is_found_at_load(tmp_path: Path) -> None:
    sizes = MIXTRAL | {"num_experts": 4, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}
    folder = save(tiny("qwen2_moe", **sizes), tmp_path)
    with pytest.raises(InputError, match=r"name attention layers only in adapter\.target_modules"):
        load_policy("model=path", f"model.path={folder}", "adapter.target_modules=[shared_expert_gate]")


def test_an_attention_kernel_that_a_family_lacks_is_named(tmp_path: Path) -> None:
    sizes = MIXTRAL | {"head_dim": 8}
    folder = save(tiny("gemma2", **sizes), tmp_path)
    config = compose(["experiment=smoke", "model=path", f"model.path={folder}"]).model
    with pytest.raises(InputError, match=r"set model\.attention=eager$"):
        load_model(config, load_tokenizer(config), torch.float32)


@pytest.mark.parametrize("place", ["adapter", "."])
def test_an_adapter_is_no_model(place: str, tmp_path: Path) -> None:
    policy, _ = load_policy()
    policy.save_adapter(tmp_path / place)
    config = compose(["experiment=smoke", "model=path", f"model.path={tmp_path}"]).model
    with pytest.raises(InputError, match=rf"reference=adapter reference.path={tmp_path} model=path model.path="):
        load_tokenizer(config)


@pytest.mark.parametrize(
    ("error", "path", "expected"),
    [
        (OSError("403 Client Error: gated repo"), "some/name", "hf auth login"),
        (ValueError("The repository contains custom code; pass trust_remote_code=True"), "some/name", "trust_remote"),
        (ValueError("Checkpoint has model type `new` that is not recognized"), "some/name", "update transformers"),
        (ImportError("requires the protobuf library", name="absent_package"), "some/name", "pip install"),
        (ValueError("flash attention is missing"), "some/name", "model.attention=eager"),
        (ValueError("a size does not fit"), "some/name", "check its files"),
        (OSError("no file named config.json"), ".", "no config.json"),
    ],
)
def test_the_remedy_is_that_of_the_cause(error: Exception, path: str, expected: str) -> None:
    line = remedy(error, ModelConfig(name="path", path=path))
    assert expected in line
    assert ("log in" in line) == ("hf auth" in expected)
