"""Scores without a gradient: where a batch does not fit, half of it goes on, and no score changes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import load_policy, offline_arguments, random_batch

from alignrun import cli
from alignrun.algorithms.common.scoring import log_ratio, scoring
from alignrun.data.prompts import PromptSet
from alignrun.evaluation.completions import Drawing, draw, score
from alignrun.evaluation.heldout import measure
from alignrun.launch.build import Assembly, assemble, make_encoding
from alignrun.launch.compose import compose
from alignrun.models.policy import Policy
from alignrun.types import Example, Role


def with_room_for(prompts: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """From here on, more prompts in one pass run out of memory; the prompts of all passes."""
    sizes: list[int] = []
    log_probs = Policy.log_probs

    def scored(self: Policy, role: Role, batch: Any, *rest: Any) -> torch.Tensor:
        sizes.append(len(batch))
        if len(batch) > prompts:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return log_probs(self, role, batch, *rest)

    monkeypatch.setattr(Policy, "log_probs", scored)
    return sizes


def test_the_size_that_fits_is_kept_and_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, _ = load_policy()
    prompts, completions = random_batch(policy, prompts=5)
    memory, notes = scoring(None, "train.micro_batch_size"), list[str]()
    expected = log_ratio(policy, Role.policy, prompts, completions, 0.7, memory)
    assert expected.shape == completions.mask.shape
    alone = [policy.log_probs(role, prompts, completions, 0.7) for role in (Role.policy, Role.reference)]
    torch.testing.assert_close(expected, alone[0] - alone[1])
    sizes = with_room_for(2, monkeypatch)
    memory.note = notes.append
    for _ in range(2):
        found = log_ratio(policy, Role.policy, prompts, completions, 0.7, memory)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    both = [2, 2, 2, 2, 1, 1]
    assert sizes == [5, 3, *both, *both]
    assert notes == [
        "out of memory when scoring 5 prompts: continuing with 3, which changes no score (train.micro_batch_size=3 "
        "saves the attempt)",
        "out of memory when scoring 3 prompts: continuing with 2, which changes no score (train.micro_batch_size=2 "
        "saves the attempt)",
    ]


def test_one_prompt_that_does_not_fit_ends_in_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, _ = load_policy()
    with_room_for(0, monkeypatch)
    with pytest.raises(torch.OutOfMemoryError):
        log_ratio(policy, Role.policy, *random_batch(policy, prompts=3), 1.0, scoring(None, ""))


@pytest.mark.parametrize("name", ["grpo", "ppo", "nash_pg"])
def test_a_frozen_rollout_is_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assembly = assemble(compose(["experiment=smoke", f"algo={name}", "train.micro_batch_size=null"]))
    batch = assembly.data.batch_at(0, 4)
    expected = next(iter(assembly.algorithm.collect(batch, 0)))
    sizes = with_room_for(1, monkeypatch)
    found = next(iter(assembly.algorithm.collect(batch, 0)))
    assert max(sizes) == 4
    for part in ("log_probs", "reference"):
        torch.testing.assert_close(getattr(found, part), getattr(expected, part), atol=1e-5, rtol=0)


def test_the_completions_of_a_tournament_have_the_same_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, config = load_policy()
    examples = [Example("so " * number, f"row {number}") for number in range(5)]
    prompts = PromptSet.build(examples, make_encoding(config))
    drawing = Drawing(samples=3, max_new_tokens=6, temperature=0.8, top_k=0, top_p=1.0, batch_size=3, seed=0)
    drawn = draw(policy, Role.policy, prompts, drawing, "stream")
    sizes = with_room_for(2, monkeypatch)
    found = score(policy, Role.policy, prompts, drawn.tokens, drawing)
    np.testing.assert_allclose(found, drawn.log_probs, atol=1e-4)
    assert sizes == [3, 2, 1, 2]


def assembled(name: str, folder: Path, *overrides: str) -> Assembly:
    return assemble(compose(["experiment=smoke", *offline_arguments(name, folder), *overrides]))


@pytest.mark.parametrize("name", ["dpo", "reward_model", "sft"])
def test_held_out_measures_are_the_same(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assembly = assembled(name, tmp_path)
    algorithm, data, device = assembly.algorithm, assembly.data, assembly.trained.device
    expected, loss, sizes = measure(algorithm, data, 4, device), type(algorithm).loss, list[int]()

    def hungry(self: Any, batch: Any) -> Any:
        sizes.append(1)
        if len(sizes) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return loss(self, batch)

    monkeypatch.setattr(type(algorithm), "loss", hungry)
    found = measure(algorithm, data, 4, device)
    assert len(sizes) == 1 + 6, "eleven rows, two at a time"
    assert found.targets == expected.targets
    assert found.metrics == pytest.approx(expected.metrics, rel=1e-4, abs=1e-5)
    np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=1e-5)


def test_the_precomputed_reference_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGNRUN_CACHE", str(tmp_path / "cache"))
    given = "dpo", tmp_path, "algo.precompute_reference=true"
    expected = assembled(*given).data.batch_at(0, 11).reference
    monkeypatch.setenv("ALIGNRUN_CACHE", str(tmp_path / "other"))
    sizes = with_room_for(1, monkeypatch)
    found = assembled(*given).data.batch_at(0, 11).reference
    assert min(sizes) == 1 < max(sizes)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_a_run_goes_on_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with_room_for(2, monkeypatch)
    given = ["experiment=smoke", "algo=grpo", "train.steps=1", "train.micro_batch_size=null"]
    assert cli.main([*given, f"run.dir={tmp_path / 'run'}"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "out of memory when scoring 4 prompts: continuing with 2, which changes no score" in said
