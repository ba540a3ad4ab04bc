"""Feedback models of people's pairs, several seeds each, and what each chooses of a model's completions.

The prompts are split in two halves by their hash. The models that are compared learn from the labels of one half and
are tested on the other; the judges of their choices learn from that other half, which no compared model sees.
"""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignrun.assessment.command import judge
from alignrun.config import ComparedPairs
from alignrun.data.loading import load_examples
from alignrun.errors import InputError
from alignrun.evaluation.comparisons import compare
from alignrun.evaluation.heldout import length_leads
from alignrun.evaluation.preference_quality import AssessedPairs, measure_quality
from alignrun.launch.build import make_encoding
from alignrun.launch.compose import compose
from alignrun.preferences.base import Preference, Reward, build_preference
from alignrun.types import Example, as_turns
from studies.records import read, write
from studies.sampling import Sampled, sample_reference
from studies.training import Job, finish, labelled_pairs, metrics_of

MODEL = ("model=smollm2-135m",)
"""What all models start from."""
CANDIDATES, ASKED = 4, 32
"""Completions of each prompt that a model chooses from, and prompts that are asked."""


@dataclass(frozen=True, slots=True)
class People:
    """A data set of labelled pairs, with the longest prompt and completion that are kept, in tokens."""

    label: str
    file: str
    """Its name where it is published."""
    data: str
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Head:
    """A kind of feedback model."""

    label: str
    overrides: tuple[str, ...]
    preference: str
    """What asks it."""


PEOPLE = {
    "pandalm": People("PandaLM's human test set", "pandalm_human_testset.json", "pandalm", 96, 64),
    "harmless": People("HH-RLHF, harmless base, test split", "harmless-base/test.jsonl.gz", "hh_rlhf", 64, 48),
}
HEADS = {
    "reward": Head("reward model", ("algo=reward_model", "optim.learning_rate=2e-4"), "bradley_terry"),
    "pair": Head(
        "preference model of both answers",
        ("algo=preference_model", "algo.orders=random", "optim.learning_rate=1e-3"),
        "learned",
    ),
    "embedding": Head(
        "preference model of embeddings",
        ("algo=preference_model", "algo.head=embedding", "optim.learning_rate=1e-3"),
        "learned",
    ),
}
JUDGE_SEED = 1000
"""Of the judges, one of each head, who judge by their mean; no compared model starts from it."""
TRAINING = ("train.steps=32", "train.batch_size=16", "train.micro_batch_size=4", "train.checkpoint_every=0")


def split(people: People, path: Path, folder: Path, model: Sequence[str]) -> tuple[Path, Path]:
    """Write the pairs of one question and two answers that are short enough as two halves; their files."""
    data = (f"data={people.data}", f"data.path={path}", "data.eval_fraction=0.5", "data.eval_size=null")
    config = compose([*model, "algo=reward_model", *data])
    tokenizer, found = make_encoding(config).tokenizer, load_examples(config.data)
    files = folder / "first.jsonl", folder / "second.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    for file, examples in zip(files, (found.train, found.heldout), strict=True):
        rows = []
        for one in examples:
            if len(as_turns(one.prompt)) > 1:
                continue
            texts = (one.text, str(one.chosen), str(one.rejected))
            limits = (people.prompt_tokens, people.completion_tokens, people.completion_tokens)
            lengths = [len(ids) for ids in tokenizer(list(texts))["input_ids"]]
            if all(length <= limit for length, limit in zip(lengths, limits, strict=True)):
                rows.append(
                    dict(zip(("prompt", "chosen", "rejected"), texts, strict=True)) | {"probability": one.label}
                )
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return files


def train(folder: Path, head: str, data: tuple[Path, Path], seed: int, at_once: int, model: Sequence[str]) -> float:
    """Train a feedback model on the first of two files, if it is not yet; the seconds that its steps took."""
    own = (*HEADS[head].overrides, *TRAINING, *labelled_pairs(*data), "evaluation.every=0", f"seed={seed}")
    return finish(Job(folder, ("tracker=none", *own, *model)), at_once)


def trained(folder: Path, head: str) -> Preference:
    """What a finished run prefers."""
    return build_preference(compose([f"preference={HEADS[head].preference}", f"preference.path={folder}"]).preference)


def asked(preference: Preference, examples: Sequence[Example]) -> NDArray[np.float64]:
    """[N] P(chosen ≻ rejected) of every pair."""
    return judge(preference, examples, lambda _: None)[0]


def quality(preference: Preference, examples: Sequence[Example]) -> dict[str, Any]:
    """P(chosen ≻ rejected) of every pair, and the share of intransitive triples of answers to one prompt."""
    probabilities = asked(preference, examples)
    ask = None if isinstance(preference, Reward) else partial(asked, preference)
    found = measure_quality(AssessedPairs(examples, probabilities, None), ask, 20, 0.95, 0)
    assert found is not None
    triples = found.intransitivity
    return {
        "probabilities": rounded(probabilities),
        "log_loss": round(found.calibration.log_loss, 4),
        "intransitive": None if triples is None else [round(triples.share, 4), triples.triples],
    }


