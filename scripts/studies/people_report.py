"""The page of the study of people's preferences, from its measurements alone."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignrun.errors import InputError
from alignrun.evaluation.calibration import label_entropy
from alignrun.run.directory import write_text_atomic
from studies.people import HEADS, MODEL, TRAINING, TRIPLES, contains, digest, settings_of
from studies.people_data import ASKED, CANDIDATES, PEOPLE, TEMPERATURE
from studies.records import read
from studies.tables import CAVEAT, head, matrix, next_to, row, shown

Scores = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Half:
    """The labelled pairs of a half."""

    prompts: NDArray[np.int64]
    """[N] the number of the prompt."""
    labels: Scores
    """[N] the share of people for `chosen`, ½ or more."""
    longer: Scores
    """[N] 1 if `chosen` is longer, −1 if it is shorter, 0 if neither."""
    distinct: int
    """Pairs if those with the same prompt and answers count once."""

    @property
    def decided(self) -> NDArray[np.bool_]:
        """[N] whether people are for one of the two."""
        return self.labels != 0.5

    @property
    def longer_is_worse(self) -> NDArray[np.bool_]:
        """[N] whether people are for the shorter one."""
        return self.decided & (self.longer < 0)

    def weights(self, of: NDArray[np.bool_]) -> Scores:
        """[X] how many of these pairs each prompt has that has any."""
        counts = np.bincount(self.prompts[of])
        return counts[counts > 0].astype(float)

    def by_prompt(self, values: Scores, of: NDArray[np.bool_]) -> Scores:
        """[..., X] the means of [..., N] over these pairs of each prompt that has any."""
        numbers = np.unique(self.prompts[of], return_inverse=True)[1]
        kept, weights = values[..., of], self.weights(of)
        sums = np.zeros((*kept.shape[:-1], len(weights)))
        np.add.at(sums, (..., numbers), kept)
        means: Scores = sums / weights
        return means

    def right(self, probabilities: Scores, of: NDArray[np.bool_]) -> Scores:
        """[..., X] how often P(chosen ≻ rejected) [..., N] is above ½ on these pairs; ½ counts half."""
        return self.by_prompt((np.sign(probabilities - 0.5) + 1) / 2, of)

    @property
    def longer_right(self) -> Scores:
        """[X] how often the longer answer is the better one; equal lengths count half."""
        return self.right((self.longer + 1) / 2, self.decided)

    def shown(self, *terms: Scores) -> str:
        """A sum of shares of the decided pairs, with its interval."""
        return shown(*terms, weights=self.weights(self.decided))


@dataclass(frozen=True, slots=True)
class Measurements:
    """What was measured on one data set."""

    data: dict[str, Any]
    """The labels, the judges, and P between the candidates."""
    models: dict[str, Sequence[dict[str, Any]]]
    """head → its models, by seed."""

    def half(self, name: str) -> Half:
        """The pairs that the compared models have `seen`, or are `tested` on."""
        one = self.data[name]
        labels, longer = np.array(one["labels"], dtype=float), np.array(one["longer"], dtype=float)
        return Half(np.array(one["prompts"]), labels, longer, one["distinct"])

    def probabilities(self, name: str) -> Scores:
        """[S, N] P(chosen ≻ rejected) of its models on the tested half."""
        return np.array([model["probabilities"] for model in self.models[name]])

    def judged(self, *left_out: str) -> Scores:
        """[X, K, K] P between the candidates: the mean of the judges, except those left out."""
        return np.mean([table for name, table in self.data["judged"].items() if name not in left_out], 0)

    def choices(self, name: str) -> NDArray[np.int64]:
        """[S, X] the candidates that its models choose."""
        return np.array([model["choices"] for model in self.models[name]])

    def between(self, first: str, second: str) -> Scores:
        """[S, S', X] P of the judges that the first's choice is preferred to the second's."""
        judged = self.judged()
        found: Scores = judged[np.arange(len(judged)), self.choices(first)[:, None], self.choices(second)[None]]
        return found


def against_another(judged: Scores, choices: NDArray[np.int64]) -> Scores:
    """[..., X] P that the choice [..., X] is preferred to another of the candidates, drawn at random."""
    against = (judged.sum(-1) - 0.5) / (judged.shape[-1] - 1)
    found: Scores = against[np.arange(len(against)), choices]
    return found


def load(results: Path, name: str) -> Measurements:
    """Read the files of a data set.

    Raises InputError for measurements under other settings than today's, of models measured with other settings or
    data, and of no models.
    """
    data = read(results / f"{name}.json")
    settings = data["settings"]
    if not contains(settings, settings_of(PEOPLE[name], MODEL)):
        raise InputError(f"{results}: {name}*.json are of other settings than today's: remove them, and measure again")
    models: dict[str, list[dict[str, Any]]] = {}
    for head_name in HEADS:
        for path in sorted(results.glob(f"{name}-{head_name}-*.json")):
            model = read(path)
            if model["settings"] != digest(settings):
                raise InputError(f"{path} was measured with other settings or data than {name}.json: remove it")
            models.setdefault(head_name, []).append(model)
    if not models:
        raise InputError(f"{results} has no models of {name}: `people.py run` trains them")
    return Measurements(data, models)


def accuracies(found: Measurements) -> Iterator[str]:
    """How often each kind of model is right."""
    half = found.half("tested")
    decided, worse = half.decided, half.longer_is_worse
    yield from head("", "seeds", "accuracy", "gain over the longer answer", "accuracy where the longer answer is worse")
    yield row("the longer answer", "", half.shown(half.longer_right), "", "0 by definition")
    for name in found.models:
        p = found.probabilities(name)
        accuracy = half.right(p, decided)
        yield row(
            HEADS[name].label,
            len(p),
            half.shown(accuracy),
            half.shown(accuracy, -half.longer_right),
            shown(half.right(p, worse), weights=half.weights(worse)) if worse.any() else "",
        )


def losses(found: Measurements) -> Iterator[str]:
    """How well each kind of model is calibrated, and how often it is intransitive."""
    yield from head("", "log loss", "training loss of the last 8 steps", "intransitive triples")
    yield row("the entropy of the labels", f"{label_entropy(found.half('tested').labels):.3f}", "", "")
    for name, models in found.models.items():
        triples = np.array([model["intransitive"] for model in models if model["intransitive"]])
        share = "none by construction" if name == "reward" else "no prompt has three answers"
        if len(triples):
            share = f"{triples[:, 0].mean():.3f} ({triples[:, 1].min():.3f} to {triples[:, 2].max():.3f})"
            share += f", of {triples[0, 3]:.0f}"
        tested, training = (np.mean([model[key] for model in models]) for key in ("log_loss", "training_loss"))
        yield row(HEADS[name].label, f"{tested:.3f}", f"{training:.3f}", share)


def judges(found: Measurements) -> Iterator[str]:
    """How often the judges are right on the half that they have not seen."""
    half = found.half("seen")
    yield from head("judge", "accuracy on the first half")
    yield row("the longer answer", half.shown(half.longer_right))
    answers = {name: np.array(values) for name, values in found.data["judges"].items()}
    for name, p in answers.items():
        yield row(HEADS[name].label, half.shown(half.right(p, half.decided)))
    yield row("the judges' mean", half.shown(half.right(np.mean(list(answers.values()), 0), half.decided)))


def best_of_n(found: Measurements) -> Iterator[str]:
    """What the judges say of the choices."""
    judged = found.judged()
    longest = np.array(found.data["lengths"]).argmax(1)
    best = judged.mean(2).argmax(1)
    yield from head("choice of", "P(choice ≻ another candidate)", "without the judge of the same kind")
    yield row("length: the longest", shown(against_another(judged, longest)), "")
    for name in found.models:
        choices = found.choices(name)
        by_others = against_another(found.judged(name), choices)
        yield row(HEADS[name].label, shown(against_another(judged, choices)), shown(by_others))
    yield row("the judges themselves", shown(against_another(judged, best)), "")


HEADER = """\
# Feedback models of people's preferences

Written by `python scripts/people.py write` from the measurements in `docs/{name}/`. SmolLM2-135M-Instruct learns from
pairs that people labelled, with LoRA and three kinds of head: a reward of each answer; a preference that reads both
answers; and a preference of embeddings, which costs no more passes than a reward and can express cycles. A hash of the
prompt splits the pairs into two halves. The compared models learn from the first half and are tested on the second.

- **Labels.** The label is the share of people who prefer an answer; a tie vote counts half. Pairs whose label is ½ are
  trained on, but excluded from accuracy. The longer answer has more characters. The intervals resample prompts and
  seeds, and do not cover the choice of the split.
- **Both answers at once.** This model reads each pair in both orders and averages the log-odds, so that
  P(a ≻ b) = 1 − P(b ≻ a).
- **Losses** include the pairs with label ½. A model that always answers ½ scores 0.693, and none scores less than the
  entropy of the labels. The training loss is that of 64 pairs, each before the step that learns from it.
- **Triples.** Three answers to a prompt are intransitive if they form a cycle, however narrow the preferences. Random
  answers would give a quarter. At most {triples} triples per prompt are tested. The range runs from the lowest to the
  highest bound of the seeds' own intervals.
- **Best of {candidates}.** SmolLM2-135M-Instruct answers each of the first {asked} prompts of the second half
  {candidates} times, at temperature {temperature} and cut at the limit below. Each model chooses the candidate with the
  highest mean P against the others. Three judges, one of each kind, score the choices by the mean of their
  probabilities. They were trained on the second half, whose labels no compared model has seen, with the same settings
  and one seed. The intervals treat the judges as fixed. Their accuracy is known on people's pairs, but not on
  completions of SmolLM2. A random choice scores ½. The judges' own choice is the best possible by construction.

{caveat}

Common settings: `{training}`.

{heads}

```
{commands}
python scripts/people.py write --results runs/people-results
```
"""


def write(results: Path) -> None:
    """Write RESULTS.md next to the folder of measurements."""
    names = [name for name in PEOPLE if (results / f"{name}.json").is_file()]
    if not names:
        raise InputError(f"no measurements in {results}: `people.py run` makes them")
    lines = [
        HEADER.format(
            training=" ".join(TRAINING),
            heads="\n".join(f"- {one.label}: `{' '.join(one.overrides)}`" for one in HEADS.values()),
            name=results.name,
            caveat=CAVEAT,
            candidates=CANDIDATES,
            asked=ASKED,
            temperature=TEMPERATURE,
            triples=TRIPLES,
            commands="\n".join(
                f"python scripts/people.py run --people {name} --data {PEOPLE[name].file} --results runs/people-results"
                for name in names
            ),
        ).rstrip()
    ]
    for name in names:
        found, people = load(results, name), PEOPLE[name]
        first, second = found.half("seen"), found.half("tested")
        models = [model for models in found.models.values() for model in models]
        hours = sum(model["seconds"] for model in models) / 3600
        lines += [
            "",
            f"## {people.label}",
            "",
            f"Pairs of answers of at most {people.completion_tokens} tokens to a single question of at most "
            f"{people.prompt_tokens}. First half: {counts(first)}. Second half: {counts(second)}. Summed over the "
            f"{len(models)} compared models, the steps took {hours:.1f} hours.",
            "",
            *accuracies(found),
            "",
            *losses(found),
            "",
            *judges(found),
            "",
            *best_of_n(found),
            "",
            "P(row ≻ column) between their choices, by all three judges, bold where the interval excludes ½:",
            "",
            *matrix({head_name: HEADS[head_name].label for head_name in found.models}, found.between),
        ]
    page = next_to(results, ".md")
    write_text_atomic(page, "\n".join([*lines, ""]))
    print(page)


def counts(half: Half) -> str:
    """How many pairs a half has, in words."""
    return (
        f"{len(half.labels)} pairs ({half.distinct} distinct) of {len(set(half.prompts))} prompts, of which "
        f"{half.decided.sum()} pairs of {len(half.weights(half.decided))} prompts are not ties"
    )
