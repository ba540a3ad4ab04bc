import random
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from helpers import encoding_of

from alignrun.config import TooLong, TrainOn
from alignrun.data.demonstrations import DemonstrationSet, first_fit_decreasing
from alignrun.data.order import rows_at
from alignrun.data.rendering import Renderer
from alignrun.errors import InputError
from alignrun.types import Example, Message, PackedBatch

LENGTHS = (1, 30, 2, 17, 5, 5, 9, 1, 22, 3, 12)
EXAMPLES = tuple(
    Example("p" * (1 + row % 4), f"s.jsonl:{row + 1}", chr(ord("a") + row) * size, rejected="ignored" * 50)
    for row, size in enumerate(LENGTHS)
)


def build(
    tokenizer: Any, examples: Sequence[Example] = EXAMPLES, pack_tokens: int | None = None, **options: Any
) -> DemonstrationSet:
    return DemonstrationSet.build(examples, encoding_of(tokenizer, **options), pack_tokens)


def unpack(batch: PackedBatch) -> tuple[list[tuple[list[int], list[int]]], int]:
    """Prompt and completion of every stretch whose positions count up from 0, and the tokens of the padding."""
    found, padding = [], 0
    for ids, positions, targets in zip(batch.input_ids, batch.position_ids, batch.targets, strict=True):
        starts = [*(positions == 0).nonzero().flatten().tolist(), len(ids)]
        assert starts[0] == 0
        for start, stop in pairwise(starts):
            assert positions[start:stop].tolist() == list(range(stop - start))
            real = targets[start:stop]
            if not real.any():  # no demonstration is without a completion
                assert stop == len(ids)
                padding += stop - start
                continue
            assert real.tolist() == sorted(real.tolist())
            assert not real[0]
            found.append((ids[start:stop][~real].tolist(), ids[start:stop][real].tolist()))
    return found, padding


def encoded(tokenizer: Any, example: Example, system_prompt: str | None = None) -> tuple[list[int], list[int]]:
    prompt, (completion,) = Renderer(tokenizer, system_prompt).encode(example, [str(example.chosen)])
    return prompt, completion


@pytest.mark.parametrize("pack_tokens", [None, 34, 40, 100])
@pytest.mark.parametrize("size", [1, 4, 11, 25])
def test_every_demonstration_of_the_step_is_there_once(
    plain_tokenizer: Any, size: int, pack_tokens: int | None
) -> None:
    demonstrations = build(plain_tokenizer, pack_tokens=pack_tokens)
    for step in range(4):
        batch = demonstrations.batch_at(step, size)
        wanted = [encoded(plain_tokenizer, EXAMPLES[row]) for row in rows_at(step, size, len(EXAMPLES), seed=3)]
        found, padding = unpack(batch)
        assert Counter(map(str, found)) == Counter(map(str, wanted))
        assert batch.targets.sum() == sum(len(completion) for _, completion in wanted)
        longest = max(len(prompt) + len(completion) for prompt, completion in wanted)
        assert batch.input_ids.shape[1] <= (pack_tokens or longest)
        assert batch.input_ids.numel() - padding == sum(map(len, (*sum(wanted, ()),)))
        assert batch.input_ids.shape == batch.position_ids.shape == batch.targets.shape
        assert (batch.input_ids.dtype, batch.position_ids.dtype) == (torch.int64, torch.int64)
        assert batch.targets.dtype == torch.bool


def test_packing_takes_fewer_tokens_than_padding(plain_tokenizer: Any) -> None:
    (batch,) = build(plain_tokenizer).all_batches(len(EXAMPLES))
    lengths = [len(prompt) + len(completion) for prompt, completion in (encoded(plain_tokenizer, e) for e in EXAMPLES)]
    assert batch.input_ids.shape[1] == max(lengths)
    assert batch.input_ids.numel() < 0.6 * len(lengths) * max(lengths)


def test_one_row_by_hand(plain_tokenizer: Any) -> None:
    examples = [Example("a", "x:1", "b"), Example("cd", "x:2", "efg"), Example("h", "x:3", "ij")]
    (batch,) = build(plain_tokenizer, examples, pack_tokens=12).all_batches(3)
    bos, end, pad = (plain_tokenizer.convert_tokens_to_ids(token) for token in ("<s>", "<|im_end|>", "<pad>"))
    a, b, c, d, e, f, g, h, i, j = plain_tokenizer.convert_tokens_to_ids(list("abcdefghij"))
    # The longest comes first; x:3, next, fills the row up, and x:1 needs a row of its own.
    assert batch.input_ids.tolist() == [
        [bos, c, d, e, f, g, end, bos, h, i, j, end],
        [bos, a, b, end, *[pad] * 8],
    ]
    assert batch.position_ids.tolist() == [[*range(7), *range(5)], [*range(4), *range(8)]]
    assert batch.targets.int().tolist() == [[0, 0, 0, 1, 1, 1, 1, 0, 0, 1, 1, 1], [0, 0, 1, 1, *[0] * 8]]


