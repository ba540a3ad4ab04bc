from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import encoding_of

from alignrun.config import TooLong
from alignrun.data.order import rows_at
from alignrun.data.pairs import EncodedPair, PairSet, check_labels, encode_policy_pair
from alignrun.data.rendering import encode_prompt
from alignrun.errors import InputError
from alignrun.types import Example

EXAMPLES = tuple(
    Example("p" * (1 + row % 4), f"p.jsonl:{row + 1}", "c" * (1 + row % 3), "r" * (1 + row % 5), label=0.5 + row / 20)
    for row in range(10)
)

PADDING = SimpleNamespace(pad_token_id=0)


def encode(example: Example) -> EncodedPair:
    """One token a character."""
    prompt, first, second = (
        tuple(map(ord, text)) for text in (example.text, str(example.chosen), str(example.rejected))
    )
    return EncodedPair(prompt, first, second)


def build(examples: Sequence[Example] = EXAMPLES, **options: Any) -> PairSet:
    return PairSet.build(examples, encoding_of(PADDING, **options), encode)


def by_length(rows: Sequence[int]) -> list[int]:
    """Longest first, equals in the order given."""
    pairs = [encode(example) for example in EXAMPLES]
    return sorted(
        rows, key=lambda row: -len(pairs[row].prompt) - 2 * max(len(pairs[row].first), len(pairs[row].second))
    )


def test_a_batch_holds_its_own_pairs() -> None:
    pairs = build()
    for step in range(7):
        batch = pairs.batch_at(step, 4)
        examples = [EXAMPLES[row] for row in by_length(rows_at(step, 4, 10, seed=3))]
        assert batch.prompts.texts == tuple(example.text for example in examples)
        assert batch.labels.dtype == torch.float32
        assert torch.equal(batch.labels, torch.tensor([example.label for example in examples]))
        assert batch.completions.tokens.shape[:2] == (4, 2)
        assert batch.completions.tokens.shape == batch.completions.mask.shape
        assert batch.reference is None
        for row, example in enumerate(examples):
            real = batch.prompts.attention_mask[row].bool()
            assert "".join(map(chr, batch.prompts.input_ids[row, real])) == example.text
            for side, text in enumerate((example.chosen, example.rejected)):
                real = batch.completions.mask[row, side]
                assert "".join(map(chr, batch.completions.tokens[row, side, real])) == text


def test_prompts_are_padded_on_the_left_and_completions_on_the_right() -> None:
    (batch,) = build([Example("f", "x:1", "ghi", "j"), Example("ab", "x:2", "c", "de")]).all_batches(2)
    a, b, c, d, e, f, g, h, i, j = map(ord, "abcdefghij")
    assert batch.prompts.input_ids.tolist() == [[0, f], [a, b]]
    assert batch.completions.tokens.tolist() == [[[g, h, i], [j, 0, 0]], [[c, 0, 0], [d, e, 0]]]
    assert batch.completions.mask.sum(-1).tolist() == [[3, 1], [1, 2]]


@pytest.mark.parametrize(("size", "sizes"), [(3, [3, 3, 3, 1]), (10, [10]), (50, [10])])
def test_all_batches_see_every_pair_once_the_longest_first(size: int, sizes: list[int]) -> None:
    pairs = build()
    rows = list(pairs.all_rows(size))
    assert [len(part) for part in rows] == sizes
    assert [row for part in rows for row in part] == by_length(range(10))
    for part, batch in zip(rows, pairs.all_batches(size), strict=True):
        assert torch.equal(batch.labels, torch.tensor([EXAMPLES[row].label for row in part]))


def test_log_probs_of_the_reference_travel_with_their_pairs() -> None:
    values = torch.arange(20, dtype=torch.float32).reshape(10, 2)
    pairs = build().with_reference(values)
    for step in range(3):
        reference = pairs.batch_at(step, 4).reference
        assert reference is not None
        assert torch.equal(reference, values[by_length(rows_at(step, 4, 10, seed=3))])
    for part, batch in zip(pairs.all_rows(4), pairs.all_batches(4), strict=True):
        assert batch.reference is not None
        assert torch.equal(batch.reference, values[part])


