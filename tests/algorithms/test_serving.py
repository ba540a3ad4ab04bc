"""Training with a rollout server: whole runs against a real local one, and the engine that each algorithm gets."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from generation.serving import VllmLike
from helpers import random_batch

from alignrun import cli
from alignrun.algorithms.common.serving import ServedPolicy
from alignrun.errors import RunError
from alignrun.generation.decode import Sampling
from alignrun.launch.compose import compose
from alignrun.models.policy import Policy
from alignrun.models.sources import load_model, load_tokenizer
from alignrun.types import Role

SMALL = (
    "experiment=smoke",
    "optim.learning_rate=0.01",
    "train.batch_size=2",
    "train.micro_batch_size=null",
    "algo.samples_per_prompt=2",
    "generation.max_new_tokens=4",
    "data.eval_size=2",
)
"""Few requests: the server of these tests answers one after another."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[VllmLike]:
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.delenv("ALIGNRUN_ROLLOUT_API_KEY", raising=False)
    config = compose(["experiment=smoke"])
    torch.manual_seed(config.seed)  # the base that the run itself makes
    started = VllmLike(load_model(config.model, load_tokenizer(config.model), torch.float32))
    yield started
    started.stop()


def train(run: Path, url: str, *overrides: str) -> int:
    served = ["generation=server", f"generation.server_url={url}"]
    return cli.main([*SMALL, f"run.dir={run}", *served, *overrides])


@pytest.mark.parametrize("name", ["self_play", "online_ipo", "nash_mp"])
def test_a_run_samples_from_the_policy_of_every_step(name: str, server: VllmLike, tmp_path: Path) -> None:
    folder = tmp_path / "adapters"
    folder.mkdir()
    assert train(tmp_path / "run", server.url, f"algo={name}", f"generation.server_adapter_folder={folder}") == 0
    draws = 6 if name == "nash_mp" else 3
    loads = server.bodies("/v1/load_lora_adapter")
    assert len(loads) == len({body["lora_name"] for body in loads}) == draws
    assert all(Path(body["lora_path"]).is_relative_to(folder) for body in loads)
    asked = server.bodies("/v1/completions")
    assert len({body["model"] for body in asked}) == draws, "each draw from an adapter of its own"
    assert len({body["seed"] for body in asked}) == len(asked)
    temperatures = {body["temperature"] for body in asked}
    assert len(temperatures) == (2 if name == "nash_mp" else 1)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len({row["loss"] for row in rows if "loss" in row}) == 3


def test_a_token_that_the_policy_does_not_have_is_refused(server: VllmLike, policy: Policy) -> None:
    config = compose(["experiment=smoke", "generation=server", f"generation.server_url={server.url}"])
    served = ServedPolicy(policy, config.generation)
    served.load([Role.policy])

    def foreign(answer: dict[str, Any]) -> dict[str, Any]:
        for choice in answer["choices"]:
            choice |= {"token_ids": [5, 70_000], "finish_reason": "length"}
        return answer

    server.alter = foreign
    with pytest.raises(RunError, match=r"drew token 70000, and the policy has \d+: serve the base that is trained"):
        served.sample(random_batch(policy)[0], Role.policy, [1.0], Sampling(2, stop_ids=[258], pad_id=257), 0)


def test_what_was_written_for_the_server_goes_with_the_run(server: VllmLike, tmp_path: Path) -> None:
    folder = tmp_path / "adapters"
    folder.mkdir()
    assert train(tmp_path / "run", server.url, "algo=self_play", f"generation.server_adapter_folder={folder}") == 0
    assert not list(folder.iterdir())
    loaded, forgotten = (
        [body["lora_name"] for body in server.bodies(f"/v1/{verb}_lora_adapter")] for verb in ("load", "unload")
    )
    assert loaded == forgotten, "the server keeps nothing of a run that has ended"


def test_mixtures_are_sampled_natively_and_the_run_says_so(
    server: VllmLike, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path / "served", server.url, "algo=nash_md") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "algo=nash_md also samples other policies, which the native engine does" in said
    assert not server.bodies("/v1/completions")
    assert cli.main([*SMALL, "algo=nash_md", "generation.temperature=1", f"run.dir={tmp_path / 'native'}"]) == 0
    one, other = (
        (tmp_path / name / "adapter" / "adapter_model.safetensors").read_bytes() for name in ("served", "native")
    )
    assert one == other


@pytest.mark.parametrize(
    ("settings", "alone"),
    [
        (["algo=self_play"], True),
        (["algo=rloo", "algo.reward=win_rate"], False),
        (["algo=rloo", "algo.reward=scalar", "preference=sentiment"], True),
    ],
)
def test_the_policy_alone_needs_no_such_note(
    settings: list[str], alone: bool, server: VllmLike, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path / "run", server.url, *settings) == 0
    assert ("native engine" in capsys.readouterr().out) is not alone
    assert bool(server.bodies("/v1/completions")) is alone


def test_a_server_that_is_not_there_is_told_before_the_first_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    settings = ["algo=self_play", "generation.server_retries=0"]
    assert train(run, "http://127.0.0.1:9", *settings) == 1
    error = capsys.readouterr().err.strip()
    assert "127.0.0.1:9" in error
    assert len(error.splitlines()) == 1
    assert not (run / "metrics.jsonl").exists()


def test_without_an_adapter_there_is_nothing_to_send(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path / "run", "http://127.0.0.1:9", "algo=self_play", "adapter=none") == 2
    assert "use adapter=lora or qlora" in capsys.readouterr().err