def test_all_batches_see_every_demonstration_once(plain_tokenizer: Any) -> None:
    batches = list(build(plain_tokenizer).all_batches(4))
    found = [unpack(batch)[0] for batch in batches]
    assert [len(part) for part in found] == [4, 4, 3]
    wanted = [encoded(plain_tokenizer, example) for example in EXAMPLES]
    assert [sorted(part) for part in found] == [sorted(wanted[start : start + 4]) for start in (0, 4, 8)]


def test_conversations_and_the_end_of_their_turn(other_eos_tokenizer: Any) -> None:
    turns: tuple[Message, ...] = ({"role": "user", "content": "Hello?"},)
    example = Example(turns, "x:1", "Yes.")
    ((found, padding),) = (
        unpack(batch) for batch in build(other_eos_tokenizer, [example], system_prompt="Be.").all_batches(1)
    )
    assert (found, padding) == ([encoded(other_eos_tokenizer, example, "Be.")], 0)
    assert other_eos_tokenizer.decode(found[0][1]) == "Yes.<|im_end|>"


def test_batches_are_a_function_of_the_step(plain_tokenizer: Any) -> None:
    first, second = build(plain_tokenizer), build(plain_tokenizer)
    for step in (5, 0, 5):
        torch.manual_seed(step)
        ours, theirs = first.batch_at(step, 4), second.batch_at(step, 4)
        assert torch.equal(ours.input_ids, theirs.input_ids)
        assert torch.equal(ours.position_ids, theirs.position_ids)
        assert torch.equal(ours.targets, theirs.targets)
    assert not torch.equal(first.batch_at(0, 4).input_ids, build(plain_tokenizer, seed=4).batch_at(0, 4).input_ids)


@pytest.mark.parametrize("seed", range(30))
def test_first_fit_decreasing(seed: int) -> None:
    dice = random.Random(seed)
    capacity = dice.randint(5, 40)
    lengths = [dice.randint(1, capacity) for _ in range(dice.randint(1, 30))]
    rows = first_fit_decreasing(lengths, capacity)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    filled = [sum(lengths[index] for index in row) for row in rows]
    assert max(filled) <= capacity
    # No demonstration would have fitted into a row before its own, and so no two rows could be one.
    for place, row in enumerate(rows):
        for index in row:
            for before in rows[:place]:
                taken = sum(lengths[other] for other in before if lengths[other] >= lengths[index])
                assert taken + lengths[index] > capacity
    assert all(one + other > capacity for place, one in enumerate(filled) for other in filled[:place])


def test_a_known_packing() -> None:
    assert first_fit_decreasing([4, 8, 1, 4, 2, 1], 10) == [[1, 4], [0, 3, 2, 5]]


@pytest.mark.parametrize(
    ("limits", "part"),
    [
        ({"max_prompt_tokens": 4}, "s.jsonl:4: the prompt has 5 tokens, and the limit is 4"),
        ({"max_completion_tokens": 30}, "s.jsonl:2: a completion has 31 tokens, and the limit is 30"),
        ({"context": 33}, "s.jsonl:2: prompt and completion have 34 tokens, and the limit is 33"),
    ],
)
def test_too_long(plain_tokenizer: Any, limits: dict[str, int], part: str) -> None:
    with pytest.raises(InputError) as caught:
        build(plain_tokenizer, **limits)
    assert part in str(caught.value)
    kept = build(plain_tokenizer, too_long=TooLong.skip, **limits)
    assert kept.skipped == len(EXAMPLES) - len(kept) > 0
    assert all(example in EXAMPLES for example in kept.examples)
    assert [item.turns[0][1] - 1 for item in kept.encoded] == [len(str(e.chosen)) for e in kept.examples]


def test_skipping_all_is_refused(plain_tokenizer: Any) -> None:
    with pytest.raises(InputError, match="none of the 11 demonstrations fits"):
        build(plain_tokenizer, context=1, too_long=TooLong.skip)


def test_a_prompt_alone_is_refused(plain_tokenizer: Any) -> None:
    with pytest.raises(InputError, match=r"x:1 holds a prompt without a completion.*data\.columns\.completion") as e:
        build(plain_tokenizer, [EXAMPLES[0], Example("a", "x:1")], too_long=TooLong.skip)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("too_long", list(TooLong))
def test_a_row_must_hold_the_longest_demonstration(plain_tokenizer: Any, too_long: TooLong) -> None:
    assert len(build(plain_tokenizer, pack_tokens=34)) == 11
    with pytest.raises(InputError, match=r"s\.jsonl:2 has 34 tokens.*pack_tokens to 34 instead of 33") as caught:
        build(plain_tokenizer, pack_tokens=33, too_long=too_long)
    assert "\n" not in str(caught.value)


THINKS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' and loop.last %}"
    "<think>\n\n</think>\n\n{% endif %}{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""As Qwen3 does, it writes thoughts into the last answer alone: past turns read otherwise than they were said."""