def rounded(values: NDArray[np.float64]) -> list[float]:
    """Probabilities as they are kept."""
    return [round(float(value), 6) for value in values]


def choices(preference: Preference, sampled: Sampled) -> list[int]:
    """[X] the candidate that wins most against the others of its prompt."""
    return [int(row) for row in _table(preference, sampled).mean(2).argmax(1)]


def _table(preference: Preference, sampled: Sampled) -> NDArray[np.float64]:
    """[X, N, N] P of the candidates of each prompt."""
    return compare(preference, sampled.prompts, [sampled.texts], ComparedPairs.all)[:, 0, :, 0, :]


def prepared(people: People, path: Path, folder: Path, model: Sequence[str]) -> tuple[Path, Path, Sampled]:
    """Split the pairs, and draw the completions that are chosen from."""
    first, second = split(people, path, folder, model)
    prompts = list(dict.fromkeys(json.loads(line)["prompt"] for line in second.read_text("utf-8").splitlines()))
    asked = folder / "prompts.jsonl"
    asked.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts[:ASKED]), encoding="utf-8")
    drawn = (
        "data=jsonl",
        f"data.path={asked}",
        f"data.eval_path={asked}",
        f"generation.max_new_tokens={people.completion_tokens}",
        "generation.temperature=0.7",
    )
    return first, second, sample_reference(compose([*model, *drawn]), CANDIDATES)


def pairs_in(file: Path) -> list[Example]:
    """The labelled pairs of a half."""
    config = compose(["algo=reward_model", *labelled_pairs(file, file), "data.eval_size=null"])
    return list(load_examples(config.data).heldout)


def run(
    name: str,
    path: Path,
    folder: Path,
    results: Path,
    seeds: Sequence[int],
    at_once: int,
    model: Sequence[str] = MODEL,
) -> None:
    """Train, ask and write what has no measurements yet.

    Args:
        name: of the data set, a key of PEOPLE.
        path: its file.
        folder: of the runs; what was interrupted there is resumed.
        results: the measurements: one file for the data and the judges, and one for each model.
        seeds: of the models.
        at_once: runs at a time.
        model: settings of what the models start from, and other settings for all of them.

    Raises InputError if `results` or `folder` has something else than these settings give, RunError if a run fails.
    """
    people, folder, file = PEOPLE[name], folder / name, results / f"{name}.json"
    first, second, sampled = prepared(people, path, folder, model)
    seen, tested = pairs_in(first), pairs_in(second)
    settings = {
        "model": list(model),
        "limits": [people.prompt_tokens, people.completion_tokens],
        "training": list(TRAINING),
        "heads": {head: list(one.overrides) for head, one in HEADS.items()},
        "pairs": [len(seen), len(tested)],
        "digests": [sha256(half.read_bytes()).hexdigest() for half in (first, second)],
        "candidates": sha256(json.dumps(sampled.texts).encode()).hexdigest(),
    }
    if file.is_file() and read(file)["settings"] != settings:
        raise InputError(f"{file} is of other data, settings or completions: choose another folder with --results")
    if not file.is_file():
        preferences = []
        for head in HEADS:
            train(folder / f"judge-{head}", head, (second, first), JUDGE_SEED, 1, model)
            preferences.append(trained(folder / f"judge-{head}", head))
        write(file, {"settings": settings, **_judged(preferences, seen, tested, sampled)})
    asking = Lock()

    def one(head: str, seed: int) -> None:
        own = folder / f"{head}-{seed}"
        seconds = train(own, head, (first, second), seed, at_once, model)
        with asking:
            preference = trained(own, head)
            record = {
                "head": head,
                "seed": seed,
                "seconds": round(seconds),
                "training_loss": round(float(np.mean([step["loss"] for step in metrics_of(own)[-8:]])), 4),
                **quality(preference, tested),
                "choices": choices(preference, sampled),
            }
        write(results / f"{name}-{head}-{seed}.json", record)

    waiting = [
        (head, seed) for seed in seeds for head in HEADS if not (results / f"{name}-{head}-{seed}.json").is_file()
    ]
    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(lambda named: one(*named), waiting))


def _judged(
    judges: Sequence[Preference], seen: Sequence[Example], tested: Sequence[Example], sampled: Sampled
) -> dict[str, Any]:
    """The labels of the second half, and what a judge of each head says of the first and of the candidates."""
    numbers = {text: number for number, text in enumerate(dict.fromkeys(one.text for one in tested))}
    return {
        "prompts": [numbers[one.text] for one in tested],
        "labels": [round(one.label, 4) for one in tested],
        "longer": [int(np.sign(lead)) for lead in length_leads(tested)],
        "judge_labels": [round(one.label, 4) for one in seen],
        "judges": {head: rounded(asked(one, seen)) for head, one in zip(HEADS, judges, strict=True)},
        "judged": np.mean([_table(one, sampled) for one in judges], 0).round(4).tolist(),
    }
