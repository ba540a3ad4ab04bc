"""The page and the figure of the study of styles, from its measurements alone."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from numpy.typing import NDArray
from trajectories import placed

from alignrun.games import CYC, best_response
from alignrun.run.directory import write_text_atomic
from studies.bootstrap import interval
from studies.methods import METHODS, TAU
from studies.records import read
from studies.style_game import (
    TABLE,
    Played,
    Shares,
    entropies,
    exploited,
    half_gaps,
    most_exploited,
    points,
    solved,
    win_rates_against,
    win_rates_between,
)
from studies.sweep import REFERENCE_SAMPLES, SAMPLES, TAUGHT, configuration
from studies.tables import Records, cost, head, held_out, labels_of, matrix, records_in, row, shown

STYLES = list(configuration().preference.styles)


@dataclass(frozen=True, slots=True)
class Measurements:
    """All that was measured."""

    reference: Shares
    """[X, 3] μ's shares of the styles on each prompt."""
    played: Mapping[str, Played]
    """method → what its runs play."""
    records: Records

    @property
    def trained(self) -> dict[str, Played]:
        """The methods that are compared: not the best responses to one of them."""
        return {name: one for name, one in self.played.items() if METHODS[name].against is None}


def load(results: Path) -> Measurements:
    """Read the folder of measurements."""
    counts = np.array(read(results / "reference.json")["counts"], dtype=float).sum(1)
    records = records_in(results)
    played = {
        name: Played(
            np.array([file["counts"] for file in found], dtype=float), np.array([file["kl"] for file in found])
        )
        for name, found in records.items()
    }
    return Measurements(counts / counts.sum(-1, keepdims=True), played, records)


def exactly(shares: Shares, reference: Shares) -> Played:
    """A solution as a method of one run whose shares are known; its KL is that of the styles."""
    ratio = np.log(np.maximum(shares, 1e-300)) - np.log(reference)
    return Played(np.stack([shares, shares], 1)[None], (shares * ratio).sum(-1)[None])


def rows(found: Measurements) -> Iterator[str]:
    """One line for each exact solution and each method, as Markdown."""
    ppo = found.played.get("ppo")
    exact = {name: exactly(shares, found.reference) for name, shares in points(found.reference, TAU).items()}
    trained = found.trained
    labels = {name: f"*{name}*" for name in exact} | {name: METHODS[name].label for name in trained}
    yield from head(
        "",
        "seeds",
        "shares of the styles",
        "wins against μ",
        "exploitable by at least",
        "less than PPO by at least",
        "half the duality gap",
        "entropy, nats",
        "KL, nats",
    )
    for name, one in {**exact, **trained}.items():
        yield row(
            labels[name],
            "" if name in exact else str(len(one.counts)),
            ", ".join(f"{share:.2f}" for share in one.shares.mean((0, 1))),
            shown(win_rates_against(one, found.reference)),
            shown(exploited(one)),
            "" if ppo is None or ppo is one else shown(exploited(ppo), -most_exploited(one)),
            shown(half_gaps(one, found.reference, TAU)),
            shown(entropies(one)),
            shown(one.kl),
        )


def responses(found: Measurements) -> Iterator[str]:
    """How often best responses that were trained against a method's policies beat them, seed by seed."""
    for name, target in ((name, METHODS[name].against) for name in found.played):
        if target is None or target not in found.played:
            continue
        seeds = [record["seed"] for record in found.records[target]]
        own = [place for place, record in enumerate(found.records[name]) if record["seed"] in seeds]
        paired = [seeds.index(found.records[name][place]["seed"]) for place in own]
        ours, theirs = found.played[name].shares[own], found.played[target].shares[paired]
        beats = shown(np.einsum("sxi,ij,sxj->sx", ours, TABLE, theirs))
        yield f"- A best response trained against {METHODS[target].label} beats it with {beats}."


def half_as_exploitable(found: Measurements) -> Iterator[str]:
    """The methods that are exploitable by less than half of PPO's, beyond the interval, as a sentence."""
    if "ppo" not in found.played:
        return
    ppo = exploited(found.played["ppo"])
    low = [METHODS[name].label for name, one in found.trained.items() if interval(most_exploited(one), -ppo / 2)[2] < 0]
    if low:
        yield f"Less than half as exploitable as PPO, beyond the interval: {', '.join(low)}."
        yield ""


def paths(records: Sequence[Mapping[str, Any]], width: int = 15) -> NDArray[np.float64]:
    """[steps, 1 + 3] KL and shares of the styles during training, averaged over seeds and the last few steps."""
    steps = np.mean([np.array(record["path"]).reshape(-1, 5)[:, 1:] for record in records], axis=0)
    sums = np.cumsum(np.vstack([np.zeros(steps.shape[1]), steps]), 0)
    ends = np.arange(1, len(steps) + 1)
    starts = np.maximum(0, ends - width)
    averaged: NDArray[np.float64] = (sums[ends] - sums[starts]) / (ends - starts)[:, None]
    return averaged


