"""Sweeps through Hydra's launchers and Optuna, by configuration alone; runs that are stopped since they fall behind."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
from forked import Popen
from omegaconf import OmegaConf

from alignrun import cli
from alignrun.config import Pruner, SweepConfig
from alignrun.sweeps.job import Job, write_job
from alignrun.sweeps.pruning import Watch, falls_behind, scores

SMOKE = ("-m", "experiment=smoke", "train.steps=1", "train.checkpoint_every=0", "model.device=cpu")


@pytest.fixture
def forked_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The runs of a sweep are forked from a process that has imported everything."""
    monkeypatch.setattr("alignrun.sweeps.sweep.subprocess.Popen", Popen)


LAUNCHERS = {
    "joblib": ["hydra.launcher.n_jobs=2"],
    "submitit_local": ["hydra.launcher.timeout_min=10"],
    "ray": ["+hydra.launcher.ray.init.num_cpus=2"],
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "joblib" else pytest.mark.nightly) for name in LAUNCHERS]
)
def test_launchers_make_all_runs_and_continue_after_one_that_fails(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    if find_spec(f"hydra_plugins.hydra_{name.removesuffix('_local')}_launcher") is None:
        pytest.skip(f"hydra/launcher={name} is not installed")
    functions = "preference.function=absent:f,alignrun.preferences.examples:letters"
    arguments = [*SMOKE, functions, f"hydra/launcher={name}", *LAUNCHERS[name], f"hydra.sweep.dir={tmp_path}"]
    assert cli.main(arguments) == 1
    rows = json.loads((tmp_path / "sweep.json").read_text())
    assert [(row["run"], row["exit_code"]) for row in rows] == [("0", 2), ("1", 0)]
    assert "1 failed (exit code 2)" in " ".join(capfd.readouterr().out.split())
    untouched = (tmp_path / "1" / "report.html").stat().st_mtime_ns
    assert cli.main(arguments) == 1
    assert (tmp_path / "1" / "report.html").stat().st_mtime_ns == untouched


@pytest.mark.slow
@pytest.mark.usefixtures("forked_runs")
def test_optuna_looks_for_the_largest_win_rate(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = [*SMOKE, "hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=1"]
    arguments += ["optim.learning_rate=tag(log,interval(0.001,0.1))", f"hydra.sweep.dir={tmp_path}"]
    assert cli.main(arguments) == 0
    rows = json.loads((tmp_path / "sweep.json").read_text())
    assert len(rows) == len({row["overrides"] for row in rows}) == 3
    best = max(rows, key=lambda row: row["win_rate"])
    found = OmegaConf.load(tmp_path / "optimization_results.yaml")
    assert found.best_value == best["win_rate"]
    assert f"optim.learning_rate={found.best_params['optim.learning_rate']}" in best["overrides"]
    untouched = [(tmp_path / row["run"] / "report.html").stat().st_mtime_ns for row in rows]
    assert cli.main(arguments) == 0, "the same search asks the same questions"
    assert [(tmp_path / row["run"] / "report.html").stat().st_mtime_ns for row in rows] == untouched
    capfd.readouterr()


@pytest.mark.slow
@pytest.mark.usefixtures("forked_runs")
def test_a_failed_trial_does_not_end_the_search(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = [*SMOKE, "hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "hydra.sweeper.n_jobs=1"]
    functions = "preference.function=choice('absent:f','alignrun.preferences.examples:letters')"
    sampler = ["hydra/sweeper/sampler=grid"]
    assert cli.main([*arguments, functions, *sampler, f"hydra.sweep.dir={tmp_path}"]) == 1
    rows = json.loads((tmp_path / "sweep.json").read_text())
    assert sorted(row["exit_code"] for row in rows) == [0, 2]
    assert "1 failed (exit code 2)" in " ".join(capfd.readouterr().out.split())


@pytest.mark.slow
@pytest.mark.usefixtures("forked_runs")
def test_a_run_that_falls_behind_is_stopped_and_stays_so(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["-m", "experiment=smoke", "optim.learning_rate=0.02,1e-09", "model.device=cpu", "sweep.pruner=median"]
    arguments += ["sweep.min_runs=1", "evaluation.every=10", "train.steps=60", f"hydra.sweep.dir={tmp_path}"]
    assert cli.main(arguments) == 0
    good, bad = json.loads((tmp_path / "sweep.json").read_text())
    assert good["exit_code"] == 0
    assert (bad["exit_code"], "win_rate" in bad) == (143, False)
    assert bad["pruned"] in (10, 20, 30, 40)
    assert "1 stopped early" in " ".join(capfd.readouterr().out.split())
    page = (tmp_path / "report.html").read_text()
    assert "Stopped early, since they fell behind: 1 (optim.learning_rate=1e-09, after step" in page, (
        "only what differs"
    )
    before = (tmp_path / "1" / "metrics.jsonl").read_text()
    assert cli.main(arguments) == 0
    assert (tmp_path / "1" / "metrics.jsonl").read_text() == before


def test_the_rules_look_at_runs_at_the_same_step(tmp_path: Path) -> None:
    def run(name: str, *win_rates: float, job: Job | None = None) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        rows = [{"step": 5 * place, "eval/win_rate": rate} for place, rate in enumerate(win_rates)]
        rows.insert(1, {"step": 1, "loss": 0.5})
        torn = '{"step": 99, "eval/win_ra'
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + torn)
        if job is not None:
            write_job(folder, job)
        return folder

    others = [run(str(n), 0.5, 0.5 + n / 10, 0.9, job=Job(0)) for n in range(4)]  # median at step 5: 0.65
    assert scores(others[1]) == {5: 0.6, 10: 0.9}, "at step 0 all are the reference"
    below, above, late = run("below", 0.5, 0.64), run("above", 0.5, 0.66), run("late", 0.5, 0.7, 0.8)
    median = SweepConfig(pruner=Pruner.median, min_runs=4)
    assert falls_behind(median, below, others) == 5
    assert falls_behind(median, above, others) is None
    assert falls_behind(median, late, others) == 10
    assert falls_behind(median, late, others, after=10) is None, "judged once"
    assert falls_behind(median, run("untrained", 0.1), others) is None
    assert falls_behind(SweepConfig(pruner=Pruner.median, min_runs=5), below, others) is None
    assert falls_behind(SweepConfig(pruner=Pruner.median, min_runs=4, warmup_steps=6), below, others) is None
    # Failed runs are no measure, those that were stopped are, and those that go on are not for the median.
    assert falls_behind(median, below, [*others[:3], run("failed", 0.5, 0.9, job=Job(1))]) is None
    assert falls_behind(median, below, [*others[:3], run("stopped", 0.5, 0.9, job=Job(143, pruned=5))]) == 5
    assert falls_behind(median, below, [*others[:3], run("going", 0.5, 0.9)]) is None
    # Successive halving compares at step 5 whoever has come so far, and lets one of three go on.
    halving = SweepConfig(pruner=Pruner.halving, warmup_steps=5, reduction=3)
    going = [run("first", 0.5, 0.6), run("second", 0.5, 0.7)]
    assert falls_behind(halving, run("third", 0.5, 0.8), going) is None
    assert falls_behind(halving, run("fourth", 0.5, 0.65), going) == 5
    (tmp_path / "new").mkdir()
    assert falls_behind(median, tmp_path / "new", others) is None


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["hydra/launcher=sloorm"], "hydra/launcher=sloorm does not exist: choose from basic, joblib"),
        (["hydra/launcher=joblib", "hydra.launcher.n_jbos=2"], "n_jbos"),
        (["optim.learning_rate=interval(0.1,0.2)"], "only hydra/sweeper=optuna samples from an interval"),
        (["sweep.pruner=median"], "set evaluation.every below train.steps=1"),
        (["sweep.pruner=halving", "sweep.reduction=1"], "sweep.reduction must be at least 2"),
        (["sweep.pruner=best"], "sweep.pruner"),
    ],
)
def test_what_no_sweep_can_do_is_reported_in_one_line(
    arguments: list[str], expected: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*SMOKE, "seed=1,2", *arguments, f"hydra.sweep.dir={tmp_path / 'sweep'}"]) == 2
    said = capfd.readouterr()
    assert len(said.err.strip().splitlines()) == 1
    assert expected in said.err
    assert not (tmp_path / "sweep").exists()


