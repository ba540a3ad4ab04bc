from typing import Any

import pytest

from alignrun.config.templates import split_template
from alignrun.data.feedback_encoding import FeedbackEncoder, PreferenceEncoder, RewardEncoder
from alignrun.errors import InputError
from alignrun.models import tiny
from alignrun.types import Example, Message

REWARD = "Context - {prompt}, Summary - {completion}"
PREFERENCE = "Text - {prompt}\n1 - {first}\n2 - {second}\nPreferred -"
EXAMPLE = Example("Hello?", "x:1", chosen="Yes.", rejected="No way!")
TRIM = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def chat(tokenizer: Any, text: str) -> list[int]:
    """The template's own token ids of one user turn that is about to be answered."""
    turns = [{"role": "user", "content": text}]
    ids: list[int] = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=False)
    return ids


@pytest.fixture(params=["chat_tokenizer", "tiny", "trim"])
def chats(request: pytest.FixtureRequest) -> Any:
    if request.param == "tiny":
        return tiny.byte_tokenizer()
    tokenizer = request.getfixturevalue("chat_tokenizer")
    if request.param == "trim":
        tokenizer.chat_template = TRIM
    return tokenizer


def test_a_reward_model_reads_one_user_turn(chats: Any) -> None:
    head, tails = RewardEncoder(chats, REWARD).encode("Hello?", [("Yes.",), ("No way!",)])
    for tail, completion in zip(tails, ("Yes.", "No way!"), strict=True):
        assert head + tail == chat(chats, f"Context - Hello?, Summary - {completion}")
    assert chats.decode(head).endswith("Summary - ")
    assert chats.decode(tails[1]) == "No way!<|im_end|>\n<|im_start|>assistant\n"


def test_a_preference_model_reads_both_orders(chats: Any) -> None:
    pair = PreferenceEncoder(chats, PREFERENCE).encode_pair(EXAMPLE)
    for tail, (first, second) in ((pair.first, ("Yes.", "No way!")), (pair.second, ("No way!", "Yes."))):
        assert [*pair.prompt, *tail] == chat(chats, f"Text - Hello?\n1 - {first}\n2 - {second}\nPreferred -")


@pytest.mark.parametrize("name", ["chat_tokenizer", "plain_tokenizer", "closing_tokenizer"])
def test_training_and_asking_give_the_same_tokens(name: str, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue(name)
    cases: list[tuple[FeedbackEncoder, list[tuple[str, ...]]]] = [
        (RewardEncoder(tokenizer, REWARD), [("Yes.",), ("No way!",)]),
        (PreferenceEncoder(tokenizer, PREFERENCE), [("Yes.", "No way!"), ("No way!", "Yes.")]),
    ]
    for encoder, orders in cases:
        pair = encoder.encode_pair(EXAMPLE)
        asked = [encoder.encode("Hello?", [order]) for order in orders]
        assert [(tuple(head), tuple(tail)) for head, (tail,) in asked] == [
            (pair.prompt, pair.first),
            (pair.prompt, pair.second),
        ]


@pytest.mark.parametrize("name", ["chat_tokenizer", "closing_tokenizer"])
def test_the_texts_by_themselves_are_counted(name: str, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue(name)
    for encoder in (RewardEncoder(tokenizer, REWARD), PreferenceEncoder(tokenizer, PREFERENCE)):
        assert encoder.encode_pair(EXAMPLE).plain == (len("Hello?"), len("No way!"))


@pytest.mark.parametrize("name", ["plain_tokenizer", "closing_tokenizer"])
def test_plain_text_opens_with_bos_and_ends_with_one_eos(name: str, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue(name)
    pair = RewardEncoder(tokenizer, REWARD + ".").encode_pair(EXAMPLE)
    assert tokenizer.decode(pair.prompt) == "<s>Context - Hello?, Summary - "
    assert tokenizer.decode(pair.first) == "Yes..<|im_end|>"
    assert tokenizer.decode(pair.second) == "No way!.<|im_end|>"


def test_plain_text_needs_an_eos(plain_tokenizer: Any) -> None:
    plain_tokenizer.eos_token = None
    with pytest.raises(InputError, match="no end-of-sequence token"):
        RewardEncoder(plain_tokenizer, REWARD)


def test_a_conversation_is_read_as_plain_text(chat_tokenizer: Any) -> None:
    turns: tuple[Message, ...] = tuple({"role": "user", "content": text} for text in ("One?", "Two?"))
    pair = RewardEncoder(chat_tokenizer, "{prompt}\n{completion}").encode_pair(Example(turns, "x:1", "Yes.", "No."))
    assert "user: One?\n\nuser: Two?\n" in chat_tokenizer.decode(pair.prompt)


@pytest.mark.parametrize(
    "text", ["{prompt}{first}{second}{completion}", "{0} {x!r} {{", "\ue000", "a\ue000b", "\\1 \\g<0>", " \n"]
)
def test_texts_are_never_read_as_templates(chat_tokenizer: Any, plain_tokenizer: Any, text: str) -> None:
    for tokenizer in (chat_tokenizer, plain_tokenizer):
        head, (tail,) = PreferenceEncoder(tokenizer, PREFERENCE).encode(text, [(f"1{text}", f"2{text}")])
        said = text.rstrip()  # completions are read without the space around them
        filled = f"Text - {text}\n1 - 1{said}\n2 - 2{said}\nPreferred -"
        assert filled in tokenizer.decode(head + tail)


def test_space_around_a_prompt_survives_a_template_that_trims(chat_tokenizer: Any) -> None:
    chat_tokenizer.chat_template = TRIM
    head, (tail,) = RewardEncoder(chat_tokenizer, "\n{prompt}\n{completion}").encode(" Hello? ", [(" Yes. ",)])
    assert chat_tokenizer.decode(head) == "<s><|im_start|>user\nHello? \n"
    assert chat_tokenizer.decode(tail) == "Yes.<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    "template",
    [
        "{prompt} {first}",
        "{first} {second}",
        "{prompt} {second} {first}",
        "{first} {prompt} {second}",
        "{prompt} {first} {second} {first}",
        "{prompt} {prompt} {first} {second}",
        "{ prompt } {first} {second}",
        "",
    ],
)
def test_a_template_holds_every_field_once_and_in_order(chat_tokenizer: Any, template: str) -> None:
    problem = r"must hold \{prompt\}, \{first\}, \{second\}, each once and in this order"
    with pytest.raises(InputError, match=rf"algo\.template {problem}") as caught:
        split_template(template, ("prompt", "first", "second"), "algo.template")
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=problem):
        PreferenceEncoder(chat_tokenizer, template)


def test_templates_may_hold_other_braces(chat_tokenizer: Any) -> None:
    split_template('{"x": {prompt}{first}{second}} {completion}', ("prompt", "first", "second"), "algo.template")
    split_template("{prompt}{completion}", RewardEncoder.fields, "algo.template")
    with pytest.raises(InputError, match=r"algo\.template"):
        split_template(PREFERENCE, RewardEncoder.fields, "algo.template")


@pytest.mark.parametrize(
    ("template", "problem"),
    [("{{ raise_exception('no\n user') }}", r"refuses the turns user \(no user\)"), ("fixed", "leaves out the user")],
)
def test_a_chat_template_that_does_not_serve(chat_tokenizer: Any, template: str, problem: str) -> None:
    chat_tokenizer.chat_template = template
    with pytest.raises(InputError, match=problem) as caught:
        RewardEncoder(chat_tokenizer, REWARD).encode_pair(EXAMPLE)
    assert "\n" not in str(caught.value)
