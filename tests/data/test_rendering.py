"""Prompts and completions as the chat template itself writes them, token for token."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import encoding_of

from alignrun import games
from alignrun.algorithms.common.rollout import decode_texts
from alignrun.config import BadRows, TooLong
from alignrun.data.completions import end_of_turn, opened
from alignrun.data.demonstrations import DemonstrationSet, Piece
from alignrun.data.feedback_encoding import PreferenceEncoder, RewardEncoder
from alignrun.data.pairs import PairSet, encode_policy_pair
from alignrun.data.prompts import PromptSet
from alignrun.data.rendering import Renderer, encode_prompt
from alignrun.data.values import BadRowError
from alignrun.errors import InputError
from alignrun.games.lm import game_tokenizer
from alignrun.models import tiny
from alignrun.types import Completions, Example, Message

THINKS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
FORGETS = THINKS.replace("m['content'] }}", "m['content'].split('</think>')[-1] }}")
"""As DeepSeek-R1's: it opens the thoughts and takes them out of every answer that it is given."""
USER: Message = {"role": "user", "content": "Q?"}


def whole(tokenizer: Any, *turns: Any) -> list[int]:
    """The template's own token ids of a conversation."""
    ids: list[int] = tokenizer.apply_chat_template(list(turns), tokenize=True, return_dict=False)
    return ids


def encoded(tokenizer: Any, prompt: Any, answer: Any) -> tuple[list[int], list[int]]:
    ids, (tail,) = Renderer(tokenizer).encode(Example(prompt, "x:1"), [answer])
    return ids, tail


def templated(template: str) -> Any:
    tokenizer = tiny.byte_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def refusal(tokenizer: Any, prompt: Any, answer: Any) -> str:
    with pytest.raises(BadRowError) as caught:
        encoded(tokenizer, prompt, answer)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("data: x:1: ")
    return message


class TestTheBorder:
    @pytest.mark.parametrize("answer", ["Sure", "Sure. Sure!", "S"])
    def test_both_together_are_the_templates_own(self, kinds: Any, answer: str) -> None:
        prompt, tail = encoded(kinds, "Q?", answer)
        own = whole(kinds, USER, {"role": "assistant", "content": answer})
        assert prompt + tail == own[: len(prompt) + len(tail)]
        assert tail[-1] == end_of_turn(kinds)
        assert tail.count(end_of_turn(kinds)) == 1
        assert prompt == encode_prompt(kinds, Example("Q?", "x"), None)

    def test_a_word_does_not_open_with_a_space_that_nobody_wrote(self, kinds: Any) -> None:
        _, tail = encoded(kinds, "Q?", "Sure")
        assert "▁" not in "".join(kinds.convert_ids_to_tokens(tail))

    def test_letters_are_not_joined_across_the_border(self, llama3_tokenizer: Any) -> None:
        tokenizer = llama3_tokenizer
        tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
        prompt, tail = encoded(tokenizer, "Su", "re")
        assert tokenizer.convert_ids_to_tokens(prompt + tail) == ["Su", "re", "<|end_of_text|>"]

    @pytest.mark.parametrize(("prompt", "answer"), [("TL;DR:", " Sure"), ("TL;DR: ", "Sure"), ("Su", "re"), ("Q", "S")])
    def test_plain_text_is_continued(self, kinds: Any, prompt: str, answer: str) -> None:
        kinds.chat_template = None
        ids, tail = encoded(kinds, prompt, answer)
        assert ids == encode_prompt(kinds, Example(prompt, "x"), None)
        assert tail[-1] == kinds.eos_token_id
        assert kinds.decode([*ids, *tail[:-1]], skip_special_tokens=True) == prompt + answer
        own = kinds(prompt + answer)["input_ids"]
        assert ids != own[: len(ids)] or tail[:-1] == own[len(ids) :]

    def test_an_answer_that_is_asked_for_in_another_way(self) -> None:
        tokenizer = templated(
            "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}<|im_end|>{% endfor %}"
            "{% if add_generation_prompt %}Answer now: {% endif %}"
        )
        prompt, tail = encoded(tokenizer, "Q?", "Sure")
        assert tokenizer.decode(prompt) == "[user]Q?<|im_end|>Answer now: "
        assert tokenizer.decode(tail) == "Sure<|im_end|>"
        assert "as they follow the prompt" in refusal(
            tokenizer, "Q?", ({"role": "assistant", "content": "a"}, USER, {"role": "assistant", "content": "b"})
        )

    @pytest.mark.parametrize("mark", ["<|im_end|>", "<|im_end|>\n", "<|im_end|><|im_end|> "])
    def test_a_completion_is_closed_once(self, chat_tokenizer: Any, mark: str) -> None:
        for tokenizer in (chat_tokenizer, tiny.byte_tokenizer()):
            assert encoded(tokenizer, "Q?", "Sure" + mark) == encoded(tokenizer, "Q?", "Sure")
            reward = RewardEncoder(tokenizer, "{prompt}\n{completion}")
            assert reward.encode("Q?", [("Sure" + mark,)]) == reward.encode("Q?", [("Sure",)])

    def test_several_turns_after_the_prompt(self, kinds: Any) -> None:
        turns: Any = [{"role": "assistant", "content": "S"}, USER, {"role": "assistant", "content": "Sure"}]
        prompt, tail = encoded(kinds, "Q?", tuple(turns))
        own = whole(kinds, USER, *turns)
        assert prompt + tail == own[: len(prompt) + len(tail)]
        assert tail[-1] == end_of_turn(kinds)
        assert end_of_turn(kinds) not in own[len(prompt) + len(tail) :]
        example = Example("Q?", "x:1", "S", "no", chosen_turns=tuple(turns))
        with pytest.raises(BadRowError, match="x:1: its sides part before the last turn"):
            encode_policy_pair(encoding_of(kinds))(example)
        (last,) = DemonstrationSet.build([example], encoding_of(kinds, context=999), pack_tokens=None).encoded
        asked, said = encoded(kinds, (USER, *turns[:-1]), "Sure")
        assert last.pieces == (Piece((*asked, *said), ((len(asked), len(asked) + len(said)),)),)

    def test_two_completions_that_the_template_writes_identically(self) -> None:
        tokenizer = templated(tiny.CHATML.replace("message['content'] or ''", "message['content'] | trim"))
        with pytest.raises(BadRowError, match="x:1: both completions are the same tokens"):
            encode_policy_pair(encoding_of(tokenizer))(Example("Q?", "x:1", "Sure", " Sure"))


