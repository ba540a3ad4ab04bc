from typing import Any

import pytest

from alignrun.data.rendering import encode_prompt
from alignrun.errors import InputError
from alignrun.types import Example, Message

USER: Message = {"role": "user", "content": "Hello?"}
SYSTEM: Message = {"role": "system", "content": "Be brief."}


def turns(*messages: Message) -> Example:
    return Example(messages, "p.jsonl:7")


PLAIN = Example("Hello?", "p.jsonl:7")


@pytest.mark.parametrize("example", [PLAIN, turns(USER)])
def test_text_becomes_one_user_turn_that_the_assistant_answers(chat_tokenizer: Any, example: Example) -> None:
    ids = encode_prompt(chat_tokenizer, example, None)
    assert type(ids) is list
    assert chat_tokenizer.decode(ids) == "<s><|im_start|>user\nHello?<|im_end|>\n<|im_start|>assistant\n"


def test_one_bos_though_template_and_tokenizer_both_write_it(chat_tokenizer: Any) -> None:
    assert chat_tokenizer("Hello?")["input_ids"][0] == chat_tokenizer.bos_token_id
    assert encode_prompt(chat_tokenizer, PLAIN, None).count(chat_tokenizer.bos_token_id) == 1


@pytest.mark.parametrize("example", [PLAIN, turns(USER)])
def test_system_prompt_comes_first(chat_tokenizer: Any, example: Example) -> None:
    text = chat_tokenizer.decode(encode_prompt(chat_tokenizer, example, "Be kind."))
    assert text.startswith("<s><|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHello?")


def test_a_system_turn_in_the_data_wins(chat_tokenizer: Any) -> None:
    text = chat_tokenizer.decode(encode_prompt(chat_tokenizer, turns(SYSTEM, USER), "Be kind."))
    assert text.startswith("<s><|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n")
    assert "Be kind." not in text


def test_the_example_is_left_alone(chat_tokenizer: Any) -> None:
    example = turns(USER)
    encode_prompt(chat_tokenizer, example, "Be kind.")
    assert example.prompt == (USER,)


def test_a_template_that_refuses_names_the_row(chat_tokenizer: Any) -> None:
    template = (
        "{{ raise_exception('no system\n role') if messages[0]['role'] == 'system' }}ok {{ messages[0]['content'] }}"
    )
    chat_tokenizer.chat_template = template
    assert chat_tokenizer.decode(encode_prompt(chat_tokenizer, PLAIN, None)) == "ok Hello?"
    with pytest.raises(InputError, match=r"p\.jsonl:7: .* system, user \(no system role\).*chat_template") as caught:
        encode_prompt(chat_tokenizer, PLAIN, "Be kind.")
    assert "\n" not in str(caught.value)


def test_a_template_that_is_not_jinja(chat_tokenizer: Any) -> None:
    chat_tokenizer.chat_template = "{% for %}"
    with pytest.raises(InputError, match=r"p\.jsonl:7"):
        encode_prompt(chat_tokenizer, PLAIN, None)


def test_a_template_that_writes_nothing(chat_tokenizer: Any) -> None:
    chat_tokenizer.chat_template = "{% if false %}{% endif %}"
    with pytest.raises(InputError, match=r"p\.jsonl:7: the prompt has no tokens"):
        encode_prompt(chat_tokenizer, PLAIN, None)


def test_without_a_template_text_stands_as_it_is(plain_tokenizer: Any) -> None:
    assert plain_tokenizer.decode(encode_prompt(plain_tokenizer, PLAIN, None)) == "<s>Hello?"


def test_a_closing_eos_is_dropped(closing_tokenizer: Any) -> None:
    assert closing_tokenizer("Hello?")["input_ids"][-1] == closing_tokenizer.eos_token_id
    assert closing_tokenizer.decode(encode_prompt(closing_tokenizer, PLAIN, None)) == "<s>Hello?"


def test_a_conversation_needs_a_template(plain_tokenizer: Any) -> None:
    with pytest.raises(InputError, match=r"p\.jsonl:7: .*model\.chat_template"):
        encode_prompt(plain_tokenizer, turns(USER), None)


def test_a_system_prompt_needs_a_template(plain_tokenizer: Any) -> None:
    with pytest.raises(InputError, match=r"model\.system_prompt needs a chat template"):
        encode_prompt(plain_tokenizer, PLAIN, "Be kind.")
