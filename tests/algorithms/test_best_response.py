"""A best response to a frozen policy: what it reaches is known exactly on games."""

import json
from itertools import product
from pathlib import Path

import pytest
import torch
from helpers import random_batch

from alignrun import cli, games
from alignrun.algorithms.common.rollout import sample_streams, step_generator
from alignrun.generation.decode import Sampling
from alignrun.launch import compose
from alignrun.launch.build import load_trained
from alignrun.models.policy import Policy
from alignrun.models.sources import load_tokenizer
from alignrun.types import Role


@pytest.fixture(scope="module")
def opponent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nash-MD at β = 1 ends near BR(μ) on CYC, which is far more exploitable than the equilibrium."""
    run = tmp_path_factory.mktemp("runs") / "opponent"
    assert cli.main(["experiment=game", "algo.mix_beta=1", "train.steps=100", f"run.dir={run}"]) == 0
    return run


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "smoke"
    assert cli.main(["experiment=smoke", "optim.learning_rate=0.1", f"run.dir={run}"]) == 0
    return run


def load(run: Path, *overrides: str) -> Policy:
    config = compose.changed(compose.load(run / "config.yaml"), overrides)
    policy = load_trained(config, load_tokenizer(config.model))
    assert isinstance(policy, Policy)
    return policy


def exploited(run: Path, folder: Path, *overrides: str) -> dict[str, float]:
    target = folder / "response"
    assert cli.main(["exploit", str(run), f"run.dir={target}", *overrides]) == 0
    summary: dict[str, float] = json.loads((target / "summary.json").read_text())
    return summary


@pytest.mark.slow
def test_it_reaches_half_the_duality_gap_from_below(opponent: Path, tmp_path: Path) -> None:
    found = exploited(opponent, tmp_path, "train.steps=120")
    policy = [found[f"policy/{action}"] for action in "abc"]
    frozen = [json.loads((opponent / "summary.json").read_text())[f"policy/{action}"] for action in "abc"]
    game, tau = games.CYC, 0.1
    mine, other = (torch.tensor(p, dtype=torch.float64) / sum(p) for p in (policy, frozen))
    half = games.duality_gap(game, other, tau).item() / 2
    assert found["opponent/duality_gap"] / 2 == pytest.approx(half, abs=1e-6)
    gain = games.regularised_win_rate(game, mine, other, tau).item() - 0.5
    assert found["opponent/regularised_gain"] == pytest.approx(gain, abs=1e-6)
    assert 0.95 * half < gain <= half + 1e-9
    distance = (mine - games.best_response(game, other, tau)).abs().sum().item() / 2
    assert distance < 0.03
    assert found["opponent/gain"] <= found["opponent/exploitability"]


@pytest.mark.slow
def test_without_a_penalty_it_approaches_the_exploitability(opponent: Path, tmp_path: Path) -> None:
    found = exploited(opponent, tmp_path, "train.steps=200", "algo.kl_tau=0")
    assert "opponent/regularised_gain" not in found
    assert 0.95 * found["opponent/exploitability"] < found["opponent/gain"] <= found["opponent/exploitability"] + 1e-6


def test_it_starts_as_the_opponent_and_the_opponent_stays(smoke: Path) -> None:
    trained = load(smoke, "reference=adapter", f"reference.path={smoke}")
    policy = load(smoke, "algo=best_response", f"algo.opponent={smoke}")
    assert policy.has_opponent
    assert not trained.has_opponent
    prompts, completions = random_batch(policy)
    ours, other, base = (
        policy.log_probs(role, prompts, completions) for role in (Role.policy, Role.opponent, Role.reference)
    )
    assert torch.equal(ours, other)
    assert not torch.allclose(ours, base, atol=1e-3)
    assert torch.allclose(other, trained.log_probs(Role.reference, prompts, completions), atol=1e-6)
    with torch.no_grad():
        for weight in policy.trainable().values():
            weight += 0.1
    assert not torch.allclose(policy.log_probs(Role.policy, prompts, completions), other, atol=1e-3)
    assert torch.equal(policy.log_probs(Role.opponent, prompts, completions), other)
    assert torch.equal(policy.log_probs(Role.reference, prompts, completions), base)
    assert policy.fingerprint(Role.opponent) != policy.fingerprint(Role.policy)


def test_both_are_drawn_in_one_loop_as_they_would_be_alone(smoke: Path) -> None:
    policy = load(smoke, "algo=best_response", f"algo.opponent={smoke}")
    with torch.no_grad():
        for weight in policy.trainable().values():
            weight += 0.1
    prompts, _ = random_batch(policy)
    sampling = Sampling(6, policy.stop_ids, policy.tokenizer.pad_token_id)
    drawn = {
        roles: sample_streams(policy, prompts, roles, sampling, step_generator(policy.device, 0, 0))
        for roles in product((Role.policy, Role.opponent), repeat=2)
    }
    assert torch.equal(drawn[Role.policy, Role.opponent][0].tokens, drawn[Role.policy, Role.policy][0].tokens)
    assert torch.equal(drawn[Role.policy, Role.opponent][1].tokens, drawn[Role.opponent, Role.opponent][1].tokens)
    assert not torch.equal(drawn[Role.policy, Role.policy][1].tokens, drawn[Role.opponent, Role.opponent][1].tokens)


def test_the_response_to_a_text_policy_is_measured_with_intervals(smoke: Path, tmp_path: Path) -> None:
    found = exploited(smoke, tmp_path, "evaluation.samples_per_prompt=2", "train.steps=1", "optim.learning_rate=1e-9")
    # It is still the opponent itself: no gain beyond noise, the same KL, and so the same gain in both games.
    assert found["opponent/gain_low"] <= 0 <= found["opponent/gain_high"]
    assert found["opponent/gain"] == pytest.approx(found["opponent/win_rate"] - 0.5)
    assert {"win_rate", "kl"} <= found.keys(), "in addition to the measures against the reference"
    config = compose.load(tmp_path / "response" / "config.yaml")
    assert config.algo.opponent == str(smoke)
    assert config.algo.samples_per_prompt == 8
    assert cli.main(["resume", str(tmp_path / "response"), "train.steps=2"]) == 0


def test_the_preference_can_be_another(smoke: Path, tmp_path: Path) -> None:
    exploited(smoke, tmp_path, "preference=sentiment", "preference.temperature=0.2", "train.steps=1")
    assert compose.load(tmp_path / "response" / "config.yaml").preference.temperature == 0.2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["exploit", "nowhere"], "does not exist"),
        (["exploit", "RUN", "algo.kl_tua=1"], "did you mean algo.kl_tau"),
        (["exploit", "RUN", "preference=lettrs"], "did you mean letters"),
        (["exploit", "RUN", "adapter.rank=4"], "cannot be set with algo.opponent"),
        (["exploit", "RUN", "adapter=none"], "needs adapter=lora"),
        (["exploit", "RUN", "preference=none"], "needs a preference"),
        (["exploit", "RUN", "seed=8"], "was trained on another base"),
        (["exploit"], "required: RUN"),
        (["experiment=smoke", "algo=best_response", "algo.opponent=nowhere"], "name a finished run"),
    ],
)
def test_what_cannot_be_exploited(
    smoke: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([argument.replace("RUN", str(smoke)) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(Path().glob("runs/*"))


def test_a_run_that_has_not_finished_is_reported_so(
    smoke: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "config.yaml").write_text((smoke / "config.yaml").read_text())
    assert cli.main(["exploit", str(tmp_path / "half")]) == 2
    assert "has not finished: `alignrun resume" in capsys.readouterr().err
