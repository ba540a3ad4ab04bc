"""The page of the study of people's preferences, from its measurements alone."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignrun.errors import InputError
from alignrun.run.directory import write_text_atomic
from studies.people import CANDIDATES, HEADS, PEOPLE, TRAINING
from studies.records import read
from studies.tables import CAVEAT, head, matrix, next_to, row, shown

Scores = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Measurements:
    """What was measured on one data set."""

    data: dict[str, Any]
    """The labels, the judges, and P between the candidates."""
    models: dict[str, Sequence[dict[str, Any]]]
    """head → its models, by seed."""

    @property
    def decided(self) -> NDArray[np.bool_]:
        """[N] whether more people are for one of the two."""
        return np.array(self.data["labels"]) != 0.5

    @property
    def weights(self) -> Scores:
        """[X] the decided pairs of each prompt that has any."""
        counts = np.bincount(np.array(self.data["prompts"])[self.decided])
        return counts[counts > 0].astype(float)

    def by_prompt(self, values: Scores) -> Scores:
        """[..., X] the means of [..., N] over the decided pairs of each prompt."""
        prompts = np.unique(np.array(self.data["prompts"])[self.decided], return_inverse=True)[1]
        kept = values[..., self.decided]
        sums = np.zeros((*kept.shape[:-1], len(self.weights)))
        np.add.at(sums, (..., prompts), kept)
        means: Scores = sums / self.weights
        return means

    def accuracy(self, head: str) -> Scores:
        """[S, X] how often its models are right."""
        return self.by_prompt(right(np.array([model["probabilities"] for model in self.models[head]]) - 0.5))

    @property
    def longer(self) -> Scores:
        """[X] how often the longer completion is right."""
        return self.by_prompt(right(np.array(self.data["longer"])))

    def choices(self, head: str) -> NDArray[np.int64]:
        """[S, X] the candidates that its models choose."""
        return np.array([model["choices"] for model in self.models[head]])

    def between(self, first: str, second: str) -> Scores:
        """[S, S', X] P of the judges that the first's choice is preferred to the second's."""
        judged = np.array(self.data["judged"])
        ours, theirs = self.choices(first)[:, None], self.choices(second)[None]
        found: Scores = judged[np.arange(judged.shape[0]), ours, theirs]
        return found

    def against_a_draw(self, head: str) -> Scores:
        """[S, X] P of the judges that the choice is preferred to another of the candidates."""
        judged = np.array(self.data["judged"])
        size = judged.shape[-1]
        against = (judged.sum(-1) - 0.5) / (size - 1)
        found: Scores = against[np.arange(len(against)), self.choices(head)]
        return found


def right(leads: Scores) -> Scores:
    """1 for a positive lead, 0 for a negative one, and a half for none."""
    scores: Scores = (np.sign(leads) + 1) / 2
    return scores


def load(results: Path, name: str) -> Measurements:
    """Read the files of a data set."""
    models = {head: [read(path) for path in sorted(results.glob(f"{name}-{head}-*.json"))] for head in HEADS}
    return Measurements(read(results / f"{name}.json"), {head: found for head, found in models.items() if found})


def table(found: Measurements) -> Iterator[str]:
    """How good each kind of model is, as Markdown."""
    yield from head(
        "", "seeds", "accuracy", "more than the longer answer", "log loss", "loss in training", "intransitive triples"
    )
    yield row("the longer answer", "", shown(found.longer, weights=found.weights), "", "", "", "")
    for name, models in found.models.items():
        accuracy = found.accuracy(name)
        triples = [model["intransitive"] for model in models if model["intransitive"]]
        yield row(
            HEADS[name].label,
            len(models),
            shown(accuracy, weights=found.weights),
            shown(accuracy, -found.longer, weights=found.weights),
            f"{np.mean([model['log_loss'] for model in models]):.3f}",
            f"{np.mean([model['training_loss'] for model in models]):.3f}",
            f"{np.mean([share for share, _ in triples]):.3f}, of {triples[0][1]}" if triples else "",
        )


def best_of_n(found: Measurements) -> Iterator[str]:
    """What the judges say of the choices."""
    judges = []
    for name, judge in found.data["judges"].items():
        decided = np.array(found.data["judge_labels"]) != 0.5
        accuracy = right(np.array(judge) - 0.5)[decided].mean()
        judges.append(f"the {HEADS[name].label} with {accuracy:.3f}")
    yield f"The judges' own accuracy, on the half that they have not seen: {', '.join(judges)}."
    yield ""
    labels = {name: HEADS[name].label for name in found.models}
    yield from matrix(labels, found.between)
    yield ""
    yield from head("", "preferred to another candidate")
    for name, label in labels.items():
        yield row(label, shown(found.against_a_draw(name)))


HEADER = """\
# Feedback models of people's preferences

Written by `python scripts/people.py write` from the measurements in `docs/{name}/`. SmolLM2-135M-Instruct learns from
people's pairs with three heads: a reward for each answer; a preference that reads both answers, in an order drawn for
each pair and step; and a preference of embeddings, which costs no more passes than a reward and can express cycles. The
prompts are split in halves by their hash: all models learn from the first half and are tested on the second.

Accuracy leaves ties out. A triple of answers is intransitive if they beat each other in a cycle; at most 20 triples of
a prompt are asked, and a reward has none. The loss in training is that of the last eight steps.

Best of {candidates}: of {candidates} completions of a prompt of the second half, each model chooses the one that wins
most against the others. Three models, one of each kind, judge the choices by their mean. They learned from the labels
of the second half, of which no compared model has seen any; their own accuracy is that on the first half. The tables
have P(row ≻ column), bold where the interval leaves out ½.

{caveat}

Settings: `{training}`

{heads}

```
{commands}
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
            commands="\n".join(
                f"python scripts/people.py run --people {name} --data {PEOPLE[name].file}" for name in names
            ),
        ).rstrip()
    ]
    for name in names:
        found, people = load(results, name), PEOPLE[name]
        first, second = found.data["settings"]["pairs"]
        hours = sum(model["seconds"] for models in found.models.values() for model in models) / 3600
        lines += [
            "",
            f"## {people.label}",
            "",
            f"Pairs whose prompt has at most {people.prompt_tokens} tokens and whose answers have at most "
            f"{people.completion_tokens}, and is one question: {first} to learn from, and {second} to be tested on, "
            f"which have {len(found.weights)} prompts with a decided pair. Training took {hours:.1f} hours.",
            "",
            *table(found),
            "",
            *best_of_n(found),
        ]
    page = next_to(results, ".md")
    write_text_atomic(page, "\n".join([*lines, ""]))
    print(page)
