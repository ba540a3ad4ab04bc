"""train.epochs: so many passes over the rows, whatever the size of a batch, and across interruptions."""

import json
from collections import Counter
from pathlib import Path

import pytest
import yaml
from helpers import offline_arguments, refused_smoke
from hypothesis import given
from hypothesis import strategies as st

from alignrun import cli
from alignrun.config import TrainConfig
from alignrun.data.order import rows_at
from alignrun.errors import InputError
from alignrun.launch import compose
from alignrun.launch.own_files import OwnFiles, using
from alignrun.sweeps.pruning import check_pruning


@given(st.integers(1, 40), st.integers(1, 15), st.sampled_from([0.1, 0.3, 0.5, 1.0, 1.1, 2.0, 3.0]))
def test_every_row_is_taken_in_every_epoch_and_no_step_is_too_many(rows: int, size: int, epochs: float) -> None:
    steps = TrainConfig(steps=0, epochs=epochs, batch_size=size).steps_over(rows)
    taken = Counter(row for step in range(steps) for row in rows_at(step, size, rows, seed=1))
    wanted = round(epochs * 10) * rows  # tenths of examples
    assert 10 * sum(taken.values()) >= wanted
    assert steps == 1 or 10 * (steps - 1) * size < wanted
    if epochs in (1.0, 2.0, 3.0):
        assert min(taken[row] for row in range(rows)) >= epochs


def test_epochs_are_what_was_typed() -> None:
    """1.1 times 10 is a little more than 11 in binary."""
    assert TrainConfig(steps=0, epochs=1.1, batch_size=1).steps_over(10) == 11


@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 9), st.integers(0, 9), st.integers(1, 3))
def test_another_batch_size_takes_the_examples_that_are_left(
    rows: int, before: int, after: int, done: int, epochs: int
) -> None:
    examples, steps = done * before, done
    while examples < epochs * rows:
        examples, steps = examples + after, steps + 1
    found = TrainConfig(steps=0, epochs=float(epochs), batch_size=after).steps_over(rows, done, done * before)
    # A run that has taken more than its epochs ends before the step that it is at, and is refused.
    assert found == max(1, steps) if done * before <= epochs * rows else found <= done


def test_either_steps_or_epochs() -> None:
    base = ["experiment=smoke"]
    assert compose.compose(base).train.epochs is None
    train = compose.compose([*base, "train.epochs=2"]).train
    assert (train.steps, train.epochs) == (0, 2.0)
    with pytest.raises(InputError, match=r"train\.steps and train\.epochs exclude each other"):
        compose.compose([*base, "train.epochs=2", "train.steps=5"])
    for number, (text, expected) in enumerate([("epochs: 2", (0, 2.0)), ("steps: 7", (7, None))]):
        Path(f"{number}.yaml").write_text(f"train: {{{text}}}\n")
        with using(OwnFiles(tuple(Path(f"{one}.yaml") for one in range(number + 1)))):  # the last one counts
            train = compose.compose(base).train
        assert (train.steps, train.epochs) == expected
    Path("both.yaml").write_text("train: {steps: 7, epochs: 2}\n")
    with using(OwnFiles((Path("both.yaml"),))):
        with pytest.raises(InputError, match=r"both\.yaml: train\.steps and train\.epochs exclude each other"):
            compose.compose(base)
        assert compose.compose([*base, "train.steps=5"]).train.epochs is None
    with pytest.raises(InputError, match=r"train\.epochs must be positive"):
        compose.compose([*base, "train.epochs=0"])
    with pytest.raises(InputError, match=r"train\.steps must be at least 1"):
        compose.compose([*base, "train.steps=0"])
    settled = compose.changed(compose.compose([*base, "train.epochs=2"]), [])
    assert compose.changed(settled, ["train.steps=7"]).train == compose.compose([*base, "train.steps=7"]).train
    assert compose.changed(compose.compose(base), ["train.epochs=1"]).train.steps == 0
    check_pruning(compose.compose([*base, "train.epochs=1", "evaluation.every=5", "sweep.pruner=median"]))


def test_a_run_of_epochs_is_resumed_to_more_of_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Eleven rows in batches of four: three steps an epoch; then in batches of two, from the twelfth example on."""
    run = tmp_path / "run"
    given = ["experiment=smoke", *offline_arguments("sft", tmp_path), "train.batch_size=4", f"run.dir={run}"]
    assert cli.main([*given, "train.epochs=1"]) == 0
    assert "1 epoch of 11 rows: 3 steps" in capsys.readouterr().out
    stored = yaml.safe_load((run / "config.yaml").read_text())["train"]
    assert (stored["steps"], stored["epochs"]) == (3, 1.0)
    assert cli.main(["resume", str(run)]) == 0
    assert "nothing to resume" in capsys.readouterr().out
    assert cli.main(["resume", str(run), "train.epochs=2", "train.batch_size=2"]) == 0
    assert "2 epochs of 11 rows: 8 steps" in capsys.readouterr().out  # 12 examples are taken, 10 of 22 are left
    assert json.loads((run / "summary.json").read_text())["step"] == 8
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows if "epoch" in row][-1] == 2.0
    assert cli.main(["resume", str(run), "train.epochs=1"]) == 2
    assert (
        "train.epochs=1 ends at step 3, less than step 8, from which the run would continue" in capsys.readouterr().err
    )
    assert cli.main(["resume", str(run), "train.steps=9"]) == 0
    assert yaml.safe_load((run / "config.yaml").read_text())["train"]["epochs"] is None


def test_a_warm_up_is_compared_with_the_steps_of_the_epochs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = [*offline_arguments("sft", tmp_path), "train.epochs=1", "train.batch_size=4", "optim.warmup_steps=4"]
    assert "optim.warmup_steps=4 is more than train.steps=3" in refused_smoke(capsys, tmp_path, *more)


def test_a_plan_needs_no_data(capsys: pytest.CaptureFixture[str]) -> None:
    fading = ["algo.mix_beta=0.5", "algo.mix_beta_end=0"]
    assert cli.main(["plan", "experiment=smoke", *fading, "train.epochs=2", "data=jsonl", "data.path=none.jsonl"]) == 0
    assert "train.epochs=2: `alignrun data` with the same keys counts its steps" in capsys.readouterr().out