def conversation(exchanges: int, system: bool) -> Example:
    turns: list[Message] = [{"role": "system", "content": "Be."}] if system else []
    for place in range(exchanges):
        turns += [{"role": "user", "content": f"q{place}" * (1 + place)}, {"role": "assistant", "content": f"a{place}"}]
    return Example(tuple(turns[:-1]), f"c:{exchanges}", str(turns[-1]["content"]))


@pytest.mark.parametrize("system", [False, True])
@pytest.mark.parametrize("exchanges", [1, 2, 5])
def test_every_turn_of_a_conversation_by_hand(chat_tokenizer: Any, exchanges: int, system: bool) -> None:
    """The mask against one written down from the text itself: what stands between an answer's header and its end."""
    example = conversation(exchanges, system)
    demonstrations = build(chat_tokenizer, [example], context=500, train_on=TrainOn.all)
    (batch,) = demonstrations.all_batches(1)
    turns = [*example.prompt, {"role": "assistant", "content": example.chosen}]
    pieces = [("<s>", False)]
    for turn in turns:
        answer = turn["role"] == "assistant"
        pieces += [(f"<|im_start|>{turn['role']}\n", False), (f"{turn['content']}<|im_end|>", answer), ("\n", False)]
    ids = [(chat_tokenizer.encode(text, add_special_tokens=False), learned) for text, learned in pieces[:-1]]
    spelled = [(token, learned) for tokens, learned in ids for token in tokens]
    assert batch.input_ids.tolist() == [[token for token, _ in spelled]]
    assert batch.targets.tolist() == [[learned for _, learned in spelled]]
    assert batch.position_ids.tolist() == [list(range(len(spelled)))]


@pytest.mark.parametrize("template", [None, THINKS])
@pytest.mark.parametrize("pack_tokens", [None, 200])
def test_each_turn_is_learned_once_after_the_prompt_it_is_asked_with(
    chat_tokenizer: Any, template: str | None, pack_tokens: int | None
) -> None:
    """The learned tokens, each with all before it, are those of every turn as a demonstration of its own."""
    tokenizer = chat_tokenizer
    tokenizer.chat_template = template or tokenizer.chat_template
    examples = [conversation(exchanges, system=bool(exchanges % 2)) for exchanges in (1, 2, 3, 4)]
    apart = []
    for example in examples:
        turns = (*example.prompt, {"role": "assistant", "content": example.chosen})
        for place in (place for place, turn in enumerate(turns) if turn["role"] == "assistant"):
            apart.append(Example(turns[:place], f"{example.origin}/{place}", turns[place]["content"]))

    def learned(batch: PackedBatch) -> Counter[str]:
        found: Counter[str] = Counter()
        for ids, positions, targets in zip(batch.input_ids, batch.position_ids, batch.targets, strict=True):
            for place in targets.nonzero().flatten().tolist():
                start = place - int(positions[place])
                found[str((ids[start:place].tolist(), int(ids[place])))] += 1
        return found

    together = build(tokenizer, examples, pack_tokens, context=500, train_on=TrainOn.all)
    (batch,) = together.all_batches(4)
    (alone,) = build(tokenizer, apart, context=500).all_batches(len(apart))
    assert learned(batch) == learned(alone)
    merged = template is None
    assert [len(one.pieces) for one in together.encoded] == ([1] * 4 if merged else [1, 2, 3, 4])
    (last,) = build(tokenizer, examples, context=500).all_batches(4)
    assert learned(last) < learned(batch)


def test_rows_that_hold_turns_that_are_not_learned_are_counted(chat_tokenizer: Any) -> None:
    examples = [conversation(exchanges, system=False) for exchanges in (1, 2, 3)]
    (note,) = build(chat_tokenizer, examples, context=500).notes()
    assert "2 of the first 3 rows have earlier turns" in note
    assert build(chat_tokenizer, examples, context=500, train_on=TrainOn.all).notes() == []


def test_a_conversation_over_the_context_is_refused_as_one(chat_tokenizer: Any) -> None:
    examples = [conversation(1, False), conversation(9, False)]
    with pytest.raises(InputError, match="c:9: the prompt has 294 tokens, and the limit is 100"):
        build(chat_tokenizer, examples, train_on=TrainOn.all)
    kept = build(chat_tokenizer, examples, train_on=TrainOn.all, too_long=TooLong.skip)
    assert [example.origin for example in kept.examples] == ["c:1"]


def test_tool_calls_are_learned_and_what_tools_answer_is_not() -> None:
    from alignrun.models.tiny import byte_tokenizer as tiny

    call = {"type": "function", "function": {"name": "look", "arguments": {}}}
    turns: tuple[Message, ...] = (
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "sunny"},
    )
    tokenizer = tiny()
    (batch,) = build(tokenizer, [Example(turns, "t:1", "Sun.")], context=500, train_on=TrainOn.all).all_batches(1)
    said = tokenizer.decode(batch.input_ids[batch.targets])
    assert said == '<tool_call>{"name": "look", "arguments": {}}</tool_call><|im_end|>Sun.<|im_end|>'