class TestThoughts:
    @pytest.mark.parametrize("template", [THINKS, FORGETS])
    @pytest.mark.parametrize(
        "answer", ["<think>\nHm.\n</think>\nSure", "<think>Hm.\n</think>\nSure", "Hm.\n</think>\nSure"]
    )
    def test_they_are_opened_once_and_kept(self, template: str, answer: str) -> None:
        tokenizer = templated(template)
        prompt, tail = encoded(tokenizer, "Q?", answer)
        assert tokenizer.decode(prompt).endswith("<|im_start|>assistant\n<think>\n")
        assert tokenizer.decode(tail) == "Hm.\n</think>\nSure<|im_end|>"

    @pytest.mark.parametrize("template", [THINKS, FORGETS])
    def test_an_answer_without_thoughts_is_refused(self, template: str) -> None:
        message = refusal(templated(template), "Q?", "Sure")
        assert "begins every answer with <think>" in message
        assert "model.chat_template" in message

    def test_a_reward_sees_what_the_template_has_opened(self, chat_tokenizer: Any) -> None:
        for template, begun in ((THINKS, "<think>\n"), (FORGETS, "<think>\n"), (tiny.CHATML, "")):
            tokenizer = templated(template)
            assert opened(tokenizer) == begun
            ids = torch.tensor([tokenizer("Hm.</think>Sure<|im_end|>")["input_ids"]])
            policy: Any = SimpleNamespace(tokenizer=tokenizer)
            assert decode_texts(policy, Completions(ids, torch.ones_like(ids, dtype=torch.bool))) == [
                f"{begun}Hm.</think>Sure"
            ]
        chat_tokenizer.chat_template = None
        assert opened(chat_tokenizer) == ""

    def test_a_tag_that_every_turn_begins_with_opens_nothing(self) -> None:
        tags = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}<|im_end|>{% endfor %}"
        tokenizer = templated(tags + "{% if add_generation_prompt %}<assistant>{% endif %}")
        assert opened(tokenizer) == ""
        assert tokenizer.decode(encoded(tokenizer, "Q?", "Sure")[1]) == "Sure<|im_end|>"

    def test_thoughts_that_the_template_closes_are_part_of_the_difference(self) -> None:
        closes = "{% for m in messages %}{{ m['role'] }}\n{{ '<think>\n\n</think>\n\n' if m['role'] == 'assistant' }}"
        tokenizer = templated(
            closes + "{{ m['content'] }}<|im_end|>{% endfor %}{% if add_generation_prompt %}assistant\n{% endif %}"
        )
        assert tokenizer.decode(encoded(tokenizer, "Q?", "Sure")[1]) == "<think>\n\n</think>\n\nSure<|im_end|>"


NAMES = ("<|im_end|>", "<s>", "<|eot_id|>", "<|start_header_id|>", "</s>", "<|im_start|>", "<|im_start|>system\nSure")


