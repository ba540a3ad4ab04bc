"""What is written for other tools: the model that was trained, its prompts, and the distribution to sample."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel

from alignrun.data.rendering import encode_prompt
from alignrun.errors import InputError, RunError
from alignrun.launch.build import assemble, load_trained
from alignrun.launch.compose import compose
from alignrun.models.policy import Policy
from alignrun.models.saving import prompting_tokenizer
from alignrun.models.sources import load_tokenizer
from alignrun.models.tiny import CHATML, byte_tokenizer
from alignrun.types import Completions, Example, Message, PromptBatch, Role

DEFAULT_SYSTEM = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are the model of somebody else<|im_end|>\\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TEMPLATES = {
    "plain": CHATML,
    "default system": DEFAULT_SYSTEM,
    "blank start": "\n\n  {% set first = messages[0] %}\n{{ first.content }}|" + CHATML,
    "indented block": "  {%- for m in messages %}\n  {{- m.role }}: {{ m.content }}\n{% endfor %}\n",
    "macro": "{% macro say(m) %}{{ messages | length }}/{{ m.role }}={{ m.content }};{% endmacro %}"
    "{% for m in messages %}{{ say(m) }}{% endfor %}",
}
SYSTEM_PROMPTS = [
    None,
    "",
    "Be kind.",
    "\"double\" 'single' \\ {{ 7 * 7 }} {% if x %} {# c #} {%\r\n\ttab \x07 é 日本 😀 \u2028 end %} }}",
]
CONVERSATIONS: list[tuple[Message, ...]] = [
    ({"role": "user", "content": "Hello?"},),
    ({"role": "system", "content": "Mine."}, {"role": "user", "content": "Hello?"}),
    (
        {"role": "user", "content": "One"},
        {"role": "assistant", "content": "Two"},
        {"role": "system", "content": "Late."},
        {"role": "user", "content": "Three"},
    ),
    (
        {"role": "user", "content": "One"},
        {"role": "assistant", "content": "Two"},
        {"role": "user", "content": "Three"},
    ),
]


@pytest.mark.parametrize("system_prompt", SYSTEM_PROMPTS, ids=["null", "empty", "text", "odd"])
@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_the_saved_tokenizer_writes_the_prompts_of_training(
    template: str, system_prompt: str | None, tmp_path: Path
) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    prompting_tokenizer(tokenizer, system_prompt).save_pretrained(tmp_path)
    assert tokenizer.chat_template == template, "the run's own tokenizer stays as it is"
    saved = AutoTokenizer.from_pretrained(tmp_path)
    again = prompting_tokenizer(saved, "Another one.")
    for turns in CONVERSATIONS:
        trained = encode_prompt(tokenizer, Example(turns, "p:1"), system_prompt)
        assert saved.apply_chat_template(list(turns), add_generation_prompt=True, return_dict=False) == trained
        other = encode_prompt(tokenizer, Example(turns, "p:1"), "Another one.")
        assert again.apply_chat_template(list(turns), add_generation_prompt=True, return_dict=False) == other


def test_each_of_several_templates_gets_the_system_turn(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = {"default": CHATML, "tool_use": "with tools: " + CHATML}
    prompting_tokenizer(tokenizer, "Be kind.").save_pretrained(tmp_path)
    saved = AutoTokenizer.from_pretrained(tmp_path)
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    for tools in (None, [tool]):
        text = saved.apply_chat_template([{"role": "user", "content": "Hi"}], tools=tools, tokenize=False)
        assert "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi" in text
        assert text.startswith("with tools: ") == bool(tools)


def test_a_tokenizer_without_template_stays_without() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    assert prompting_tokenizer(tokenizer, None) is tokenizer
    assert prompting_tokenizer(tokenizer, "text").chat_template is None


LLAMA = {"intermediate_size": 48, "num_key_value_heads": 2}
SIZES: dict[str, dict[str, int]] = {
    "llama": LLAMA,
    "gemma2": LLAMA | {"head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8},
    "gpt2": {},
}


def save_base(folder: Path, family: str = "llama", *, tied: bool = False, dtype: torch.dtype = torch.float32) -> None:
    """A random model of a published architecture with the byte tokenizer."""
    tokenizer = byte_tokenizer()
    config = AutoConfig.for_model(
        family,
        **SIZES[family],
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        initializer_range=0.2,
        tie_word_embeddings=tied,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def load_moved(folder: Path, *overrides: str) -> Policy:
    """A policy on the base in a folder, whose adapter is no longer zero."""
    # Explicit, since `auto` is bfloat16 on some CPUs, and the exports are compared with what float32 gives.
    model = ["model=path", f"model.path={folder}", "model.attention=eager", "model.dtype=float32"]
    given = ["experiment=smoke", *model, *overrides]
    policy = load_trained(config := compose(given), load_tokenizer(config.model))
    assert isinstance(policy, Policy)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for weight in policy.trainable().values():
            weight += 0.1 * torch.randn(weight.shape, generator=generator)
    return policy


IDS = torch.randint(0, 200, (2, 9), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def log_probs(model: Any) -> torch.Tensor:
    """[2, 9, V] in float32 arithmetic, so that only the weights differ."""
    return model.float()(input_ids=IDS).logits.log_softmax(-1)


@pytest.mark.parametrize(
    ("family", "tied", "targets", "dtype"),
    [
        ("llama", False, "all-linear", "float32"),
        ("llama", True, "all-linear", "float32"),
        ("gemma2", True, "all-linear", "float32"),
        ("gpt2", True, "all-linear", "float32"),
        ("llama", True, "all-linear", "bfloat16"),
        ("llama", False, "lm_head,q_proj", "float32"),
        ("llama", True, "lm_head", "float32"),
        ("llama", True, "lm_head,q_proj", "bfloat16"),
        ("gemma2", True, "lm_head,q_proj", "float32"),
        ("gpt2", True, "lm_head,c_attn", "float32"),
    ],
)
@pytest.mark.filterwarnings("ignore:fan_in_fan_out", "ignore:Model with `tie_word_embeddings")
def test_the_merged_model_is_base_and_adapter(
    family: str, tied: bool, targets: str, dtype: str, tmp_path: Path
) -> None:
    save_base(tmp_path / "base", family, tied=tied, dtype=getattr(torch, dtype))
    policy = load_moved(tmp_path / "base", f"model.dtype={dtype}", f"adapter.target_modules=[{targets}]")
    policy.save_adapter(tmp_path / "adapter")
    policy.save_merged(tmp_path / "merged")

    def base() -> PreTrainedModel:
        loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(tmp_path / "base", attn_implementation="eager")
        return loaded

    before, expected = log_probs(base()), log_probs(PeftModel.from_pretrained(base(), tmp_path / "adapter"))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", attn_implementation="eager")
    assert merged.dtype is getattr(torch, dtype)
    error, effect = (float((log_probs(merged) - other).abs().mean()) for other in (expected, before))
    assert effect > 0.02
    assert error < (1e-5 if dtype == "float32" else 0.1 * effect)
    still_tied = merged.get_output_embeddings().weight is merged.get_input_embeddings().weight
    assert still_tied == (tied and targets == "all-linear")
    assert not [key for key in load_file(tmp_path / "adapter" / "adapter_model.safetensors") if "lora_" not in key]


def test_a_weight_that_several_layers_share_is_not_merged(tmp_path: Path) -> None:
    save_base(tmp_path / "base")
    policy = load_moved(tmp_path / "base", "adapter.target_modules=[q_proj]")
    first, second = (layer.self_attn.q_proj.base_layer for layer in policy.model.model.layers)
    second.weight = first.weight
    with pytest.raises(InputError, match=r"layers\.0\.self_attn\.q_proj, whose weight other layers"):
        policy.save_merged(tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize(
    ("kind", "overrides", "temperature"),
    [
        ("adapter", [], 0.7),
        ("merged", [], 0.7),
        ("whole", ["generation.temperature=0.5"], 0.5),
        ("adapter", ["algo=dpo"], 1.0),  # learns from data, at temperature 1 always
        ("merged", ["algo=sft", "preference=none"], 1.0),
    ],
)
def test_an_export_is_sampled_as_it_was_trained(
    kind: str, overrides: list[str], temperature: float, tmp_path: Path
) -> None:
    """The first token that `generate` draws with the defaults of the folder has the policy's log-probabilities at T."""
    save_base(tmp_path / "base")
    (tmp_path / "base" / "generation_config.json").write_text(
        json.dumps({"do_sample": True, "top_k": 5, "top_p": 0.5, "temperature": 0.2, "repetition_penalty": 1.5})
    )
    policy = load_moved(tmp_path / "base", *overrides, *(["adapter=none"] if kind == "whole" else []))
    prompts = PromptBatch(("",), IDS[:1], torch.ones_like(IDS[:1]))
    vocabulary = torch.arange(policy.model.config.vocab_size)[:, None]
    tokens = Completions(vocabulary, torch.ones_like(vocabulary).bool())
    expected = policy.log_probs(Role.policy, prompts, tokens, temperature)[:, 0]
    folder = tmp_path / "out"
    policy.save_merged(folder) if kind == "merged" else policy.save_adapter(folder)
    if kind == "adapter":
        model: Any = AutoPeftModelForCausalLM.from_pretrained(folder)
        model.generation_config = GenerationConfig.from_pretrained(folder)
    else:
        model = AutoModelForCausalLM.from_pretrained(folder)
    drawn = model.generate(
        input_ids=prompts.input_ids, max_new_tokens=1, output_scores=True, return_dict_in_generate=True
    )
    torch.testing.assert_close(drawn.scores[0][0].log_softmax(-1), expected, atol=1e-4, rtol=1e-4)
    settings = json.loads((folder / "generation_config.json").read_text())
    assert (settings["do_sample"], settings["temperature"], settings["top_k"], settings["top_p"]) == (
        True, temperature, 0, 1.0,
    )  # fmt: skip
    card = (folder / "README.md").read_text()
    assert f"divided by T = {temperature:g}," in card
    assert f"sampled at T = {policy.training.evaluation_temperature:g}." in card


