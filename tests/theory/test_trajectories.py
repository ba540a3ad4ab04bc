"""The map of docs/algorithms.md: every exact path ends where it says, and it lists what there is."""

import re
import runpy
from pathlib import Path

import pytest
import torch

from alignrun.algorithms.base import discover
from alignrun.games import CYC, duality_gap, exploitability
from alignrun.launch.compose import compose

SCRIPT = runpy.run_path(str(Path(__file__).parents[2] / "scripts/trajectories.py"))
PANELS = SCRIPT["panels"]()
PATHS = {one.label: one for panel in PANELS.values() for one in panel}


@pytest.mark.parametrize("label", [label for label, one in PATHS.items() if one.end is not None])
def test_a_method_ends_at_its_point(label: str) -> None:
    one = PATHS[label]
    assert (one.policies[0] == CYC.reference).all()
    assert (one.policies[-1] - one.end).abs().max() < 2e-3
    assert (one.policies[0] - one.end).abs().max() > 0.02, "it has moved"


def test_the_points_differ_as_the_map_says() -> None:
    gaps = {name: float(duality_gap(CYC, SCRIPT[name], SCRIPT["TAU"])) for name in ("REGULARISED", "MIXED", "RESPONSE")}
    assert gaps["REGULARISED"] < 1e-8 < gaps["MIXED"] < gaps["RESPONSE"]
    for label in ("online_dpo", "xpo, α = 0"):
        assert duality_gap(CYC, PATHS[label].policies[-1], SCRIPT["TAU"]) > 1e-3, "another point"
        moved = PATHS[label].policies[-1] - PATHS[label].policies[-100]
        assert moved.abs().max() < 1e-3, "and a stationary one"


def test_without_regularisation_only_the_average_of_multiplicative_weights_approaches_the_equilibrium() -> None:
    last, average = PATHS["sppo"].policies, PATHS["sppo, average"].policies
    gains = [float(exploitability(CYC, policy)) for policy in last]
    assert max(gains[:40]) + 0.03 < max(gains[-40:]), "the spiral widens"
    assert exploitability(CYC, average[-1]) < 0.02


def test_the_figure_is_the_one_in_the_documentation(tmp_path: Path) -> None:
    SCRIPT["draw"](tmp_path / "a.svg", PANELS)
    drawn, kept = (path.read_text("utf-8") for path in (tmp_path / "a.svg", SCRIPT["FIGURE"]))
    assert all(f">{label}<" in drawn for label in PATHS if label.isascii())
    assert len(kept) < 200_000
    # Digits may differ with the version of matplotlib; what is drawn may not.
    assert {label for label in PATHS if f">{label}<" in kept} == {label for label in PATHS if f">{label}<" in drawn}
    assert torch.isfinite(SCRIPT["placed"]([one.policies[-1] for one in PATHS.values()])).all()


def test_the_map_lists_every_algorithm_and_its_pairs() -> None:
    text = (SCRIPT["FIGURE"].parent / "algorithms.md").read_text("utf-8")
    section = text.partition("## The map")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in section.splitlines() if "| `" in line]
    table = {row[0].strip("`| "): row[4] for row in rows[1:]}
    assert table.keys() == discover().keys()
    for name, formula in table.items():
        config = compose([f"algo={name}", "model=tiny", "preference=function", "preference.function=a:b"])
        known = {"K": getattr(config.algo, "samples_per_prompt", 0), "h": getattr(config.algo, "history", 0)}
        python = re.sub(r"(?<=[\d)])(?=[K(])|(?<=K)(?=\()", "*", formula.replace("²", "**2").replace("−", "-"))
        assert discover()[name].pairs(config, None) == eval(python, known), name
