"""The page and the figure of the study of styles, from its measurements alone."""

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from numpy.typing import NDArray

from alignrun.games import CYC, best_response
from alignrun.run.directory import write_text_atomic
from studies.bootstrap import interval
from studies.methods import AGAINST_MU, METHODS, TAU
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
from studies.triangle import placed


@dataclass(frozen=True, slots=True)
class Measurements:
    """All that was measured."""

    overrides: list[str]
    """The settings of all runs."""
    styles: list[str]
    """Their names."""
    reference: Shares
    """[X, 3] μ's shares of the styles on each prompt."""
    exact: Mapping[str, Played]
    """The exact solutions for these shares."""
    played: Mapping[str, Played]
    """method → what its runs play."""
    records: Records


def load(results: Path) -> Measurements:
    """Read the folder of measurements."""
    reference = read(results / "reference.json")
    counts = np.array(reference["counts"], dtype=float).sum(1)
    records = records_in(results)
    played = {
        name: Played(
            np.array([file["counts"] for file in found], dtype=float), np.array([file["kl"] for file in found])
        )
        for name, found in records.items()
    }
    overrides, shares = reference["overrides"], counts / counts.sum(-1, keepdims=True)
    return Measurements(
        overrides,
        list(configuration(*overrides).preference.styles),
        shares,
        {name: exactly(solution, shares) for name, solution in points(shares, TAU).items()},
        played,
        records,
    )


def exactly(shares: Shares, reference: Shares) -> Played:
    """A solution as a method of one run whose shares are known; its KL is that of the styles."""
    ratio = np.log(np.maximum(shares, 1e-300)) - np.log(reference)
    return Played(np.stack([shares, shares], 1)[None], (shares * ratio).sum(-1)[None])


