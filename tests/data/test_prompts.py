import random
from collections import Counter
from typing import Any

import pytest
import torch
from helpers import encoding_of

from alignrun.config import TooLong
from alignrun.data.prompts import PromptSet
from alignrun.data.rendering import encode_prompt
from alignrun.errors import InputError
from alignrun.types import Example

WORDS = ("a", "bb", "ccc", "dddd", "eeeee", "ffffff", "ggggggg")


def build(tokenizer: Any, prompts: tuple[str, ...] = WORDS, **options: Any) -> PromptSet:
    examples = [Example(prompt, f"p.jsonl:{line}") for line, prompt in enumerate(prompts, 1)]
    return PromptSet.build(examples, encoding_of(tokenizer, **options))


def test_left_padding(plain_tokenizer: Any) -> None:
    (batch,) = build(plain_tokenizer, ("abc", "a")).all_batches(2)
    pad, bos = plain_tokenizer.pad_token_id, plain_tokenizer.bos_token_id
    a, b, c = (plain_tokenizer.convert_tokens_to_ids(letter) for letter in "abc")
    assert batch.input_ids.tolist() == [[bos, a, b, c], [pad, pad, bos, a]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1], [0, 0, 1, 1]]
    assert batch.texts == ("abc", "a")
    for tensor in (batch.input_ids, batch.attention_mask):
        assert (tensor.dtype, tensor.device.type) == (torch.int64, "cpu")


def test_every_batch_holds_its_own_prompts(chat_tokenizer: Any) -> None:
    prompts = build(chat_tokenizer, system_prompt="Be kind.")
    for step in range(6):
        batch = prompts.batch_at(step, 3)
        assert len(batch) == 3
        widths = batch.attention_mask.sum(dim=1)
        assert int(widths.max()) == batch.input_ids.shape[1]
        for text, ids, mask in zip(batch.texts, batch.input_ids, batch.attention_mask, strict=True):
            assert ids[mask.bool()].tolist() == encode_prompt(chat_tokenizer, Example(text, "x"), "Be kind.")


def test_no_pad_token_is_no_obstacle(plain_tokenizer: Any) -> None:
    plain_tokenizer.pad_token = None
    assert plain_tokenizer.pad_token_id is None
    (batch,) = build(plain_tokenizer, ("abc", "a")).all_batches(2)
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1], [0, 0, 1, 1]]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 20])
def test_batches_cut_one_stream_of_whole_epochs(plain_tokenizer: Any, size: int) -> None:
    prompts = build(plain_tokenizer)
    stream = [text for step in range(-(-28 // size)) for text in prompts.batch_at(step, size).texts][:28]
    assert stream == list(prompts.batch_at(0, 28).texts)
    for epoch in range(4):
        assert sorted(stream[7 * epoch : 7 * epoch + 7]) == sorted(WORDS)


def test_epochs_and_seeds_differ(plain_tokenizer: Any) -> None:
    orders = {build(plain_tokenizer, seed=seed).batch_at(epoch, 7).texts for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16  # of 5,040; two would agree by chance once in 42 choices of seeds


def test_every_place_is_equally_likely(plain_tokenizer: Any) -> None:
    prompts = build(plain_tokenizer)
    first = Counter(prompts.batch_at(epoch, 7).texts[0] for epoch in range(1400))
    assert all(200 - 66 < first[word] < 200 + 66 for word in WORDS)  # 5 standard deviations of 13.1


def test_a_step_depends_on_nothing_that_came_before(plain_tokenizer: Any) -> None:
    visited = build(plain_tokenizer)
    torch.manual_seed(0)
    random.seed(0)
    before = random.getstate(), torch.get_rng_state()
    walked = [visited.batch_at(step, 4) for step in range(10)]
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    random.seed(1)
    resumed = build(plain_tokenizer).batch_at(8, 4)
    assert resumed.texts == walked[8].texts
    assert torch.equal(resumed.input_ids, walked[8].input_ids)


def test_the_order_is_fixed_for_all_time(plain_tokenizer: Any) -> None:
    # A run resumed after an upgrade must see the prompts that it would have seen.
    order = [WORDS.index(text) for text in build(plain_tokenizer, seed=0).batch_at(0, 7).texts]
    assert order == [4, 1, 3, 5, 0, 6, 2]


@pytest.mark.parametrize(("size", "sizes"), [(3, [3, 3, 1]), (7, [7]), (50, [7])])
def test_evaluation_sees_every_prompt_once_in_order(plain_tokenizer: Any, size: int, sizes: list[int]) -> None:
    batches = list(build(plain_tokenizer).all_batches(size))
    assert [len(batch) for batch in batches] == sizes
    assert tuple(text for batch in batches for text in batch.texts) == WORDS


def test_a_prompt_of_exactly_the_limit_fits(plain_tokenizer: Any) -> None:
    assert len(build(plain_tokenizer, context=8)) == 7  # seven bytes and BOS


def test_a_longer_prompt_names_its_row_and_the_ways_out(plain_tokenizer: Any) -> None:
    with pytest.raises(InputError) as caught:
        build(plain_tokenizer, context=6)
    message = str(caught.value)
    for part in ("p.jsonl:6", "7 tokens", "limit is 6", "data.too_long=skip", "max_new_tokens", "max_prompt_tokens"):
        assert part in message
    assert "\n" not in message


def test_skipping_counts(plain_tokenizer: Any) -> None:
    prompts = build(plain_tokenizer, context=6, too_long=TooLong.skip)
    assert (prompts.texts, prompts.skipped) == (WORDS[:5], 2)
    assert build(plain_tokenizer).skipped == 0


def test_skipping_all_is_refused(plain_tokenizer: Any) -> None:
    with pytest.raises(InputError, match=r"none of the 7 prompts fits into the limit of 1 tokens.*max_prompt_tokens"):
        build(plain_tokenizer, context=1, too_long=TooLong.skip)
