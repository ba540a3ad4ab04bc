from typing import Any

import pytest

from alignrun.data.completions import end_of_turn
from alignrun.data.rendering import Renderer
from alignrun.errors import InputError
from alignrun.models import tiny
from alignrun.types import Example, Message

TURNS: tuple[Message, ...] = ({"role": "system", "content": "Be kind."}, {"role": "user", "content": "Héllo?"})
ZEPHYR = "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }} </s>\n{% endfor %}"


def opened(tokenizer: Any, prompt: str | tuple[Message, ...], answer: str) -> tuple[list[int], list[int]]:
    """Our token ids of prompt and completion, and the template's own of the whole conversation."""
    asked, (answered,) = Renderer(tokenizer).encode(Example(prompt, "x"), [answer])
    ours = asked + answered
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    turns.append({"role": "assistant", "content": answer})
    return ours, tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)


@pytest.mark.parametrize("name", ["chat_tokenizer", "other_eos_tokenizer", "tiny"])
@pytest.mark.parametrize("prompt", ["Hello?", TURNS])
@pytest.mark.parametrize("answer", ["Yes.", " Ça va\n\n\U0001f600 "])
def test_prompt_and_completion_are_the_templates_own_conversation(
    name: str, prompt: Any, answer: str, request: pytest.FixtureRequest
) -> None:
    tokenizer = tiny.byte_tokenizer() if name == "tiny" else request.getfixturevalue(name)
    ours, whole = opened(tokenizer, prompt, answer)
    assert ours == whole[: len(ours)]
    # Nothing but the line break of ChatML follows the end of the turn.
    assert tokenizer.decode(whole[len(ours) :]) == "\n"
    assert tokenizer.convert_ids_to_tokens(ours[-1]) == "<|im_end|>"


def test_the_end_of_the_turn_need_not_be_the_eos(other_eos_tokenizer: Any, chat_tokenizer: Any) -> None:
    assert end_of_turn(other_eos_tokenizer) == 3 != other_eos_tokenizer.eos_token_id
    assert end_of_turn(chat_tokenizer) == 3 == chat_tokenizer.eos_token_id


def test_an_ordinary_text_may_stand_before_the_end(chat_tokenizer: Any) -> None:
    chat_tokenizer.add_special_tokens({"eos_token": "</s>"})
    chat_tokenizer.chat_template = ZEPHYR
    assert end_of_turn(chat_tokenizer) == chat_tokenizer.convert_tokens_to_ids("</s>")


def test_the_end_of_the_users_turn_is_another_matter(chat_tokenizer: Any) -> None:
    chat_tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] }}{{ '<s>' if m['role'] == 'user' else '<|im_start|>' }}{% endfor %}"
    )
    assert chat_tokenizer.convert_ids_to_tokens(end_of_turn(chat_tokenizer)) == "<|im_start|>"


def test_a_template_without_an_end_falls_back_to_eos(chat_tokenizer: Any) -> None:
    chat_tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    assert end_of_turn(chat_tokenizer) == chat_tokenizer.eos_token_id
    chat_tokenizer.eos_token = None
    with pytest.raises(InputError, match=r"no end-of-sequence token.*model\.chat_template") as caught:
        end_of_turn(chat_tokenizer)
    assert "\n" not in str(caught.value)


def test_without_a_template_eos_ends_a_completion(plain_tokenizer: Any, closing_tokenizer: Any) -> None:
    for tokenizer in (plain_tokenizer, closing_tokenizer):
        _, (ids,) = Renderer(tokenizer).encode(Example("Well?", "x"), ["Yes."])
        # One EOS at the end, and no BOS at the beginning.
        assert tokenizer.decode(ids) == "Yes.<|im_end|>"
        assert len(ids) == 5


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        (
            "{{ raise_exception('only\n users') if messages | length > 1 }}",
            r"refuses the turns user, assistant \(only users\)",
        ),
        ("{% for m in messages %}{{ m['content'] if m['role'] == 'user' }}{% endfor %}", "leaves out the assistant"),
    ],
)
def test_a_template_for_users_only(chat_tokenizer: Any, template: str, problem: str) -> None:
    chat_tokenizer.chat_template = template
    with pytest.raises(InputError, match=problem) as caught:
        end_of_turn(chat_tokenizer)
    assert "model.chat_template" in str(caught.value)
    assert "\n" not in str(caught.value)