def rows(found: Measurements) -> Iterator[str]:
    """One line for each exact solution and each method, as Markdown."""
    ppo = found.played.get("ppo")
    trained = compared(found.played)
    labels = {name: f"*{name}*" for name in found.exact} | {name: METHODS[name].label for name in trained}
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
    for name, one in {**found.exact, **trained}.items():
        yield row(
            labels[name],
            "" if name in found.exact else str(len(one.counts)),
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
    low = [
        METHODS[name].label
        for name, one in compared(found.played).items()
        if interval(most_exploited(one), -ppo / 2)[2] < 0
    ]
    if low:
        yield f"Less than half as exploitable as PPO, beyond the interval: {', '.join(low)}."
        yield ""


def pathless(found: Measurements) -> Iterator[str]:
    """The methods without a path, as a sentence."""
    if names := [METHODS[name].label for name in compared(found.records) if not len(paths(found.records[name]))]:
        yield f"Without a path, since they learn from labelled pairs or a model of these: {'; '.join(names)}."


def paths(records: Sequence[Mapping[str, Any]], width: int = 15) -> NDArray[np.float64]:
    """[steps, 1 + 3] KL and shares of the styles during training, averaged over seeds and the last few steps."""
    steps = np.mean([np.array(record["path"]).reshape(-1, 5)[:, 1:] for record in records], axis=0)
    sums = np.cumsum(np.vstack([np.zeros(steps.shape[1]), steps]), 0)
    ends = np.arange(1, len(steps) + 1)
    starts = np.maximum(0, ends - width)
    averaged: NDArray[np.float64] = (sums[ends] - sums[starts]) / (ends - starts)[:, None]
    return averaged


COLOURS = {True: "C1", False: "C0"}
"""Of the methods whose opponent is μ, and of those whose opponent moves."""
SOLUTIONS = {"equilibrium": "k*", "RLHF on the win rate": "ks", "μ": "k+"}
"""The exact solutions of the figures, and their marks."""


def _figure(
    path: Path, width: float, height: float, rows: int, columns: int, fill: Callable[[list[Any]], object]
) -> None:
    """Draw into the axes of a figure, and save it so that the same numbers give the same file."""
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.hashsalt": "styles", "font.size": 8, "svg.fonttype": "none"}):
        figure = Figure(figsize=(width, height), layout="constrained")
        fill(np.ravel(figure.subplots(rows, columns)).tolist())
        figure.savefig(path, format="svg", metadata={"Date": None})


def draw_triangles(path: Path, found: Measurements) -> None:
    """A triangle of the styles for each method, with the path of its training and the ends of its runs."""
    methods, edge = compared(found.played), placed(torch.eye(3)[[0, 1, 2, 0]].unbind())

    def fill(axes: list[Any]) -> None:
        for axis in axes:
            axis.set_aspect("equal")
            axis.axis("off")
        for axis, (name, final) in zip(axes, methods.items(), strict=False):
            colour, steps = COLOURS[name in AGAINST_MU], paths(found.records[name])
            axis.plot(*edge.T.tolist(), color="0.7", linewidth=0.8)
            for style, (x, y) in zip(found.styles, edge.tolist(), strict=False):
                axis.text(x, y + (0.03 if y else -0.1), style, ha="center", fontsize=6, color="0.4")
            for solution, mark in SOLUTIONS.items():
                axis.plot(*_spot(found.exact[solution].shares.mean((0, 1))), mark, markersize=6)
            if len(steps):
                axis.plot(*placed(torch.tensor(steps[:, 1:]).unbind()).T.tolist(), color=colour, linewidth=0.8)
            for shares in final.shares.mean(1):
                axis.plot(*_spot(shares), "o", color=colour, markersize=4)
            axis.set_title(METHODS[name].label, fontsize=8, pad=10)

    rows = -(-len(methods) // 5)
    _figure(path, 12, 2.4 * rows, rows, 5, fill)


def draw_frontier(path: Path, found: Measurements) -> None:
    """Each method's win rate against μ and its exploitability, by its KL."""
    methods = compared(found.played)
    best = [
        exactly(
            solved(found.reference, lambda game, tau=tau: best_response(game, game.reference, tau)), found.reference
        )
        for tau in np.geomspace(0.02, 2, 40)
    ]

    def fill(axes: list[Any]) -> None:
        for axis, measure, title in (
            (axes[0], lambda one: win_rates_against(one, found.reference), "win rate against μ"),
            (axes[1], exploited, "exploitable by at least"),
        ):
            places = {name: (np.sqrt(one.kl.mean()), measure(one).mean()) for name, one in methods.items()}
            for fixed, label in ((True, "opponent: μ"), (False, "opponent: the policy as it learns")):
                dots = [place for name, place in places.items() if (name in AGAINST_MU) is fixed]
                axis.plot(*np.reshape(dots, (-1, 2)).T, "o", color=COLOURS[fixed], markersize=4, label=label)
            for name in _legible(places):
                axis.annotate(METHODS[name].label, places[name], (4, 3), textcoords="offset points", fontsize=6)
            for name, mark in SOLUTIONS.items():
                axis.plot(
                    np.sqrt(found.exact[name].kl.mean()),
                    measure(found.exact[name]).mean(),
                    mark,
                    markersize=6,
                    label=name,
                )
            axis.set(xlabel="√KL(π‖μ), √nats", ylabel=title)
        reached = [(np.sqrt(one.kl.mean()), win_rates_against(one, found.reference).mean()) for one in best]
        axes[0].plot(*zip(*reached, strict=True), color="0.6", linewidth=0.8, label="the most that a KL can win")
        axes[0].legend(frameon=False)

    _figure(path, 12, 4.5, 1, 2, fill)


def _legible(places: Mapping[str, tuple[float, float]]) -> list[str]:
    """Those of the dots that can be labelled without writing over another label: the first of every cluster."""
    size = np.ptp(list(places.values()), 0) * (0.3, 0.04)
    written: list[str] = []
    for name, place in places.items():
        if all((np.abs(np.subtract(place, places[other])) > size).any() for other in written):
            written.append(name)
    return written


def _spot(shares: NDArray[np.float64]) -> list[float]:
    """Where shares of the styles lie in the triangle."""
    place: list[float] = placed([torch.tensor(shares)])[0].tolist()
    return place


HEADER = """\
# Methods on a game that texts play

Written by `python scripts/study.py write` from the measurements in `docs/{name}/`. Each method trains a language model
on eight prompts, with one to three seeds. This is about optimisation, not about generalisation. The model is a student
of SmolLM2-135M-Instruct: 1.1 million weights, trained on {taught} of its completions of each prompt, so that a run
takes minutes on one core. LoRA, sampling and losses are those of any run.

The style of a completion is the one whose published measure is highest, standardised. Styles beat each other in a
cycle, the game CYC:
{game}.

`preference=styles` is constructed to be intransitive, and claims to be nobody's taste. The prompts are the eight of 32
on which the shares of the styles were nearest to 0.5, 0.3 and 0.2, and the measures are centred so that μ, the student
before training, has about these shares. The preference depends on the styles alone. So the exact solutions follow from
μ's shares, counted on {reference} completions of each prompt, and a policy's exploitability from its own, counted on
{samples}.

- *Shares* are those of {styles}, in this order.
- *Wins against μ* is P(π ≻ μ). *Entropy* is that of the styles, log 3 = 1.099 at most.
- *Exploitable by* 0.1: some style wins 0.6 against the policy. The lower bound chooses the style on one half of the
  completions and tries it on the other.
- *Less than PPO by at least*: PPO's lower bound minus an upper bound of the method's, for which the style is chosen and
  tried on the same completions. A negative value shows nothing: it does not say that the method is more exploitable.
- *Half the duality gap*: max over ρ of P(ρ ≻ π) − τ KL(ρ‖μ), plus τ KL(π‖μ), minus ½; 0 at the equilibrium. τ = {tau}
  weighs the KL in every objective; β is the share of μ in the opponent of Nash-MD and IPO-MD.
- *KL*: of whole completions; for the exact solutions, of the styles alone, the least with which they can be played.

{caveat} They take μ's shares as known.
The first rows of the table, in italics, are exact solutions for μ's shares.

A student differs between machines, and so do the settings that `teach` prints. Here they were:

```
python scripts/study.py teach --folder runs/styles
python scripts/study.py run --folder runs/styles --results runs/results {overrides}
python scripts/study.py write --results runs/results
```

`--methods` and `--seeds` choose what is trained.
"""


def write(results: Path) -> None:
    """Write RESULTS.md and RESULTS.svg next to the folder of measurements."""
    found = load(results)
    page, triangles, frontier = (next_to(results, suffix) for suffix in (".md", ".svg", "-frontier.svg"))
    draw_triangles(triangles, found)
    draw_frontier(frontier, found)
    game = "; ".join(
        f"{found.styles[first]} beats {found.styles[second]} with {float(CYC.preferences[first, second]):.1f}"
        for first, second in ((0, 1), (1, 2), (2, 0))
    )
    lines = [
        HEADER.format(
            name=results.name,
            game=game,
            styles=", ".join(found.styles),
            tau=TAU,
            taught=TAUGHT,
            caveat=CAVEAT,
            reference=REFERENCE_SAMPLES,
            samples=SAMPLES,
            overrides=shlex.join(found.overrides),
        ).rstrip(),
        "",
        *rows(found),
        "",
        *half_as_exploitable(found),
        cost(found.records),
        "",
        "## Where they go",
        "",
        "A line is the path of the completions that were trained on, averaged over prompts, seeds and 15 steps.",
        "Nash-MP draws them at temperature 2. A dot is the end of one run. Orange methods have μ as their opponent,",
        "blue ones the policy as it learns. The star is the equilibrium, the square RLHF on the win rate, the cross μ.",
        *pathless(found),
        "",
        f"![The path of each method through the triangle of styles]({triangles.name})",
        "",
        f"![Each method's win rate and exploitability, by its KL]({frontier.name})",
        "",
        "Where dots lie close together, only the first has its name; the table has the numbers of all.",
        "",
        *between_methods(
            compared(found.played), lambda one, other: win_rates_between(found.played[one], found.played[other])
        ),
        "",
        *responses(found),
        "",
        *held_out(compared(found.records)),
        "",
    ]
    write_text_atomic(page, "\n".join(lines))
    print(page)