def draw(path: Path, found: Measurements) -> None:
    """The way of each method through the triangle of styles, and its win rate against μ by its KL."""
    from matplotlib.figure import Figure

    solutions = points(found.reference, TAU)
    with mpl.rc_context({"svg.hashsalt": "styles", "font.size": 9, "svg.fonttype": "none"}):
        figure = Figure(figsize=(12, 5.6), layout="constrained")
        triangle, frontier = figure.subplots(1, 2)
        edge = placed(torch.eye(3)[[0, 1, 2, 0]].unbind())
        triangle.plot(*edge.T.tolist(), color="0.7", linewidth=0.8)
        for name, (x, y), side in zip(STYLES, edge.tolist(), ("right", "left", "center"), strict=False):
            triangle.text(x, y + (0.02 if y else -0.05), name, ha=side)
        for number, (name, final) in enumerate(found.trained.items()):
            colour, label = f"C{number % 10}", METHODS[name].label
            line = "-" if number < 10 else "--"
            steps = paths(found.records[name])
            end = placed([torch.tensor(final.shares.mean((0, 1)))])[0]
            triangle.plot(*end.tolist(), "o", color=colour, markersize=5, label=label)
            place = np.sqrt(final.kl.mean()), win_rates_against(final, found.reference).mean()
            frontier.plot(*place, "o", color=colour, markersize=5)
            if len(steps):
                way = placed(torch.tensor(steps[:, 1:]).unbind())
                triangle.plot(*way.T.tolist(), line, color=colour, linewidth=0.8)
                wins = steps[:, 1:] @ TABLE @ found.reference.mean(0)
                frontier.plot(np.sqrt(np.maximum(steps[:, 0], 0)), wins, line, color=colour, linewidth=0.8)
        for (name, shares), mark in zip(solutions.items(), ("k+", "kx", "k1", "kD", "ks", "k*"), strict=True):
            spot = placed([torch.tensor(shares.mean(0))])[0]
            triangle.plot(*spot.tolist(), mark, markersize=8, label=name, linestyle="none")
            known = exactly(shares, found.reference)
            frontier.plot(
                np.sqrt(known.kl.mean()), win_rates_against(known, found.reference).mean(), mark, markersize=8
            )
        best = [
            exactly(
                solved(found.reference, lambda game, tau=tau: best_response(game, game.reference, tau)), found.reference
            )
            for tau in np.geomspace(0.02, 2, 40)
        ]
        reached = [(np.sqrt(one.kl.mean()), win_rates_against(one, found.reference).mean()) for one in best]
        frontier.plot(*zip(*reached, strict=True), color="0.6", linewidth=0.8, label="the most that a KL can win")
        frontier.set(xlabel="√KL(π‖μ), √nats", ylabel="win rate against μ")
        triangle.set_aspect("equal")
        triangle.axis("off")
        figure.legend(loc="outside lower center", ncols=5, frameon=False, fontsize=8)
        figure.savefig(path, format="svg", metadata={"Date": None})


HEADER = """\
# Methods on a game that texts play

Written by `python scripts/study.py write` from the measurements in `docs/styles/`. Each method trains a language model
on eight prompts until its schedule ends, from several seeds. This is about where optimisation ends, not about
generalisation. The model is a student of SmolLM2-135M-Instruct: 1.1 million weights, trained on {taught} of its
completions of each prompt, so that a run takes minutes on one core. LoRA, sampling and losses are those of any run.

A completion plays the style that published measures find strongest in it, and styles play the game CYC:
{game}.
`preference=styles` is constructed to be intransitive; nobody's taste is claimed to be. It depends on the styles alone,
so the exact end points follow from μ's shares of the styles, counted on {reference} completions of each prompt, and a
policy's exploitability from its own shares, counted on {samples}.

- *Exploitable by at least*: the style that exploits a policy is chosen on one half of its completions and tried on the
  other. *Less than PPO by at least*: this bound of PPO's, minus the method's own from above, which chooses and tries
  the style on the same completions.
- *Half the duality gap* at τ = {tau}: what a best response gains, KL included, plus what the KL costs.
- Intervals are 95% bootstraps over prompts and seeds, over prompts alone where there is one seed. They take μ's shares
  as known, and are narrow for three seeds. The first rows, in italics, are exact solutions for μ's shares.

```
python scripts/study.py teach --folder runs/styles
python scripts/study.py run --folder runs/styles {overrides}
```

"""


def write(results: Path) -> None:
    """Write RESULTS.md and RESULTS.svg next to the folder of measurements."""
    found = load(results)
    page, figure = results.with_suffix(".md"), results.with_suffix(".svg")
    draw(figure, found)
    wins = "; ".join(
        f"{STYLES[first]} beats {STYLES[second]} with {float(CYC.preferences[first, second]):.1f}"
        for first, second in ((0, 1), (1, 2), (2, 0))
    )
    lines = [
        HEADER.format(
            game=wins,
            tau=TAU,
            taught=TAUGHT,
            reference=REFERENCE_SAMPLES,
            samples=SAMPLES,
            overrides=shlex.join(read(results / "reference.json")["overrides"]),
        ).rstrip(),
        "",
        *rows(found),
        "",
        *half_as_exploitable(found),
        cost(found.records),
        "",
        "Paths are those of the completions that were trained on, averaged over prompts and 15 steps; Nash-MP draws",
        "them at temperature 2. Dots are the policies of the table. DPO and IPO learn from pairs and have no path.",
        "",
        f"![The way of each method through the styles, and its win rate by its KL]({figure.name})",
        "",
        "## Against each other",
        "",
        "P(row ≻ column), bold where the interval leaves out ½.",
        "",
        *matrix(labels_of(found.trained), lambda one, other: win_rates_between(found.played[one], found.played[other])),
        "",
        *responses(found),
        "",
        "## By measures that no method saw",
        "",
        "How often a completion takes up more of the prompt's words (relevance), or has a richer vocabulary",
        "(diversity), than one of μ.",
        "",
        *held_out({name: found.records[name] for name in found.trained}),
        "",
    ]
    write_text_atomic(page, "\n".join(lines))
    print(page)