def test_a_plugin_that_is_missing_is_named(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if find_spec("ray") is None:
        assert cli.main([*SMOKE, "seed=1,2", "hydra/launcher=ray", f"hydra.sweep.dir={tmp_path / 'sweep'}"]) == 2
        assert "hydra/launcher/ray is not installed: pip install hydra-ray-launcher" in capfd.readouterr().err
    monkeypatch.setattr("alignrun.sweeps.pruning.find_spec", lambda _: None)
    arguments = [*SMOKE, "seed=1,2", "sweep.pruner=median", f"hydra.sweep.dir={tmp_path / 'sweep'}"]
    assert cli.main(arguments) == 2
    assert "pip install 'alignrun[sweep]'" in capfd.readouterr().err


def test_a_run_is_watched_until_its_last_evaluation(tmp_path: Path) -> None:
    def record(name: str, *win_rates: float) -> Path:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        with (folder / "metrics.jsonl").open("a") as file:
            for place, rate in enumerate(win_rates):
                file.write(json.dumps({"step": 5 * (place + 1), "eval/win_rate": rate}) + "\n")
        return folder

    write_job(record("good", 0.7, 0.8, 0.9), Job(0))
    (tmp_path / "good" / "checkpoints").mkdir()
    rule = SweepConfig(pruner=Pruner.median, min_runs=1)
    watch = Watch(rule, 15, tmp_path / "watched", tmp_path)
    assert watch() is None, "it has recorded nothing"
    watched = record("watched", 0.75)
    assert watch() is None
    (watched / "metrics.jsonl").unlink()
    record("watched", 0.75, 0.7)
    assert watch() == 10
    assert watch() is None, "nothing has come since"
    assert Watch(rule, 15, record("done", 0.75, 0.85, 0.1), tmp_path)() is None, "it is over"
    assert Watch(SweepConfig(), 15, watched, tmp_path)() is None
