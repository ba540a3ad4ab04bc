"""Feedback models of people's pairs, several seeds each, and what each chooses of a model's completions.

The pairs are split in two halves by prompt. The models that are compared learn from the labels of one half and are
tested on the other; the judges of their choices learn from that other half, which no compared model sees.
"""

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignrun.assessment.command import judge
from alignrun.config import ComparedPairs
from alignrun.errors import InputError
from alignrun.evaluation.comparisons import compare
from alignrun.evaluation.heldout import length_leads
from alignrun.evaluation.preference_quality import AssessedPairs, measure_quality
from alignrun.launch.compose import compose
from alignrun.preferences.base import Preference, Reward, build_preference
from alignrun.run.directory import write_text_atomic
from alignrun.types import Example
from studies.people_data import (
    ASKED,
    CANDIDATES,
    PEOPLE,
    TEMPERATURE,
    People,
    candidates,
    distinct,
    halves,
    pairs_in,
)
from studies.records import read, write
from studies.sampling import Sampled
from studies.training import Job, finish, labelled_pairs, metrics_of

MODEL = ("model=smollm2-135m",)
"""What all models start from."""


@dataclass(frozen=True, slots=True)
class Head:
    """A kind of feedback model."""

    label: str
    overrides: tuple[str, ...]
    preference: str
    """What asks it."""


HEADS = {
    "reward": Head("reward model", ("algo=reward_model",), "bradley_terry"),
    "pair": Head("preference model of both answers", ("algo=preference_model",), "learned"),
    "embedding": Head("preference model of embeddings", ("algo=preference_model", "algo.head=embedding"), "learned"),
}
JUDGE_SEED = 1000
"""Of the judges, one of each head; the compared models have others."""
TRAINING = (
    "optim.learning_rate=1e-3",
    "train.steps=32",
    "train.batch_size=8",
    "train.micro_batch_size=4",
    "train.checkpoint_every=0",
)
TRIPLES = 20
"""The most triples of answers to a prompt that are asked."""


def settings_of(people: People, model: Sequence[str]) -> dict[str, Any]:
    """All that the measurements of a data set depend on, except its rows."""
    return {
        "model": list(model),
        "limits": [people.prompt_tokens, people.completion_tokens],
        "training": list(TRAINING),
        "heads": {head: list(one.overrides) for head, one in HEADS.items()},
        "judge_seed": JUDGE_SEED,
        "asked": [ASKED, CANDIDATES, TEMPERATURE, TRIPLES],
    }


def digest(value: Any) -> str:
    """The SHA-256 of a JSON value."""
    return sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def contains(whole: Mapping[str, Any], part: Mapping[str, Any]) -> bool:
    """Whether all settings of a part are those of the whole."""
    return all(whole.get(key) == value for key, value in part.items())


def train(folder: Path, head: str, data: tuple[Path, Path], seed: int, at_once: int, model: Sequence[str]) -> float:
    """Train a feedback model on the first of two files, if it is not yet; the seconds that its steps took."""
    evaluation = ("evaluation.every=0", "data.eval_size=8")  # it is asked about all pairs afterwards
    own = (*HEADS[head].overrides, *TRAINING, *labelled_pairs(*data), *evaluation, f"seed={seed}")
    return finish(Job(folder, ("tracker=none", *own, *model)), at_once)


def trained(folder: Path, head: str) -> Preference:
    """What a finished run prefers."""
    return build_preference(compose([f"preference={HEADS[head].preference}", f"preference.path={folder}"]).preference)


def asked(preference: Preference, examples: Sequence[Example]) -> NDArray[np.float64]:
    """[N] P(chosen ≻ rejected) of every pair."""
    return judge(preference, examples, lambda _: None)[0]


def rounded(values: NDArray[np.float64]) -> list[Any]:
    """Probabilities as they are kept."""
    return np.round(values.astype(np.float64), 6).tolist()


def quality(preference: Preference, examples: Sequence[Example]) -> dict[str, Any]:
    """P(chosen ≻ rejected) of every pair, the log loss, and the share of intransitive triples with its interval."""
    probabilities = asked(preference, examples)
    ask = None if isinstance(preference, Reward) else partial(asked, preference)
    found = measure_quality(AssessedPairs(examples, probabilities, None), ask, TRIPLES, 0.95, 0)
    assert found is not None
    one = found.intransitivity
    return {
        "probabilities": rounded(probabilities),
        "log_loss": round(found.calibration.log_loss, 4),
        "intransitive": None if one is None else [*rounded(np.array([one.share, one.low, one.high])), one.triples],
    }


