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
    in_votes,
    most_exploited,
    solutions,
    win_rates_against,
    win_rates_between,
)
from studies.records import read
from studies.sweep import REFERENCE_SAMPLES, SAMPLES, configuration, panel_of
from studies.tables import (
    CAVEAT,
    Records,
    between_methods,
    compared,
    cost,
    head,
    held_out,
    next_to,
    records_in,
    row,
    shown,
)


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

    def pools(self) -> list[Measures]:
        """[X, L, M] the completions of μ with the first, and with the second halves of those of all runs."""
        runs = [run for one in self.judged.values() for run in one.measures]
        halves = [np.array_split(run, 2, 1) for run in runs]
        return [np.concatenate([self.reference, *half], 1) for half in zip(*halves, strict=True)]


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
    yield f"Of the triples of completions with different measures, a share of {shown(cyclic(played))} forms a cycle;"
    yield "three independent rankings would give 1/18."
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
        "less than PPO by at least",
        "KL, nats",
    )
    pools, methods = found.pools(), compared(found.judged)
    whole = np.concatenate(pools, 1)
    losses = {name: exploited(one, pools) for name, one in methods.items()}
    for name, one in methods.items():
        yield row(
            METHODS[name].label,
            len(one.kl),
            shown(win_rates_against(one, found.reference)),
            shown(losses[name]),
            "" if name == "ppo" or "ppo" not in losses else shown(losses["ppo"], -most_exploited(one, whole)),
            shown(one.kl),
        )


HEADER = """\
# Methods on a panel of three measures

Written by `python scripts/study.py write --results docs/{name}` from the measurements in that folder. The prompts, the
student, the methods and their settings are those of [styles.md](styles.md); the preference differs. A completion is
preferred to another with the probability that a majority of a panel votes for it. The members are published measures:
{members}. Each is transitive; their majority is not.
μ is the student before training, τ = {tau} weighs KL(π‖μ), and β is the share of μ in the opponent of Nash-MD.
"""
SOLVED_BEFORE = """\
## Without training

{solved} of μ's completions of each prompt are the actions of a game that is solved exactly: for the equilibrium, for
RLHF at the same τ, and for RLHF with τ chosen so that its KL equals the equilibrium's. Exploitability is that by the
best of these completions. A policy on these has a KL of at most log {solved} ≈ {bound:.1f} nats, if they are all
different; the trained policies are not bound by this.
"""
TRAINED = """\
## Trained

```
python scripts/study.py run --folder runs/panel --results runs/panel-results --methods {methods} {overrides}
python scripts/study.py write --results runs/panel-results
```

- *Exploitable by at least*: of the completions of μ ({reference} of each prompt) and of every run ({samples}), the one
  that most often beats half of a policy's is tried on the other half.
- *Less than PPO by at least*: PPO's bound minus the most that any of these completions wins against the method, chosen
  and tried on the same completions. Other texts may win more. A negative value shows nothing.

{caveat} They take the completions as given.
"""


def write(results: Path) -> None:
    """Write RESULTS.md next to the folder of measurements."""
    found = load(results)
    page = next_to(results, ".md")
    lines = [
        HEADER.format(name=results.name, tau=TAU, members=", ".join(found.members)),
        SOLVED_BEFORE.format(solved=SOLVED, bound=np.log(SOLVED)),
        *solved(found),
        "",
        TRAINED.format(
            methods=",".join(found.judged),
            overrides=shlex.join(found.overrides),
            reference=REFERENCE_SAMPLES,
            samples=SAMPLES,
            caveat=CAVEAT,
        ),
        *trained(found),
        "",
        cost(found.records),
        "",
        *between_methods(
            compared(found.judged), lambda one, other: win_rates_between(found.judged[one], found.judged[other])
        ),
        "",
        *held_out(compared(found.records)),
        "",
    ]
    write_text_atomic(page, "\n".join(lines))
    print(page)
