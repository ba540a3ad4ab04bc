"""Training with a rollout server: whole runs against a real local one, and the engine that each algorithm gets."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import Job
from generation.serving import BASE, VllmLike
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
    # Other tests leave handlers of the root logger behind, whose streams are closed.
    monkeypatch.setattr(logging.root.manager, "disable", logging.CRITICAL)
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


def metrics(run: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "loss" in row]


def test_nash_md_drafts_its_mixture_on_the_server(
    server: VllmLike, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one", "two"):
        assert train(tmp_path / name, server.url, "algo=nash_md", "algo.mix_beta=0.5") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"rollouts: {server.url} draws the policy; the mixture is drafted there and verified here" in said
    one, two = ((tmp_path / name / "adapter" / "adapter_model.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two, "the seed determines the run"
    rows = metrics(tmp_path / "one")
    assert len(rows) == 3
    for row in rows:
        assert 0.5 < row["draft_acceptance"] <= 1
        assert 1 <= row["draft_rounds"] <= 4
        for name in ("mismatch_kl", "mismatch_kl_k1", "draft_mismatch_kl"):
            assert row[name] == pytest.approx(0, abs=1e-5)
        assert row["mismatch_largest"] == pytest.approx(1, abs=1e-4)
    assert len({body["model"] for body in server.bodies("/v1/completions")}) == 6, "one adapter for each step"


@pytest.mark.nightly
def test_two_processes_sample_and_verify_what_one_does(server: VllmLike, tmp_path: Path) -> None:
    settings = ["algo=nash_md", "algo.mix_beta=0.5", "optim.learning_rate=0.001", "optim.epsilon=1e-4"]
    assert train(tmp_path / "one", server.url, *settings) == 0
    served = ["generation=server", f"generation.server_url={server.url}", f"run.dir={tmp_path / 'two'}"]
    codes, said = Job(*SMALL, *served, *settings, ranks=2).wait()
    assert codes == [0, 0], said
    for one, two in zip(*(metrics(tmp_path / name) for name in ("one", "two")), strict=True):
        for name in ("loss", "win_rate", "draft_acceptance", "draft_rounds", "mismatch_largest", "kl"):
            assert two[name] == pytest.approx(one[name], rel=1e-3, abs=1e-4)
    asked = [body["seed"] for body in server.bodies("/v1/completions")]
    assert all(asked.count(seed) == 2 for seed in asked), "only one of the processes asks"


@pytest.mark.parametrize(
    ("settings", "roles"),
    [
        (["algo=rloo", "algo.reward=win_rate"], "the policy and the reference"),
        (["algo=nash_ema", "algo.ema_decay=0.5"], "the policy and the average"),
        (["algo=inpo", "algo.refresh_every=2"], "the anchor"),
        (["algo=ppo", "preference=sentiment", "algo.normalize_reward=false"], "the policy"),
    ],
)
def test_other_roles_are_drawn_from_their_own_weights(
    settings: list[str], roles: str, server: VllmLike, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path / "run", server.url, *settings) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"rollouts: {server.url} draws {roles} " in f"{said} "
    named = {body["model"] for body in server.bodies("/v1/completions")}
    assert (BASE in named) == ("reference" in roles), "it is the bare base"
    slots = {name.split("-")[2] for name in named - {BASE}}
    assert slots == {name for name in ("policy", "average", "anchor") if name in roles}
    assert ("mismatch_largest" in metrics(tmp_path / "run")[0]) == ("policy" in roles)


def test_the_adapter_of_a_step_is_its_factors_alone(
    server: VllmLike, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = compose(["experiment=smoke", "generation=server", f"generation.server_url={server.url}"])
    served = ServedPolicy(policy, config.generation)
    served.load([Role.policy, Role.reference])
    (folder,) = map(Path, server.loras.values())
    assert sorted(file.name for file in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    served.load([Role.policy])
    assert not folder.exists(), "the one before is gone"
    assert len(server.loras) == 1


def test_a_server_whose_policy_is_another_is_refused_before_the_update(
    server: VllmLike, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.processed = False  # vLLM's default, which is wrong at other temperatures than 1
    settings = ["generation.temperature=0.5", "generation.server_max_kl=1e-3"]
    for name in ("self_play", "nash_md"):
        run = tmp_path / name
        assert train(run, server.url, f"algo={name}", *settings) == 1
        error = capsys.readouterr().err.strip()
        assert len(error.splitlines()) == 1
        assert "nats per token, above generation.server_max_kl=0.001: serve the base" in error
        assert "--logprobs-mode processed_logprobs" in error
        assert not (run / "metrics.jsonl").exists() or not metrics(run)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            ["generation.temperature=2.5"],
            "vLLM samples at temperatures up to 2, and 2.5 is asked for: lower generation.t",
        ),
        (
            ["algo=nash_mp", "algo.explore_temperature=2.1"],
            "up to 2, and 2.1 is asked for: lower generation.temperature,",
        ),
        (["adapter.rank=600"], "vLLM takes adapters of up to rank 512: lower adapter.rank=600"),
    ],
)
def test_what_the_server_does_not_take_is_told_before_anything_is_loaded(
    settings: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path / "run", "http://127.0.0.1:9", *settings) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert "generation.server_kind=sglang" in error
    settings = [*settings, "generation.server_kind=sglang", "generation.server_retries=0"]
    assert train(tmp_path / "run", "http://127.0.0.1:9", *settings) == 1, "SGLang has no such limit"


def test_a_server_that_is_not_there_is_reported_before_the_first_step(
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
