"""Algorithms in the loop: what a checkpoint must hold, steps that are undone, and averaged weights."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import OFFLINE, ONLINE, PAIR_BY_PAIR, offline_arguments
from safetensors.torch import load_file

from alignrun import cli
from alignrun.algorithms.base import discover
from alignrun.algorithms.common import rollout
from alignrun.algorithms.common.workload import workload
from alignrun.errors import RunError
from alignrun.launch.compose import compose


def train(run: Path, *overrides: str) -> int:
    return cli.main(["experiment=smoke", f"run.dir={run}", *overrides])


def files(run: Path, step: int) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((run / "checkpoints" / f"step-{step}").iterdir())}


def measured(run: Path) -> list[dict]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: row[key] for key in row if key not in ("seconds", "tokens_per_second")} for row in rows]


@pytest.mark.parametrize("name", [*ONLINE, *OFFLINE])
def test_a_resumed_run_is_the_same_run(name: str, tmp_path: Path) -> None:
    """Also in the middle of an iteration: weights, moments, copies of the policy and metrics, bit for bit."""
    run = tmp_path / "run"
    settings = ["train.steps=4", "train.checkpoint_every=3", "train.keep_checkpoints=3", "optim.learning_rate=0.01"]
    if hasattr(discover()[name].config_class, "refresh_every"):
        settings.append("algo.refresh_every=2")
    drawn = getattr(discover()[name].config_class(), "opponents_per_sample", None)
    small = ["generation.max_new_tokens=4", "data.eval_size=2"]
    arguments = [f"algo={name}", *small, *(PAIR_BY_PAIR if drawn else [])]
    arguments = arguments if name in ONLINE else offline_arguments(name, tmp_path)
    assert train(run, *arguments, *settings) == 0
    whole, rows = files(run, 4), measured(run)
    assert cli.main(["resume", str(run), "--step", "3"]) == 0
    assert files(run, 4) == whole
    assert measured(run) == rows
    asked = workload(compose(["experiment=smoke", *arguments])).questions
    assert [row.get("questions") for row in rows if "loss" in row] == ([4 * asked] * 4 if drawn else [None] * 4)
    assert name in OFFLINE or {"kl", "entropy", "length", "eos_rate", "repetition"} <= rows[0].keys()


def test_a_resumed_run_chooses_its_opponents_by_what_was_measured_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first draft is kept whole, since the policy is the reference; the second is not, and the third not made."""
    monkeypatch.setattr(rollout, "worth", lambda *_: 0.999)
    run = tmp_path / "run"
    small = ["algo=nash_md", "generation.max_new_tokens=8", "algo.mix_beta=0.5", "data.eval_size=2"]
    settings = ["train.steps=4", "train.checkpoint_every=3", "train.keep_checkpoints=3", "optim.learning_rate=0.05"]
    assert train(run, *small, *settings, "optim.warmup_steps=0") == 0
    whole, rows = files(run, 4), [row for row in measured(run) if "loss" in row]
    shares = [row["opponents_drafted"] for row in rows]
    assert shares[0] == 1
    assert 0 < shares[1] < 0.999
    assert shares[2:] == [0, 0]
    assert cli.main(["resume", str(run), "--step", "3"]) == 0
    assert files(run, 4) == whole


