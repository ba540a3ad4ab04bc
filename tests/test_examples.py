"""The loop in examples/ trains, and is the package's own loop written out."""

import json
import runpy
from pathlib import Path

import pytest

from alignrun import cli

LOOP = Path(__file__).parents[1] / "examples" / "nash_md_loop.py"


def test_the_loop_reaches_the_equilibrium(capsys: pytest.CaptureFixture[str]) -> None:
    """From KL(π*‖π) = 0.106, where it starts."""
    assert runpy.run_path(str(LOOP))["main"]([]) < 0.01
    assert "step 60: loss" in capsys.readouterr().out


def test_the_loop_takes_the_steps_of_the_package(tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = ["algo=nash_md", "train.steps=6", "evaluation.every=0", "optim.learning_rate=1e-3"]
    settings += ["generation.opponents=independent", f"run.dir={run}"]
    assert cli.main(["experiment=game", *settings]) == 0
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    expected = rows[-1]["eval/kl_equilibrium"]
    assert abs(expected - 0.1055) > 0.01, "it has moved"
    assert runpy.run_path(str(LOOP))["main"](["steps=6"]) == pytest.approx(expected, rel=1e-3)


def test_an_unknown_setting_is_one_line() -> None:
    with pytest.raises(SystemExit, match="kl_tua is not a setting: choose from game, kl_tau"):
        runpy.run_path(str(LOOP))["main"](["kl_tua=1"])