@pytest.mark.parametrize("adapter", ["lora", "none"])
def test_a_base_whose_own_settings_cannot_be_saved_is_saved(adapter: str, tmp_path: Path) -> None:
    save_base(tmp_path / "base")
    unsaveable = {"do_sample": False, "temperature": 0.9, "top_p": 0.5, "eos_token_id": 256, "pad_token_id": -1}
    (tmp_path / "base" / "generation_config.json").write_text(json.dumps(unsaveable))
    policy = load_moved(tmp_path / "base", f"adapter={adapter}")
    policy.save_adapter(tmp_path / "adapter")
    policy.save_merged(tmp_path / "merged")
    for folder in ("adapter", "merged"):
        assert json.loads((tmp_path / folder / "generation_config.json").read_text())["temperature"] == 0.7


def test_what_cannot_be_saved_is_refused_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ValueError("no slow\ntokenizer here")

    monkeypatch.setattr(type(byte_tokenizer()), "save_pretrained", refuse)
    with pytest.raises(InputError, match=r"could not be saved \(no slow tokenizer here\): check the tokenizer"):
        assemble(compose(["experiment=smoke"]))


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    for name, save in (("adapter", Policy.save_adapter), ("merged", Policy.save_merged)):
        save_base(tmp_path / "base")
        policy = load_moved(tmp_path / "base")
        with torch.no_grad():
            next(iter(policy.trainable().values()))[0, 0] = float("inf")
        with pytest.raises(RunError, match=r"the weights of .*lora_A.* are not finite"):
            save(policy, tmp_path / name)
        assert not (tmp_path / name).exists()
    whole = load_moved(tmp_path / "base", "adapter=none")
    with torch.no_grad():
        whole.model.lm_head.weight[3, 4] = float("nan")
    with pytest.raises(RunError, match=r"the weights of lm_head\.weight are not finite"):
        whole.save_adapter(tmp_path / "whole")


