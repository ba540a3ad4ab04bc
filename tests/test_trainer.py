"""The loop: accumulation equals one large batch, bad numbers stop it, and a resumed run is the same run."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from forked import Job

from alignrun import cli
from alignrun.algorithms.base import Algorithm, discover
from alignrun.algorithms.nash_md import NashMD
from alignrun.training import signals, trainer
from alignrun.training.accumulate import micro_batches
from alignrun.training.optim import learning_rate


def metrics_of(run: Path) -> list[dict]:
    """Everything but the clock."""
    clock = ("seconds", "tokens_per_second")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in clock} for row in rows]


def weights_of(run: Path, step: int) -> bytes:
    return (run / "checkpoints" / f"step-{step}" / "weights.safetensors").read_bytes()


def train(*overrides: str) -> int:
    return cli.main(["experiment=smoke", *overrides])


def test_accumulated_micro_batches_equal_one_large_batch(tmp_path: Path) -> None:
    """Completions of unequal length, uneven micro-batches: the same gradient to float order."""
    for name, size in (("whole", 8), ("parts", 3)):
        assert (
            train(
                f"run.dir={tmp_path / name}",
                "train.batch_size=8",
                f"train.micro_batch_size={size}",
                "train.steps=2",
                "optim.max_grad_norm=0",
                "optim.learning_rate=0.01",
            )
            == 0
        )
    whole, parts = (metrics_of(tmp_path / name) for name in ("whole", "parts"))
    for one, other in zip(whole, parts, strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-6)
    assert whole[0]["grad_norm"] > 1e-3
    assert len({row["length"] for row in whole if "length" in row}) > 1 or whole[0]["length"] < 8


def test_the_same_seed_gives_the_same_run_and_another_seed_another(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert train(f"run.dir={tmp_path / name}", f"seed={seed}") == 0
    a, b, c = (metrics_of(tmp_path / name) for name in "abc")
    assert a == b
    assert a != c
    assert weights_of(tmp_path / "a", 3) == weights_of(tmp_path / "b", 3)


def test_training_raises_the_win_rate_on_the_tiny_model(tmp_path: Path) -> None:
    assert (
        train(
            f"run.dir={tmp_path / 'run'}",
            "train.steps=8",
            "train.batch_size=16",
            "train.micro_batch_size=null",
            "train.checkpoint_every=0",
            "optim.learning_rate=0.03",
            "data.eval_size=64",
        )
        == 0
    )
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["win_rate_low"] > 0.5
    assert summary["kl"] > 0


def test_evaluating_more_often_changes_no_training_step(tmp_path: Path) -> None:
    for name, every in (("never", 0), ("always", 1)):
        assert train(f"run.dir={tmp_path / name}", f"evaluation.every={every}") == 0
    never, always = ([row for row in metrics_of(tmp_path / name) if "loss" in row] for name in ("never", "always"))
    assert never == always
    steps = [row["step"] for row in metrics_of(tmp_path / "always") if "eval/win_rate" in row]
    assert steps == [0, 1, 2, 3]


def poison(
    monkeypatch: pytest.MonkeyPatch, factor: str, which: Callable[[int], bool], owner: type[Algorithm] = NashMD
) -> list[int]:
    """Multiply the losses of some calls, numbered from 1, by inf or nan; the calls so far."""
    original = owner.loss
    calls: list[int] = []

    def poisoned(self, batch):
        calls.append(1)
        loss = original(self, batch)
        if which(len(calls)):
            object.__setattr__(loss, "total", loss.total * float(factor))
        return loss

    monkeypatch.setattr(owner, "loss", poisoned)
    return calls


def test_a_loss_that_is_not_finite_stops_the_run_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = NashMD.loss
    poison(monkeypatch, "nan", lambda call: call > 2)
    run = tmp_path / "run"
    assert train(f"run.dir={run}", "train.micro_batch_size=4", "train.steps=5", "train.max_skipped_steps=0") == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("alignrun: error: step 3: the loss is nan")
    assert "learning_rate" in error
    assert len(json.loads((run / "failed_batch.json").read_text())["batch"]["texts"]) == 4
    assert (run / "checkpoints" / "step-2").is_dir()
    monkeypatch.setattr(NashMD, "loss", original)
    assert cli.main(["resume", str(run)]) == 0
    assert train(f"run.dir={tmp_path / 'clean'}", "train.micro_batch_size=4", "train.steps=5") == 0
    assert metrics_of(run) == metrics_of(tmp_path / "clean")


def test_a_few_steps_whose_gradient_is_not_finite_are_left_out_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Steps 2 and 4 of 6, also when the run is stopped and resumed between them."""
    calls = poison(monkeypatch, "inf", lambda call: call in (2, 4))
    run = tmp_path / "run"
    settings = ["train.micro_batch_size=4", "train.checkpoint_every=1", "train.keep_checkpoints=9"]
    assert train(f"run.dir={run}", *settings, "train.steps=3") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "step 2: the loss is" in said
    assert "skipped, 1 of at most 3" in said
    assert weights_of(run, 1) == weights_of(run, 2) != weights_of(run, 3)
    assert cli.main(["resume", str(run), "train.steps=6"]) == 0
    assert weights_of(run, 3) == weights_of(run, 4) != weights_of(run, 5)
    rows = [row for row in metrics_of(run) if "learning_rate" in row]
    assert [row.get("skipped_steps", 0) for row in rows] == [0, 1, 1, 2, 2, 2]
    assert ["loss" in row for row in rows] == [True, False, True, False, True, True]
    calls[:] = [1]
    assert cli.main(["resume", str(run), "train.steps=7", "train.max_skipped_steps=1"]) == 1
    assert "after 1 skipped" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "call"), [("ppo", 9), ("nash_mp", 5)])
