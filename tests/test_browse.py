"""`alignrun runs` and `alignrun diff`: what they read of run folders, their own and damaged ones."""

import fcntl
import json
import os
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
from rich.cells import cell_len

from alignrun import cli
from alignrun.browse.find import natural
from alignrun.browse.table import show_runs
from alignrun.launch.compose import compose, dump
from alignrun.security.terminal import PlainConsole


def make(folder: Path, *overrides: str, steps: int = 0, **metrics: float) -> Path:
    """A run of the smoke preset that has come so far, finished at step 3."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(dump(compose(["experiment=smoke", *overrides])))
    rows: list[dict[str, float]] = [{"step": step, "loss": 1.0, "kl": 9.0} for step in range(1, steps + 1)]
    if metrics:
        rows.append({"step": steps, **{f"eval/{name}": value for name, value in metrics.items()}})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if steps == 3:
        (folder / "summary.json").write_text(json.dumps({"step": 3, **metrics}))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    runs = tmp_path / "runs"
    interval = {"win_rate_low": 0.5, "win_rate_high": 0.75, "prompts": 8}
    make(runs / "run-10", steps=3, win_rate=0.625, kl=1.25, **interval)
    make(runs / "run-2", "algo=online_ipo", "optim.learning_rate=0.05", steps=2, win_rate=0.7, kl=0.5, **interval)
    make(runs / "sweep" / "0", "seed=7", steps=1)
    (runs / "sweep" / "0" / "failure.json").write_text('{"error": "step 2: out of\\nmemory\\u001b[2J"}')
    return runs


def listed(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    assert cli.main(["runs", *arguments]) == 0
    return capsys.readouterr().out.splitlines()


def test_a_row_says_what_a_run_is(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lock = os.open(folder / "run-2" / ".lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    lines = listed(capsys, str(folder))
    os.close(lock)
    assert [line.split() for line in lines[:5]] == [
        ["name", "algorithm", "model", "steps", "win", "rate", "KL", "state"],
        ["run-2", "online_ipo", "tiny", "2/3", "0.70", "(0.50–0.75)", "0.50", "running"],
        ["run-10", "nash_md", "tiny", "3/3", "0.62", "(0.50–0.75)", "1.25", "finished"],
        ["sweep/0", "nash_md", "tiny", "1/3", "–", "–", "failed"],
        ["step", "2:", "out", "of", "memory␛[2J"],
    ]
    assert lines[5] == f"3 runs in {folder}: 1 running, 1 finished, 1 failed"
    assert [line.split()[-1] for line in listed(capsys, str(folder))[1:3]] == ["stopped", "finished"]


@pytest.mark.parametrize(
    ("key", "order"),
    [
        ("win_rate", ["run-2", "run-10", "sweep/0"]),
        ("kl", ["run-2", "run-10", "sweep/0"]),
        ("steps", ["run-10", "run-2", "sweep/0"]),
        ("state", ["sweep/0", "run-10", "run-2"]),
        ("algo.name", ["run-10", "sweep/0", "run-2"]),
        ("optim.learning_rate", ["run-10", "sweep/0", "run-2"]),
        ("seed", ["run-2", "run-10", "sweep/0"]),
        ("prompts", ["run-2", "run-10", "sweep/0"]),
    ],
)
def test_rows_are_sorted_by_any_key(
    folder: Path, key: str, order: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    def names(*more: str) -> list[str]:
        return [line.split()[0] for line in listed(capsys, str(folder), "--sort", key, *more) if line[0] in "rs"]

    assert names() == order
    backwards = names("--reverse")
    assert sorted(backwards) == sorted(order)
    if key in ("win_rate", "kl"):
        assert backwards == ["run-10", "run-2", "sweep/0"], "a run without a value stays last"


def test_a_key_has_a_column_of_its_own(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = listed(capsys, str(folder), "--sort", "optim.learning_rate")
    assert lines[0].split()[-2:] == ["optim.learning_rate", "state"]
    assert next(line for line in lines if line.startswith("run-2")).split()[-2:] == ["0.05", "stopped"]
    assert cli.main(["runs", str(folder), "--sort", "nothing"]) == 2
    assert "no run has nothing: sort by name, algorithm" in capsys.readouterr().err


@pytest.mark.parametrize("width", [80, 60])
def test_a_table_fits_the_terminal(folder: Path, width: int, tmp_path: Path) -> None:
    shutil.move(folder / "run-10", folder / "2026-11-30_19-40-44_preference_model_smollm2-135m")
    with (tmp_path / "out").open("w") as file:
        assert show_runs([str(folder)], None, False, PlainConsole(file=file, width=width)) == 0
    lines = (tmp_path / "out").read_text().splitlines()
    assert max(map(cell_len, lines[:-1])) <= width
    assert lines[2] == "2026-11-30_19-40-44_preference_model_smollm2-135m"
    assert lines[3].split() == ["nash_md", "tiny", "3/3", "0.62", "(0.50–0.75)", "1.25", "finished"]


def test_what_is_damaged_is_a_row_and_what_is_no_run_is_not(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outside = make(tmp_path / "outside", steps=3, win_rate=0.9)
    (folder / "link").symlink_to(outside)
    (folder / "loop").symlink_to(folder)
    linked = make(folder / "linked", steps=1)
    (linked / "summary.json").symlink_to(outside / "summary.json")
    (make(folder / "torn", steps=3, win_rate=0.5) / "config.yaml").write_text("algo: [")
    (make(folder / "other", steps=1) / "config.yaml").write_text("algo: 3\nmodel: {name: x}\n")
    (folder / "sweep" / "1").mkdir()
    (folder / "sweep" / "1" / "job.json").write_text('{"exit_code": 2, "overrides": []}')
    for place, result in (("cup", "results.json"), ("judge", "preference.json")):
        (folder / place).mkdir()
        for name in (result, "config.yaml", "environment.json"):
            (folder / place / name).write_text("{}")
    (folder / "notes").mkdir()
    (folder / "notes" / "config.yaml").write_text("a: 1")
    lines = listed(capsys, str(folder))
    assert "outside" not in "\n".join(lines).replace(str(tmp_path), "")
    after = {line: following.strip() for line, following in pairwise(lines)}
    assert after["linked"].startswith("damaged: summary.json is a link, and links in a run folder are not followed")
    assert after["torn"].startswith("damaged: config.yaml cannot be read (")
    assert after["other"] == "damaged: config.yaml is not the configuration of a run"
    assert after["sweep/1"] == "damaged: it never started: exit code 2 in its sweep"
    assert lines[-4:] == [
        f"7 runs in {folder}: 4 damaged, 1 stopped, 1 finished, 1 failed",
        "1 tournament not listed: the report.html of each shows it",
        "1 evaluated preference not listed: the report.html of each shows it",
        "2 links not followed: name the folder that a link leads to",
    ]
    assert listed(capsys, str(folder / "link"))[1].split()[0].endswith("link"), "a folder that is named may be a link"


def test_folders_without_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert listed(capsys, str(tmp_path)) == [f"no runs in {tmp_path}"]
    assert cli.main(["runs"]) == 2
    assert "there is no folder runs here" in capsys.readouterr().err


def test_names_are_in_natural_order() -> None:
    names = ["run-10", "run-9", "a", "2", "10", "run-", "x" + "9" * 5000]
    assert sorted(names, key=natural) == ["2", "10", "a", "run-", "run-9", "run-10", "x" + "9" * 5000]


def test_a_difference_is_all_that_is_shown(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = folder / "run-10", folder / "run-2"
    for run, digest in ((one, "a" * 64), (other, "b" * 64)):
        (run / "pins.json").write_text(json.dumps({"parts": {"training data": digest, "base": "c" * 64}}))
        (run / "environment.json").write_text(json.dumps({"versions": {"torch": "2"}, "started": str(run)}))
    assert cli.main(["diff", str(one), str(other)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["algo.name", "nash_md", "online_ipo"] in lines
    rate = str(compose(["experiment=smoke"]).optim.learning_rate)
    assert ["optim.learning_rate", rate, "0.05"] in lines
    assert ["algo.mix_beta", "0.125", "–"] in lines, "a key of the one algorithm alone"
    assert ["training", "data", "a" * 12, "b" * 12] in lines
    assert ["environment:", "the", "same"] in lines
    assert ["win_rate", "0.625", "(0.5", "to", "0.75)", "0.7", "(0.5", "to", "0.75)", "+0.075"] in lines
    assert ["kl", "1.25", "0.5", "-0.75"] in lines
    assert not {"seed", "prompts", "base", "run.dir"} & {line[0] for line in lines}
    assert lines[-2:] == [
        ["run-10:", "3", "of", "3", "steps,", "finished"],
        ["run-2:", "2", "of", "3", "steps,", "not", "running;", "results", "of", "step", "2"],
    ]
    assert cli.main(["diff", str(one), str(other), "--all"]) == 0
    whole = {line.split()[0] for line in capsys.readouterr().out.splitlines()}
    assert whole >= {"seed", "prompts", "base", "versions.torch"}
    assert cli.main(["diff", str(one), str(one)]) == 0
    same = capsys.readouterr().out
    assert "configuration: the same" in same
    assert "results: the same" in same


def test_values_that_look_equal_are_distinguished(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = make(tmp_path / "a", "model.system_prompt='Be  kind.'", "tracker.name='1'")
    second = make(tmp_path / "b", "model.system_prompt='Be kind.'", f"model.chat_template='{{{{{'x' * 5000}}}}}y'")
    assert cli.main(["diff", str(first), str(second)]) == 0
    out = capsys.readouterr().out
    prompt = next(line for line in out.splitlines() if line.startswith("model.system_prompt"))
    assert prompt.split("model.system_prompt")[1].split("  ", 1)[1].strip() == '"Be  kind."  "Be kind."'
    assert len(out) < 6000, "of a long text only what surrounds the difference"


def test_a_run_that_fails_says_why_until_it_is_resumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert cli.main(["experiment=smoke", "train.max_kl=1e-9", "optim.learning_rate=0.05", f"run.dir={run}"]) == 1
    assert "above train.max_kl" in json.loads((run / "failure.json").read_text())["error"]
    assert listed(capsys, str(run))[-1].endswith(": 1 failed")
    assert cli.main(["top", str(run), "--once"]) == 0
    assert "● failed" in capsys.readouterr().out
    assert cli.main(["resume", str(run), "train.max_kl=null"]) == 0
    assert not (run / "failure.json").exists()
    capsys.readouterr()
    assert listed(capsys, str(run))[-1].endswith(": 1 finished")
