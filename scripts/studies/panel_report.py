"""The page of the study of a panel, from its measurements alone."""

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from alignrun.run.directory import write_text_atomic
from studies.methods import METHODS, TAU
from studies.panel_game import (
    SOLVED,
    Judged,
    Measures,
    cyclic,
    exploited,
    games,
    half_gaps,
    in_votes,
    solutions,
    win_rates_against,
    win_rates_between,
)
from studies.records import read
from studies.sweep import REFERENCE_SAMPLES, SAMPLES, configuration, panel_of
from studies.tables import Records, cost, head, held_out, labels_of, matrix, records_in, row, shown


@dataclass(frozen=True, slots=True)
class Measurements:
    """All that was measured."""

    overrides: list[str]
    members: list[str]
    reference: Measures
    """[X, K, M] of μ's completions."""
    judged: Mapping[str, Judged]
    """method → the completions of its runs."""
    records: Records

    @property
    def pool(self) -> Measures:
        """[X, L, M] all completions that there are, of μ and of every run."""
        runs = [run for one in self.judged.values() for run in one.measures]
        return np.concatenate([self.reference, *runs], 1)


def load(results: Path) -> Measurements:
    """Read the folder of measurements."""
    reference, records = read(results / "reference.json"), records_in(results)
    members = panel_of(configuration(*reference["overrides"]))
    judged = {
        name: Judged(
            np.stack([in_votes(file["scores"], members) for file in found]), np.array([file["kl"] for file in found])
        )
        for name, found in records.items()
    }
    scores = in_votes(reference["scores"], members)
    return Measurements(reference["overrides"], list(members), scores, judged, records)


def solved(found: Measurements) -> Iterator[str]:
    """What could be won and lost without training, as Markdown."""
    played = games(found.reference)
    yield f"Of the triples of completions, {shown(cyclic(played))} are cyclic."
    yield ""
    yield from head("", "wins against μ", "beaten by the equilibrium", "exploitability", "KL, nats")
    for name, one in solutions(played, TAU).items():
        yield row(name, shown(one.wins), shown(one.beaten), shown(one.exploitability), shown(one.kl))


def trained(found: Measurements) -> Iterator[str]:
    """One line for each method."""
    yield from head(
        "",
        "seeds",
        "wins against μ",
        "exploitable by at least",
        "less than PPO, by the same completions",
        "half the duality gap, at least",
        "KL, nats",
    )
    losses = {name: exploited(one, found.pool) for name, one in found.judged.items()}
    for name, one in found.judged.items():
        yield row(
            METHODS[name].label,
            len(one.kl),
            shown(win_rates_against(one, found.reference)),
            shown(losses[name]),
            "" if name == "ppo" or "ppo" not in losses else shown(losses["ppo"], -losses[name]),
            shown(half_gaps(one, found.reference, TAU)),
            shown(one.kl),
        )


HEADER = """\
# Methods on a panel of three measures

Written by `python scripts/study.py write --results docs/panel` from the measurements in that folder. The prompts, the
student, the methods and their settings are those of [styles.md](styles.md); the preference is another one. A completion
is preferred to another with the probability that most members of a panel are for it. The members are published
measures, {members}. Each is transitive; their majority is not.
"""
SOLVED_BEFORE = """\
## Without training

{solved} of μ's completions of each prompt are the actions of a game that is solved exactly: for the equilibrium at
τ = {tau}, for RLHF at the same τ, and for RLHF at the τ that has the KL of the equilibrium. Exploitability is that by
the best of these completions.
"""
TRAINED = """\
## Trained

```
python scripts/study.py run --folder runs/panel --results docs/panel {overrides}
```

- *Exploitable by at least*: of all completions, those of μ ({reference} of each prompt) and of every run ({samples}),
  the one that most often beats half of a policy's is tried on the other half.
- *Half the duality gap* at τ = {tau}: at least what a tilt of μ's completions gains, its KL included, plus what the
  policy's own KL costs.
- Intervals are 95% bootstraps over prompts and seeds. They take the completions as given.
"""


def write(results: Path) -> None:
    """Write RESULTS.md next to the folder of measurements."""
    found = load(results)
    page = results.with_suffix(".md")
    lines = [
        HEADER.format(members=", ".join(found.members)),
        SOLVED_BEFORE.format(solved=SOLVED, tau=TAU),
        *solved(found),
        "",
        TRAINED.format(overrides=shlex.join(found.overrides), reference=REFERENCE_SAMPLES, samples=SAMPLES, tau=TAU),
        *trained(found),
        "",
        cost(found.records),
        "",
        "## Against each other",
        "",
        "P(row ≻ column), bold where the interval leaves out ½.",
        "",
        *matrix(labels_of(found.judged), lambda one, other: win_rates_between(found.judged[one], found.judged[other])),
        "",
        "## By measures that no method saw",
        "",
        "How often a completion takes up more of the prompt's words (relevance), or has a richer vocabulary",
        "(diversity), than one of μ.",
        "",
        *held_out(found.records),
        "",
    ]
    write_text_atomic(page, "\n".join(lines))
    print(page)