def test_a_step_that_failed_chooses_its_opponents_again_as_it_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second step drafts, and its judge fails after that has been measured as not worth it."""
    monkeypatch.setattr(rollout, "worth", lambda *_: 0.999)
    small = ["algo=nash_md", "generation.max_new_tokens=8", "algo.mix_beta=0.5", "data.eval_size=2"]
    settings = ["train.steps=2", "train.checkpoint_every=0", "optim.learning_rate=0.05", "optim.warmup_steps=0"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert train(whole, *small, *settings) == 0
    judged = rollout.Rollouts.preference

    def failing(self: rollout.Rollouts, *sides: Any, apart: bool) -> Any:
        if sides[-1] == 1:  # the step
            assert self.measured[rollout.DRAFTED] < 0.999
            raise RunError("no answer")
        return judged(self, *sides, apart=apart)

    with monkeypatch.context() as patch:
        patch.setattr(rollout.Rollouts, "preference", failing)
        assert train(broken, *small, *settings) == 1
    assert cli.main(["resume", str(broken)]) == 0
    assert files(broken, 2) == files(whole, 2)


def test_a_half_step_is_undone_with_its_optimiser_state(tmp_path: Path) -> None:
    """Adam after one kept step has counted one, though two were taken; and the half-step did matter."""
    run = tmp_path / "run"
    settings = ["algo=nash_mp", "train.steps=1", "optim.learning_rate=0.05", "train.checkpoint_every=0"]
    assert train(run, *settings) == 0
    saved = load_file(run / "checkpoints/step-1/optimizer.safetensors")
    counts = {float(value) for name, value in saved.items() if name.endswith(".step")}
    assert counts == {1.0}
    moments = [value for name, value in saved.items() if name.endswith(".exp_avg")]
    squares = [value for name, value in saved.items() if name.endswith(".exp_avg_sq")]
    for mean, square in zip(moments, squares, strict=True):  # both of one gradient: (1−β₁)g and (1−β₂)g²
        torch.testing.assert_close((mean / 0.1).square(), square / 0.001, rtol=1e-3, atol=1e-12)


def test_the_averaged_policy_follows_its_recursion_and_is_exported(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert (
        train(run, "algo=nash_ema", "algo.ema_decay=0.75", "train.checkpoint_every=1", "train.keep_checkpoints=9") == 0
    )
    average: dict[str, torch.Tensor] = {}
    for step in (1, 2, 3):
        folder = run / "checkpoints" / f"step-{step}"
        weights, kept = load_file(folder / "weights.safetensors"), load_file(folder / "algorithm.safetensors")
        for name, weight in weights.items():
            before = average.get(name)
            now = kept[name.replace(".policy.", ".average.")]
            if before is not None:
                torch.testing.assert_close(now, 0.25 * weight + 0.75 * before, rtol=1e-5, atol=1e-8)
            average[name] = now
    exported, last = (load_file(run / folder / "adapter_model.safetensors") for folder in ("average", "adapter"))
    assert exported.keys() == last.keys()
    for saved, expected in ((exported, average), (last, weights)):
        plain = {name.replace(".policy.weight", ".weight"): value for name, value in expected.items()}
        for name, value in saved.items():
            (match,) = [key for key in plain if name.endswith(key) or key.endswith(name)]
            assert torch.equal(value, plain[match])
    assert any(not torch.equal(exported[name], last[name]) for name in last)
    assert cli.main(["eval", f"runs=[{run},{run / 'average'}]", f"run.dir={tmp_path / 'eval'}", "tracker=none"]) == 0


@pytest.mark.parametrize("algo", [["algo=nash_prox"], ["algo=omwu", "algo.refresh_every=1"]])
def test_without_adapters_copies_are_whole_models(algo: list[str], tmp_path: Path) -> None:
    """OMWU has two, which differ."""
    run = tmp_path / "run"
    assert train(run, *algo, "adapter=none", "train.checkpoint_every=2", "train.keep_checkpoints=3") == 0
    whole = files(run, 3)
    assert "algorithm.safetensors" in whole
    assert cli.main(["resume", str(run), "--step", "2"]) == 0
    assert files(run, 3) == whole


def test_too_far_from_the_reference_stops_the_run_with_a_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    settings = ["train.steps=30", "optim.learning_rate=0.05", "train.max_kl=0.5", "train.batch_size=16"]
    assert train(run, *settings) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "above train.max_kl=0.5" in error
    rows = [row for row in measured(run) if "loss" in row]
    assert rows[-1]["kl"] > 0.5 >= max(row["kl"] for row in rows[:-1])
    assert (run / "checkpoints" / f"step-{rows[-1]['step']}").is_dir()
    assert cli.main(["export", str(run)]) == 0
    stopped = {file.name: file.read_bytes() for file in (run / "adapter").glob("*.safetensors")}
    assert stopped == {file.name: file.read_bytes() for file in (run / "export").glob("*.safetensors")}, (
        "what it has learned stands there, to be exploited or used as a reference"
    )
    assert cli.main(["resume", str(run), "train.max_kl=null", f"train.steps={rows[-1]['step'] + 1}"]) == 0


def test_a_run_keeps_its_algorithm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert train(run, "algo=self_play", "train.checkpoint_every=2", "train.keep_checkpoints=3") == 0
    before = files(run, 3)
    assert cli.main(["resume", str(run), "--step", "2", "algo=nash_ema"]) == 2
    assert "the algo of a started run is fixed" in capsys.readouterr().err
    assert files(run, 3) == before


def test_a_checkpoint_without_the_copy_that_is_needed_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("self_play", "nash_ema"):
        assert train(tmp_path / name, f"algo={name}", "train.checkpoint_every=2", "train.keep_checkpoints=3") == 0
    (tmp_path / "nash_ema" / "checkpoints").rename(tmp_path / "kept")
    (tmp_path / "self_play" / "checkpoints").rename(tmp_path / "nash_ema" / "checkpoints")
    assert cli.main(["resume", str(tmp_path / "nash_ema"), "--step", "2"]) == 2
    assert "does not fit this model" in capsys.readouterr().err
