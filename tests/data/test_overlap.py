from alignrun.data.overlap import Seen
from alignrun.types import Example


def examples(name: str, *texts: str) -> list[Example]:
    return [Example(text, f"{name}:{line}") for line, text in enumerate(texts, 1)]


def overlap_notes(train: list[Example], heldout: list[Example]) -> list[str]:
    seen = Seen()
    for example in train:
        seen.add(example.text)
    return seen.notes(heldout)


def test_held_out_prompts_that_were_trained_on_are_counted_and_named() -> None:
    train = examples("train", "Tell me a joke.", "Name a river.", "Why?")
    heldout = examples("held", "tell me  a joke.", "Why?", "Name a sea.", " NAME a\nriver.", "Tell me a joke.")
    assert overlap_notes(train, heldout) == [
        "2 of 5 held-out prompts are trained on too: held:2, held:5",
        "2 of 5 held-out prompts differ from one that is trained on in case or spaces alone: held:1, held:4",
    ]
    assert overlap_notes(train, heldout[2:3]) == []


def test_no_more_than_three_are_named() -> None:
    train = examples("train", "a")
    assert overlap_notes(train, examples("held", *"AAAAA"))[0].endswith("held:1, held:2, held:3, ...")


def test_of_conversations_all_turns_count() -> None:
    turns = [Example(({"role": "system", "content": text}, {"role": "user", "content": "Why?"}), "x") for text in "ab"]
    assert overlap_notes(turns[:1], turns[1:]) == []
    assert len(overlap_notes(turns[:1], turns[:1])) == 1