def test_a_step_of_several_updates_is_left_out_once_and_from_there_on(
    name: str, call: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second step of three: the first of PPO's epochs on its rollout, and the half-step of an extragradient."""
    poison(monkeypatch, "nan", lambda number: number == call, discover()[name])
    settings = ["train.checkpoint_every=1", "train.keep_checkpoints=9"]
    assert train(f"run.dir={tmp_path / 'run'}", f"algo={name}", *settings) == 0
    assert weights_of(tmp_path / "run", 1) == weights_of(tmp_path / "run", 2) != weights_of(tmp_path / "run", 3)
    rows = [row for row in metrics_of(tmp_path / "run") if "learning_rate" in row]
    assert [row.get("skipped_steps", 0) for row in rows] == [0, 1, 1]


def test_running_out_of_memory_halves_the_micro_batch_and_changes_no_gradient(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["train.batch_size=8", "train.micro_batch_size=null", "optim.learning_rate=0.01"]
    assert train(f"run.dir={tmp_path / 'room'}", *settings, "train.micro_batch_size=2") == 0
    original = NashMD.loss

    def hungry(self, batch):
        loss = original(self, batch)
        if len(batch.prompts) > 2:
            loss.total.backward()  # what it has left behind must not count
            raise torch.OutOfMemoryError("CUDA out of memory")
        return loss

    monkeypatch.setattr(NashMD, "loss", hungry)
    capsys.readouterr()
    assert train(f"run.dir={tmp_path / 'tight'}", *settings) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("out of memory with micro-batches of 8 prompts: continuing with 4") == 1
    assert said.count("out of memory with micro-batches of 4 prompts: continuing with 2") == 1
    assert metrics_of(tmp_path / "room") == metrics_of(tmp_path / "tight")
    assert weights_of(tmp_path / "room", 3) == weights_of(tmp_path / "tight", 3)


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, clean = tmp_path / "run", tmp_path / "clean"
    settings = ["train.checkpoint_every=1", "train.keep_checkpoints=9"]
    assert train(f"run.dir={clean}", *settings, "train.steps=4") == 0
    assert train(f"run.dir={run}", *settings, "train.steps=3") == 0
    file = run / "checkpoints" / "step-3" / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:-5])
    flipped = bytearray((run / "checkpoints" / "step-2" / "optimizer.safetensors").read_bytes())
    flipped[-3] ^= 1
    (run / "checkpoints" / "step-2" / "optimizer.safetensors").write_bytes(flipped)
    capsys.readouterr()
    assert cli.main(["resume", str(run), "train.steps=4"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "step-3: weights.safetensors was changed or truncated; skipped" in said
    assert "step-2: optimizer.safetensors was changed or truncated; skipped" in said
    assert "after step 1" in said
    for step in range(1, 5):
        assert weights_of(run, step) == weights_of(clean, step)


def wait_for_steps(run: Path, job: Job, steps: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and job.running():
        file = run / "metrics.jsonl"
        if file.is_file() and len(file.read_text().splitlines()) >= steps:
            return
        time.sleep(0.02)
    raise AssertionError(f"no {steps} steps: {job.wait(0)}")


LONG = ("train.steps=20", "train.checkpoint_every=4", "evaluation.every=10")


@pytest.mark.slow
def test_a_killed_run_resumes_bit_for_bit(tmp_path: Path) -> None:
    assert train(f"run.dir={tmp_path / 'whole'}", *LONG) == 0
    run = tmp_path / "killed"
    job = Job("experiment=smoke", f"run.dir={run}", *LONG)
    wait_for_steps(run, job, 9)
    job.send(signal.SIGKILL)
    job.wait()
    assert not (run / "summary.json").exists(), "the run was to be killed before its end"
    assert cli.main(["resume", str(run)]) == 0
    assert metrics_of(run) == metrics_of(tmp_path / "whole")
    assert weights_of(run, 20) == weights_of(tmp_path / "whole", 20)
    samples = [(tmp_path / name / "samples.jsonl").read_text() for name in ("whole", "killed")]
    assert samples[0] == samples[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_stopped_run_saves_exits_and_resumes(tmp_path: Path, name: str) -> None:
    run = tmp_path / "run"
    job = Job("experiment=smoke", f"run.dir={run}", "train.steps=1000000", "train.checkpoint_every=0")
    wait_for_steps(run, job, 3)
    job.send(getattr(signal, name))
    codes, output = job.wait()
    assert codes == [128 + getattr(signal, name)]
    assert f"stopped by {name} after step" in output
    assert "alignrun resume" in output
    assert "Traceback" not in output
    steps = [row["step"] for row in metrics_of(run)]
    (saved,) = (run / "checkpoints").iterdir()
    assert saved.name == f"step-{steps[-1]}"
    assert cli.main(["resume", str(run), f"train.steps={steps[-1] + 1}"]) == 0
    assert [row["step"] for row in metrics_of(run) if "loss" in row] == list(range(1, steps[-1] + 2))


@pytest.mark.parametrize("evaluated", [True, False])
def test_an_evaluation_cut_short_is_made_up_for_and_never_doubled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, evaluated: bool
) -> None:
    """Stopped on an evaluation step before it (a signal), or killed right after the last one was recorded."""
    overrides = ("train.steps=4", "evaluation.every=2", "train.checkpoint_every=0")
    assert train(f"run.dir={tmp_path / 'whole'}", *overrides) == 0
    run = tmp_path / "run"
    if evaluated:
        monkeypatch.setattr(trainer.Trainer, "_write_adapter", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        assert train(f"run.dir={run}", *overrides) == 130
    else:
        original = trainer.Trainer.train_step

        def stop(self, step: int) -> dict[str, float]:
            metrics = original(self, step)
            if step == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return metrics

        monkeypatch.setattr(trainer.Trainer, "train_step", stop)
        assert train(f"run.dir={run}", *overrides) == 128 + signal.SIGTERM
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert cli.main(["resume", str(run)]) == 0
    assert metrics_of(run) == metrics_of(tmp_path / "whole")
    assert (run / "samples.jsonl").read_text() == (tmp_path / "whole" / "samples.jsonl").read_text()
    assert (run / "adapter" / "adapter_model.safetensors").is_file()


def test_a_finished_run_continues_with_more_steps_and_keeps_its_records(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(f"run.dir={run}", "optim.schedule=constant") == 0
    before = metrics_of(run)
    assert cli.main(["resume", str(run), "train.steps=5"]) == 0
    after = metrics_of(run)
    assert after[: len(before)] == before
    assert [row["step"] for row in after] == [1, 2, 3, 3, 4, 5, 5]
    assert train(f"run.dir={tmp_path / 'whole'}", "optim.schedule=constant", "train.steps=5") == 0
    whole = metrics_of(tmp_path / "whole")
    assert [row for row in after if "loss" in row] == [row for row in whole if "loss" in row]
    assert after[-1] == whole[-1]


def test_resuming_from_an_older_step_gives_up_what_came_after(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(f"run.dir={run}", "train.steps=4") == 0
    whole = metrics_of(run)
    assert cli.main(["resume", str(run), "--step", "2", "optim.learning_rate=0.1", "train.steps=3"]) == 0
    rows = metrics_of(run)
    assert rows[:2] == whole[:2]
    assert rows[2] != whole[2]
    assert [row["step"] for row in rows] == [1, 2, 3, 3]
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-2", "step-3"]
    assert json.loads((run / "summary.json").read_text())["step"] == 3
    assert "learning_rate: 0.1" in (run / "config.yaml").read_text()


def test_a_preference_that_fails_midway_keeps_the_steps_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from alignrun.preferences import examples

    original, calls = examples.letters, []

    def fails_later(prompts, completions):
        calls.append(1)
        if len(calls) > 3:
            raise ConnectionError("the judge is gone")
        return original(prompts, completions)

    monkeypatch.setattr(examples, "letters", fails_later)
    run = tmp_path / "run"
    assert train(f"run.dir={run}", "train.steps=6", "train.checkpoint_every=0") == 1
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-3"]
    monkeypatch.setattr(examples, "letters", original)
    assert cli.main(["resume", str(run)]) == 0
    assert train(f"run.dir={tmp_path / 'whole'}", "train.steps=6", "train.checkpoint_every=0") == 0
    assert metrics_of(run) == metrics_of(tmp_path / "whole")


def test_resuming_a_finished_run_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert train(f"run.dir={run}") == 0
    before = (run / "metrics.jsonl").read_bytes()
    assert cli.main(["resume", str(run)]) == 0
    assert "nothing to resume" in " ".join(capsys.readouterr().out.split())
    assert (run / "metrics.jsonl").read_bytes() == before


def test_schedules_warm_up_and_decay() -> None:
    from alignrun.config import OptimConfig, Schedule

    linear = OptimConfig(learning_rate=1.0, warmup_steps=2, schedule=Schedule.linear)
    assert [learning_rate(linear, step, 6) for step in range(6)] == pytest.approx([0.5, 1.0, 1.0, 0.75, 0.5, 0.25])
    cosine = OptimConfig(learning_rate=2.0, schedule=Schedule.cosine)
    assert learning_rate(cosine, 5, 10) == pytest.approx(1.0)
    assert learning_rate(OptimConfig(learning_rate=0.3, schedule=Schedule.constant), 9, 10) == 0.3


def test_splitting_covers_every_row_once() -> None:
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class Rows:
        values: torch.Tensor

    parts = [part.values.tolist() for part, _ in micro_batches(Rows(torch.arange(7)), 3)]
    assert parts == [[0, 1, 2], [3, 4, 5], [6]]


def test_a_signal_that_a_launcher_sends_on_is_the_same_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slurm and torchrun both send SIGTERM to a process: the second one must not end it before it has saved."""
    clock = [100.0]
    monkeypatch.setattr(signals.time, "monotonic", lambda: clock[0])
    ended = []
    before = signal.signal(signal.SIGTERM, lambda *_: ended.append(clock[0]))
    try:
        with signals.stop_requested() as stopped_by:
            for clock[0] in (100.0, 100.1, 104.9):
                signal.raise_signal(signal.SIGTERM)
            assert (stopped_by(), ended) == (signal.SIGTERM, [])
            clock[0] = 105.1
            signal.raise_signal(signal.SIGTERM)
            assert ended == [105.1]
    finally:
        signal.signal(signal.SIGTERM, before)