def table(preference: Preference, drawn: Sampled) -> NDArray[np.float64]:
    """[X, K, K] P between the candidates of each prompt."""
    return compare(preference, drawn.prompts, [drawn.texts], ComparedPairs.all)[:, 0, :, 0, :]


def choices(preference: Preference, drawn: Sampled) -> list[int]:
    """[X] the candidate with the highest mean P against the others of its prompt."""
    return [int(row) for row in table(preference, drawn).mean(2).argmax(1)]


def labels(pairs: Sequence[Example]) -> dict[str, Any]:
    """Of each pair: the number of its prompt, the share of people for `chosen`, and the sign of its lead in length.

    And how many different pairs there are.
    """
    numbers = {text: number for number, text in enumerate(dict.fromkeys(one.text for one in pairs))}
    return {
        "prompts": [numbers[one.text] for one in pairs],
        "labels": [round(one.label, 4) for one in pairs],
        "longer": [int(np.sign(lead)) for lead in length_leads(pairs)],
        "distinct": distinct(pairs),
    }


def judgments(
    judges: Mapping[str, Path], seen: Sequence[Example], tested: Sequence[Example], drawn: Sampled
) -> dict[str, Any]:
    """The labels of both halves, and what the judges say of the half that they have not seen and of the candidates."""
    answers, judged = {}, {}
    for head, own in judges.items():
        preference = trained(own, head)
        answers[head], judged[head] = rounded(asked(preference, seen)), rounded(table(preference, drawn))
    return {
        "seen": labels(seen),
        "tested": labels(tested),
        "lengths": [[len(text) for text in row] for row in drawn.texts],
        "judges": answers,
        "judged": judged,
    }


def measured(own: Path, head: str, tested: Sequence[Example], drawn: Sampled) -> dict[str, Any]:
    """What a finished run says of the half that it has not seen, and what it chooses."""
    preference = trained(own, head)
    return {
        "training_loss": round(float(np.mean([step["loss"] for step in metrics_of(own)[-8:]])), 4),
        **quality(preference, tested),
        "choices": choices(preference, drawn),
    }


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

    Raises InputError if `results` or `folder` has something else than these settings give, or for the judges' seed;
    RunError if a run fails.
    """
    if JUDGE_SEED in seeds:
        raise InputError(f"--seeds: {JUDGE_SEED} is the judges' seed: choose another")
    people, folder, file = PEOPLE[name], folder / name, results / f"{name}.json"
    texts = halves(people, path, model)
    settings = {**settings_of(people, model), "halves": [digest(text) for text in texts]}
    kept = folder / "settings.json"
    if kept.is_file() and read(kept) != settings:
        raise InputError(f"{folder} has runs on other data or settings: choose another one with --folder")
    if file.is_file() and not contains(read(file)["settings"], settings):
        raise InputError(f"{file} is of other data or settings: choose another folder with --results")
    files = first, second = folder / "first.jsonl", folder / "second.jsonl"
    write(kept, settings)
    for half, text in zip(files, texts, strict=True):
        write_text_atomic(half, text)
    seen, tested = pairs_in(first), pairs_in(second)
    drawn = candidates(people, tested, folder, model)
    settings |= {"candidates": digest(drawn.texts)}
    records = {(head, seed): results / f"{name}-{head}-{seed}.json" for seed in seeds for head in HEADS}
    for found, expected in ((file, settings), *((record, digest(settings)) for record in records.values())):
        if found.is_file() and read(found)["settings"] != expected:
            raise InputError(f"{found} is of other settings or completions: choose another folder with --results")
    models = {key: folder / f"{key[0]}-{key[1]}" for key, record in records.items() if not record.is_file()}
    judges = {} if file.is_file() else {head: folder / f"judge-{head}" for head in HEADS}
    jobs = [partial(train, own, head, (second, first), JUDGE_SEED, at_once, model) for head, own in judges.items()]
    jobs += [partial(train, own, head, (first, second), seed, at_once, model) for (head, seed), own in models.items()]
    with ThreadPoolExecutor(at_once) as pool:
        seconds = list(pool.map(lambda job: job(), jobs))
    if judges:
        write(file, {"settings": settings, **judgments(judges, seen, tested, drawn)})
    for ((head, seed), own), took in zip(models.items(), seconds[len(judges) :], strict=True):
        record = {"head": head, "seed": seed, "settings": digest(settings), "seconds": round(took)}
        write(records[head, seed], record | measured(own, head, tested, drawn))
