"""The benchmark runs, on a model of a few thousand weights; its sides here take turns in one process."""

import contextlib
import io
import json
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from alignrun.algorithms.common.rollout import Rollouts
from alignrun.training.trainer import Trainer

SCRIPT = Path(__file__).parents[1] / "scripts" / "bench.py"
TINY = ["--random", "--model=tiny", "--prompt=12", "--batch=2", "--steps=2", "--rounds=1", "--sides"]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The script, with sides that have already run when their turns come."""
    made = runpy.run_path(str(SCRIPT))
    names = made["main"].__globals__

    class Ran(names["Process"]):  # type: ignore[misc]
        def __init__(self, side: str, options: Any) -> None:
            self.side = side
            lines = io.StringIO()
            with monkeypatch.context() as patch, contextlib.redirect_stdout(lines):
                patch.setattr(sys, "stdin", io.StringIO("\n" * 99))
                for owner, name in ((Trainer, "train_step"), (Rollouts, "sample")):  # workers replace them
                    patch.setattr(owner, name, getattr(owner, name))
                names["WORKERS"][side](options)
            self._process = SimpleNamespace(stdout=iter(lines.getvalue().splitlines()), returncode=0)
            self._process.communicate = self._process.kill = self._process.wait = lambda: None
            self._said: list[str] = []

        def _go(self) -> None:
            """It has gone."""

    names["Process"] = Ran
    return SimpleNamespace(**names)


def run(bench: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, *options: str) -> None:
    monkeypatch.setattr(sys, "argv", ["bench.py", *TINY, *options])
    bench.main()


def test_both_precisions_and_several_lengths(
    bench: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(bench, monkeypatch, "ours", "floor", "--dtype=both", "--lengths=2,4", "--clock=cpu")
    lines = capsys.readouterr().out.splitlines()
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| ")]
    assert [row[:2] for row in table[1:]] == [[kind, new] for kind in ("float32", "bfloat16") for new in ("2", "4")]
    for row in table[1:]:
        assert row[3] == "-", "TRL has not run"
        assert all(float(cell.split()[0]) > 0 for cell in (row[2], *row[4:]))
    assert [line.split(":")[0] for line in lines if "grow as" in line] == [
        *("float32, ours", "float32, floor", "bfloat16, ours", "bfloat16, floor")
    ]


def test_the_path_to_a_server_next_to_the_native_engine(
    bench: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(bench, monkeypatch, "ours", "server", "--task=online_dpo", "--new=3")
    lines = capsys.readouterr().out.splitlines()
    (line,) = (line for line in lines if line.startswith("sampling, path to the server / native engine: "))
    assert float(line.split(": ")[1].split()[0]) > 0


def test_pairs_have_the_lengths_that_are_asked_for(
    bench: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: list[dict[str, str]] = []
    written = bench.write_data

    def kept(folder: Path, *rest: Any) -> Path:
        path: Path = written(folder, *rest)
        rows.extend(json.loads(line) for line in path.read_text().splitlines())
        return path

    bench.main.__globals__["write_data"] = kept
    run(bench, monkeypatch, "ours", "floor", "--task=dpo", "--new=7")
    assert "dpo, float32, prompts of 12 tokens, 7 new, 2 a step, wall time" in capsys.readouterr().out
    assert len(rows) == 2 * 3
    assert all(0 < len(row[name]) <= most for row in rows for name, most in (("prompt", 12), ("chosen", 7)))  # in bytes


def test_ratios_are_medians_over_the_turns(bench: SimpleNamespace) -> None:
    ours = [{"whole": whole, "sampling": 0.0} for whole in (2.0, 9.0, 4.0)]
    floor = [{"whole": 1.0, "sampling": 0.0}, {"whole": 3.0, "sampling": 0.0}, {"whole": 1.0, "sampling": 0.0}]
    measured = bench.Measured({"ours": ours, "floor": floor}, {})
    assert measured.over("ours", "floor") == "3.00 (2.00 to 4.00)"
    assert measured.over("ours", "floor", "sampling") == measured.over("trl", "ours") == "-"
    assert measured.whole("ours") == 4.0


@pytest.mark.parametrize("wrong", [["--lengths=32,x"], ["--lengths=0"], ["--dtype=float8"], ["--task=dpo"]])
def test_wrong_options(
    wrong: list[str], bench: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(bench, monkeypatch, "ours", "server", *wrong)
    assert wrong[0].split("=")[0] in capsys.readouterr().err