def test_an_adapter_finds_its_base_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    save_base(tmp_path / "models" / "base")
    monkeypatch.chdir(tmp_path)
    for number, named in enumerate(("./models/base", "models/base")):
        policy = load_moved(Path("unused"), f"model.path={named}")
        folder = tmp_path / f"adapter-{number}"
        (tmp_path / "models").rename(tmp_path / "moved")  # a run does not end in an error for that
        policy.save_adapter(folder)
        (tmp_path / "moved").rename(tmp_path / "models")
        with torch.no_grad():
            expected = policy.model(input_ids=IDS).logits
        with monkeypatch.context() as patch:
            patch.chdir(tmp_path / "elsewhere")
            loaded = AutoPeftModelForCausalLM.from_pretrained(folder)
        with torch.no_grad():
            torch.testing.assert_close(loaded(input_ids=IDS).logits, expected, atol=1e-5, rtol=1e-5)


def test_other_users_can_read_what_was_saved(tmp_path: Path) -> None:
    """An inference server is often another user, and safetensors makes files for their owner alone."""
    save_base(tmp_path / "base")
    policy = load_moved(tmp_path / "base")
    policy.save_adapter(tmp_path / "adapter")
    policy.save_merged(tmp_path / "merged")
    plain = tmp_path / "plain"
    plain.touch()
    for file in [*(tmp_path / "adapter").iterdir(), *(tmp_path / "merged").iterdir()]:
        assert file.stat().st_mode == plain.stat().st_mode, file