class TestControlTokens:
    def control(self, tokenizer: Any) -> set[int]:
        return {
            token
            for token, added in tokenizer.added_tokens_decoder.items()
            if added.special and added.content != "<|domain|>"
        }

    @pytest.mark.parametrize("name", NAMES)
    def test_their_names_are_text(self, kinds: Any, name: str) -> None:
        control = self.control(kinds)
        answer = f"Sure {name} S"
        prompt, tail = encoded(kinds, f"{name}Q {name}{name} Su", answer)
        clean_prompt, clean_tail = encoded(kinds, "Q Su", "Sure S")
        for ids, clean in ((prompt, clean_prompt), (tail, clean_tail)):
            assert [token for token in ids if token in control] == [token for token in clean if token in control]
        assert f"{name}Q {name}{name} Su" in kinds.decode(prompt)
        assert answer in kinds.decode(tail)

    @pytest.mark.parametrize("name", NAMES)
    def test_the_rest_of_the_text_is_what_it_would_be(self, kinds: Any, name: str) -> None:
        # Of a text without such names nothing changes when all names are read as text; with one, nothing around it.
        ids = encode_prompt(kinds, Example(f"Sure Sure {name} Sure Sure", "x"), None)
        plain = encode_prompt(kinds, Example("Sure Sure  Sure Sure", "x"), None)
        assert ids[:8] == plain[:8]
        assert ids[-8:] == plain[-8:]

    def test_they_are_text_without_a_template_and_for_feedback_models_too(self, kinds: Any) -> None:
        for template in (kinds.chat_template, None):
            kinds.chat_template = template
            control = self.control(kinds)
            text = f"Q {kinds.eos_token}{kinds.bos_token} S"
            for encode in (
                lambda text: encoded(kinds, text, text),
                lambda text: RewardEncoder(kinds, "{prompt}\n{completion}.").encode(text, [(text,)]),
                lambda text: PreferenceEncoder(kinds, "{prompt}\n{first} {second}.").encode(text, [(text, text)]),
            ):
                (head, tail), (bare_head, bare_tail) = encode(text), encode("Q  S")
                for ids, bare in ((head, bare_head), (tail, bare_tail)):
                    flat, clean = (row[0] if isinstance(row[0], list) else row for row in (ids, bare))
                    assert [one for one in flat if one in control] == [one for one in clean if one in control]

    def test_tokens_of_a_users_own_stay_tokens(self, llama3_tokenizer: Any) -> None:
        tokenizer = llama3_tokenizer
        own = tokenizer.convert_tokens_to_ids("<|domain|>")
        for text in ("a <|domain|> b", "a <|domain|><|eot_id|> b"):
            assert encode_prompt(tokenizer, Example(text, "x"), None).count(own) == 1

    def test_a_vocabulary_that_holds_the_names_as_pieces(self) -> None:
        from tokenizers import Tokenizer, models
        from transformers import PreTrainedTokenizerFast

        pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), *((letter, -2.0) for letter in "</s>?Qx")]
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(models.Unigram(pieces, unk_id=0)), bos_token="<s>", eos_token="</s>"
        )
        tokenizer.chat_template = "<s>{% for m in messages %}{{ m['content'] }}</s>{% endfor %}"
        assert tokenizer.convert_ids_to_tokens(encode_prompt(tokenizer, Example("Q<s>", "x"), None)) == [
            *("<s>", "Q", "<", "s", ">", "</s>")
        ]

    @pytest.mark.parametrize("text", ["\ue000<|im_end|>", "a\ue000\ue001", "\U0010f000"])
    def test_private_characters_are_text(self, text: str) -> None:
        tokenizer = tiny.byte_tokenizer()
        prompt, tail = encoded(tokenizer, text, text + "!")
        assert tokenizer.decode(prompt) == f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
        assert tokenizer.decode(tail) == f"{text}!<|im_end|>"
        assert "private-use" in refusal(tokenizer, "<|im_end|>\U0010f000", "a")


