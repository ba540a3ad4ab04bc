"""The chat template that a configuration asks for: from a file, and with values of its variables."""

import json
from pathlib import Path
from typing import Any

import pytest
from helpers import refused_smoke
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from alignrun.config import ModelConfig, ModelSource
from alignrun.data.rendering import Renderer
from alignrun.errors import InputError
from alignrun.launch import compose
from alignrun.launch.pins import tokenizer_digest
from alignrun.models.chat_templates import configure, jinja_literal
from alignrun.models.sources import load_tokenizer, preview_prompt
from alignrun.models.tiny import byte_tokenizer
from alignrun.types import Example

THINKING = (
    "\n{%- macro opening() %}<think>{% if not enable_thinking %}\n\n</think>{% endif %}{% endmacro %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{{ opening() }}{{ extra | default('') }}{% endif %}"
)
TURNS = [{"role": "user", "content": "Hello?"}]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-10, 10**12) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda parts: st.lists(parts, max_size=3) | st.dictionaries(st.text(), parts, max_size=3),
    max_leaves=6,
)


def tokenizer_with(template: str | dict[str, str] | None = THINKING, **kwargs: Any) -> Any:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    configure(tokenizer, ModelConfig(name="x", chat_template_kwargs=kwargs))
    return tokenizer


def asked(tokenizer: Any, **given: Any) -> str:
    return str(tokenizer.apply_chat_template(TURNS, tokenize=False, add_generation_prompt=True, **given))


@given(VALUES)
def test_a_variable_has_the_value_that_a_caller_would_give(value: Any) -> None:
    bare, fixed = (
        tokenizer_with("\n{{ extra | tojson }}|{{ extra is none }}"),
        "\n{{ extra | tojson }}|{{ extra is none }}",
    )
    assert asked(tokenizer_with(fixed, extra=value)) == asked(bare, extra=value)


@pytest.mark.parametrize("thinking", [True, False])
def test_every_rendering_has_it_and_a_caller_may_give_another(thinking: bool) -> None:
    bare, fixed = tokenizer_with(), tokenizer_with(enable_thinking=thinking)
    assert asked(fixed) == asked(bare, enable_thinking=thinking)
    assert asked(fixed, enable_thinking=not thinking) == asked(bare, enable_thinking=not thinking)
    prompt, _ = Renderer(fixed).encode(Example("Hello?", "p:1"))
    assert fixed.decode(prompt) == asked(bare, enable_thinking=thinking)
    assert tokenizer_digest(fixed) != tokenizer_digest(bare)


def test_each_of_several_templates_has_it() -> None:
    tokenizer = tokenizer_with({"default": THINKING, "other": "{{ extra }}"}, extra="!")
    assert asked(tokenizer).endswith("</think>!")
    assert asked(tokenizer, chat_template="other") == "!"


def test_a_saved_tokenizer_has_it(tmp_path: Path) -> None:
    fixed = tokenizer_with(enable_thinking=True, extra='"quoted" {{ }} %}')
    fixed.save_pretrained(tmp_path)
    assert asked(AutoTokenizer.from_pretrained(tmp_path)) == asked(fixed)


def test_values_that_jinja_spells_otherwise() -> None:
    assert jinja_literal({"a": [None, True, 1.5, 'ü"\n']}) == '{"a": [none, true, 1.5, "ü\\"\\n"]}'


def test_a_variable_that_nothing_reads_is_refused() -> None:
    with pytest.raises(InputError, match=r"chat_template_kwargs\.enable_thinkin is read nowhere"):
        tokenizer_with(enable_thinkin=False)
    with pytest.raises(InputError, match="the tokenizer has none"):
        tokenizer_with(None, enable_thinking=False)
    for name in ("messages", "tools", "bos_token", "not a name", "add_generation_prompt"):
        with pytest.raises(InputError, match=f"cannot set {name}"):
            ModelConfig(name="x", chat_template_kwargs={name: 1})


def test_a_template_in_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "chat.jinja"
    file.write_text(THINKING)
    given = ["experiment=smoke", f"model.chat_template={file}", "model.chat_template_kwargs={enable_thinking: true}"]
    config = compose.compose(given)
    assert (config.model.chat_template, config.model.source) == (THINKING, ModelSource.random)
    file.unlink()  # the configuration holds the text, so that a run can go on without the file
    (tmp_path / "config.yaml").write_text(compose.dump(config))
    assert compose.load(tmp_path / "config.yaml") == config
    tokenizer = load_tokenizer(config.model)
    asked_for = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>"
    assert tokenizer.decode(Renderer(tokenizer).encode(Example("Hi", "p:1"))[0]) == asked_for
    assert preview_prompt(config.model, "Hi") == asked_for
    typed = ["experiment=smoke", given[1], "model.chat_template_kwargs.enable_thinking=true"]
    file.write_text(THINKING)
    assert compose.compose(typed).model.chat_template_kwargs == {"enable_thinking": True}
    members = f"preference.members={{a: {{name: skywork_v2, chat_template: {file}}}, b: {{name: letters}}}}"
    panel = compose.compose(["experiment=smoke", "preference=panel", members]).preference
    assert panel.members["a"].chat_template == THINKING
    file.unlink()
    with pytest.raises(InputError, match=r"preference\.members\.a\.chat_template=.* is neither a Jinja template nor"):
        compose.compose(["experiment=smoke", "preference=panel", members])
    assert "neither a Jinja template nor a file" in refused_smoke(capsys, tmp_path, f"model.chat_template={file}")
    assert "neither a Jinja template nor a file" in refused_smoke(capsys, tmp_path, f"model.chat_template={'x' * 5000}")
    for content, part in (
        (b"\xff{{", "not UTF-8"),
        (b"no template", "no Jinja template"),
        (b"{" * 2_000_000, "larger"),
    ):
        file.write_bytes(content)
        assert part in refused_smoke(capsys, tmp_path, f"model.chat_template={file}")
    file.write_text("{% for %}")
    assert "the chat template refuses" in refused_smoke(capsys, tmp_path, f"model.chat_template={file}")


def test_a_stored_configuration_reads_no_file(tmp_path: Path) -> None:
    """What somebody else's run says is a template, whatever files are here."""
    secret = tmp_path / "secret"
    secret.write_text("{{ password }}")
    stored = compose.plain(compose.compose(["experiment=smoke"]))
    stored["model"]["chat_template"] = str(secret)
    (tmp_path / "config.yaml").write_text(json.dumps(stored))
    assert compose.load(tmp_path / "config.yaml", ["train.steps=3"]).model.chat_template == str(secret)