def test_lengths_of_exactly_the_limits_fit() -> None:
    pairs = build([Example("abc", "x:1", "de", "f")], max_prompt_tokens=3, max_completion_tokens=2, context=5)
    assert (len(pairs), pairs.skipped) == (1, 0)


@pytest.mark.parametrize(
    ("limits", "parts"),
    [
        ({"max_prompt_tokens": 2}, ("the prompt has 3 tokens", "limit is 2", "data.max_prompt_tokens")),
        ({"max_completion_tokens": 4}, ("a completion has 5 tokens", "limit is 4", "data.max_completion_tokens")),
        ({"context": 7}, ("prompt and completion have 8 tokens", "limit is 7")),
    ],
)
@pytest.mark.parametrize(("chosen", "rejected"), [("ddddd", "e"), ("e", "ddddd")])
def test_the_longer_completion_counts(
    limits: dict[str, int], parts: tuple[str, ...], chosen: str, rejected: str
) -> None:
    examples = [Example("ab", "x:1", "c", "d"), Example("abc", "x:2", chosen, rejected)]
    with pytest.raises(InputError) as caught:
        build(examples, **limits)
    message = str(caught.value)
    for part in (*parts, "x:2", "data.too_long=skip"):
        assert part in message
    assert "\n" not in message
    kept = build(examples, too_long=TooLong.skip, **limits)
    assert ([example.origin for example in kept.examples], len(kept), kept.skipped) == (["x:1"], 1, 1)


def test_texts_count_without_the_template_around_them() -> None:
    def within_template(example: Example) -> EncodedPair:
        return EncodedPair((0,) * 20, (0,) * 9, (0,) * 8, plain=(3, 2))

    def built(**options: Any) -> PairSet:
        limits = {"context": 29, "max_prompt_tokens": 3, "max_completion_tokens": 2} | options
        return PairSet.build(EXAMPLES, encoding_of(PADDING, **limits), within_template)

    assert len(built()) == 10
    with pytest.raises(InputError, match="prompt and completion have 29 tokens, and the limit is 28"):
        built(context=28)
    for key, tokens in (("max_prompt_tokens", 3), ("max_completion_tokens", 2)):
        with pytest.raises(InputError, match=rf"has {tokens} tokens.*data\.{key}"):
            built(**{key: tokens - 1})


def test_skipping_all_is_refused() -> None:
    with pytest.raises(InputError, match=r"none of the 10 pairs fits.*1 of a prompt, 7 of a completion, 1 to"):
        build(context=1, max_completion_tokens=7, too_long=TooLong.skip)


@pytest.mark.parametrize("example", [Example("a", "x:1"), Example("a", "x:1", chosen="b")])
def test_examples_without_a_pair_are_refused(example: Example) -> None:
    with pytest.raises(InputError, match=r"x:1 holds no pair.*data\.columns\.chosen and data\.columns\.rejected") as e:
        build([EXAMPLES[0], example], too_long=TooLong.skip)
    assert "\n" not in str(e.value)


def test_nothing_to_learn_from_ties_alone() -> None:
    ties = [Example("a", f"x:{row}", "b", "c", label=0.5) for row in range(3)]
    with pytest.raises(InputError, match="no preference in 3 pairs, all ties: nothing to learn") as caught:
        check_labels(ties)
    assert "\n" not in str(caught.value)
    check_labels([*ties, EXAMPLES[-1]])


@pytest.mark.parametrize("name", ["chat_tokenizer", "other_eos_tokenizer", "closing_tokenizer"])
def test_the_policy_reads_a_pair_as_it_samples(name: str, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue(name)
    system = "Be kind." if tokenizer.chat_template else None
    example = Example("Hello?", "x:1", "Yes.", "No!!")
    pair = encode_policy_pair(encoding_of(tokenizer, system_prompt=system))(example)
    assert list(pair.prompt) == encode_prompt(tokenizer, example, system)
    assert tokenizer.decode(pair.first) == "Yes.<|im_end|>"
    assert tokenizer.decode(pair.second) == "No!!<|im_end|>"