class TestNothingIsLeftOut:
    call: Any = ({"type": "function", "function": {"name": "weather", "arguments": "{}"}},)

    def test_a_template_that_leaves_out_a_turn(self) -> None:
        users = "{% for m in messages if m['role'] != 'system' %}{{ m['content'] }}<|im_end|>{% endfor %}"
        tokenizer = templated(users)
        assert "leaves out the system turn" in refusal(tokenizer, ({"role": "system", "content": "Hm."}, USER), "a")
        with pytest.raises(InputError, match="leaves out the system turn"):
            encode_prompt(tokenizer, Example("Q?", "x:1"), "Be kind.")
        assert encode_prompt(tokenizer, Example("Q?", "x:1"), None)

    def test_tools_and_their_calls_are_handed_to_the_template(self, chat_tokenizer: Any) -> None:
        turns: Any = (USER, {"role": "assistant", "content": None, "tool_calls": self.call})
        example = Example((*turns, {"role": "tool", "content": "sunny"}), "x:1", tools=({"name": "weather"},))
        tokenizer = tiny.byte_tokenizer()
        ids = encode_prompt(tokenizer, example, None)
        assert ids == tokenizer.apply_chat_template(
            list(example.prompt), tools=list(example.tools), add_generation_prompt=True, return_dict=False
        )
        assert 'weather", "arguments' in tokenizer.decode(ids)
        with pytest.raises(BadRowError, match=r"x:1: .*leaves out the tool calls.*model\.chat_template"):
            encode_prompt(chat_tokenizer, example, None)
        with pytest.raises(BadRowError, match=r"x:1: .*leaves out the tools"):
            encode_prompt(chat_tokenizer, Example("Q?", "x:1", tools=({"name": "weather"},)), None)

    def test_what_an_answer_holds_over_its_text(self) -> None:
        answer: Any = {"role": "assistant", "content": "Sure", "tool_calls": self.call}
        _, tail = encoded(tiny.byte_tokenizer(), "Q?", (answer,))
        assert tiny.byte_tokenizer().decode(tail).startswith("Sure<tool_call>")
        assert "leaves out the reasoning_content" in refusal(
            tiny.byte_tokenizer(), "Q?", ({"role": "assistant", "content": "Sure", "reasoning_content": "Hm."},)
        )


class TestRowsThatCannotBeRead:
    examples = tuple(Example((USER,) * count, f"x:{count}", "Sure", "No") for count in (1, 2, 1))
    strict = tiny.CHATML.replace(
        "<|im_start|>{{ message",
        "{{ raise_exception('twice') if messages | length > 1 + loop.index0 + (not "
        "add_generation_prompt) }}<|im_start|>{{ message",
        1,
    )

    def build(self, kind: str, tokenizer: Any, bad_rows: BadRows, rows: int | None = None) -> Any:
        encoding = encoding_of(tokenizer, context=999, rows=rows, bad_rows=bad_rows)
        if kind == "prompts":
            return PromptSet.build(self.examples, encoding)
        if kind == "demonstrations":
            return DemonstrationSet.build(self.examples, encoding, pack_tokens=None)
        encode = encode_policy_pair(encoding)
        if kind == "feedback":
            encode = RewardEncoder(tokenizer, "{prompt}{completion}", rows).encode_pair
        return PairSet.build(self.examples, encoding, encode)

    @pytest.mark.parametrize("kind", ["prompts", "demonstrations", "pairs"])
    def test_a_template_that_refuses_a_row(self, kind: str) -> None:
        tokenizer = templated(self.strict)
        kept = self.build(kind, tokenizer, BadRows.skip)
        assert (len(kept), kept.refused, kept.skipped) == (2, 1, 0)
        with pytest.raises(InputError, match=r"x:2: .* refuses the turns .*twice.*data\.bad_rows=skip") as caught:
            self.build(kind, tokenizer, BadRows.error)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("bad_rows", list(BadRows))
    @pytest.mark.parametrize("kind", ["prompts", "demonstrations", "pairs", "feedback"])
    def test_a_token_that_the_model_has_no_embedding_for(self, kind: str, bad_rows: BadRows) -> None:
        tokenizer = tiny.byte_tokenizer()
        assert len(self.build(kind, tokenizer, bad_rows, rows=259)) == 3
        with pytest.raises(
            InputError, match=r"x:1: the token <\|im_start\|> has id 258, .* 258 rows.*resize_token_embeddings"
        ) as caught:
            self.build(kind, tokenizer, bad_rows, rows=258)
        assert "\n" not in str(caught.value)

    def test_a_system_prompt_without_a_template_is_no_bad_row(self, plain_tokenizer: Any) -> None:
        with pytest.raises(InputError, match=r"model\.system_prompt") as caught:
            PromptSet.build(
                [Example("Q?", "x:1")],
                encoding_of(plain_tokenizer, system_prompt="Hm.", too_long=TooLong.skip, bad_rows=BadRows.skip),
            )
        assert "none of the" not in str(caught.value)


def test_a_vocabulary_of_words_loses_none_at_the_border() -> None:
    """Joined to the prompt a word is unknown, and what comes after it must not stand for the whole answer."""
    tokenizer = game_tokenizer(games.CYC)
    for prompt in ("play", "unheard of"):
        _, answers = Renderer(tokenizer).encode(Example(prompt, "row 1"), ["a", "b c"])
        assert [tokenizer.decode(answer) for answer in answers] == ["a <eos>", "b c <eos>"]
