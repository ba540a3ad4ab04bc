"""People's labelled pairs in two halves, and a model's completions of prompts of the second half."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from alignrun.data.loading import load_examples
from alignrun.launch.build import make_encoding
from alignrun.launch.compose import compose
from alignrun.run.directory import write_text_atomic
from alignrun.types import Example, as_turns
from studies.records import json_lines, read, write
from studies.sampling import Sampled, sample_reference
from studies.training import labelled_pairs

CANDIDATES, ASKED = 4, 32
"""Completions of each prompt that are chosen from, and prompts that are asked."""
TEMPERATURE = 0.7
"""Of these completions."""


@dataclass(frozen=True, slots=True)
class People:
    """A data set of labelled pairs, with the longest prompt and completion that are kept, in tokens."""

    label: str
    file: str
    """Its name where it is published."""
    data: str
    prompt_tokens: int
    completion_tokens: int


PEOPLE = {
    "pandalm": People("PandaLM's human test set", "pandalm_human_testset.json", "pandalm", 96, 64),
    "harmless": People("HH-RLHF, harmless base, test split", "harmless-base/test.jsonl.gz", "hh_rlhf", 64, 48),
}


def halves(people: People, path: Path, model: Sequence[str]) -> tuple[str, str]:
    """The pairs of one question and two answers that are short enough, in halves by a hash of the prompt, as JSONL."""
    data = (f"data={people.data}", f"data.path={path}", "data.eval_fraction=0.5", "data.eval_size=null")
    config = compose([*model, "algo=reward_model", *data])
    tokenizer, found = make_encoding(config).tokenizer, load_examples(config.data)
    limits = (people.prompt_tokens, people.completion_tokens, people.completion_tokens)

    def rows(examples: Sequence[Example]) -> Iterator[dict[str, object]]:
        for one in examples:
            texts = (one.text, str(one.chosen), str(one.rejected))
            lengths = [len(ids) for ids in tokenizer(list(texts))["input_ids"]]
            single = len(as_turns(one.prompt)) == 1 and not one.chosen_turns and not one.rejected_turns
            if single and all(length <= limit for length, limit in zip(lengths, limits, strict=True)):
                yield dict(zip(("prompt", "chosen", "rejected"), texts, strict=True)) | {"probability": one.label}

    return json_lines(rows(found.train)), json_lines(rows(found.heldout))


def pairs_in(half: Path) -> list[Example]:
    """The labelled pairs of a half."""
    config = compose(["algo=reward_model", *labelled_pairs(half, half), "data.eval_size=null"])
    return list(load_examples(config.data).heldout)


def distinct(pairs: Sequence[Example]) -> int:
    """How many pairs there are if those of the same prompt and answers count once."""
    return len({(one.text, frozenset((one.chosen, one.rejected))) for one in pairs})


def candidates(people: People, pairs: Sequence[Example], folder: Path, model: Sequence[str]) -> Sampled:
    """Completions of the first prompts of these pairs by the model that all start from, drawn once for a folder."""
    kept = folder / "candidates.json"
    if not kept.is_file():
        prompts = list(dict.fromkeys(one.text for one in pairs))[:ASKED]
        asked = folder / "prompts.jsonl"
        write_text_atomic(asked, json_lines({"prompt": prompt} for prompt in prompts))
        drawing = (
            "data=jsonl",
            f"data.path={asked}",
            f"data.eval_path={asked}",
            f"generation.max_new_tokens={people.completion_tokens}",
            f"generation.temperature={TEMPERATURE}",
        )
        sampled = sample_reference(compose([*model, *drawing]), CANDIDATES)
        write(kept, {"prompts": sampled.prompts, "texts": sampled.texts})
    drawn = read(kept)
    return Sampled(drawn["prompts"], drawn["texts"], np.zeros(len(drawn["prompts"])))
