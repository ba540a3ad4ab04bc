"""Exact figures of games against an independent solution: the reference is the one that is played."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import root
from scipy.special import softmax

from alignrun import games
from alignrun.errors import InputError
from alignrun.evaluation.exact import played
from alignrun.evaluation.tournament_results import Participant, Settings, exact_standing
from alignrun.launch.build import Assembly, assemble
from alignrun.launch.compose import compose

P, MU = games.CYC.preferences.numpy(), games.CYC.reference.numpy()


def tempered(temperature: float) -> np.ndarray:
    weights = MU ** (1 / temperature)
    return weights / weights.sum()


def solve(reference: np.ndarray, kl_tau: float) -> np.ndarray:
    """The equilibrium π = BR_τ(π) ∝ μ exp(Pπ/τ), by a root finder on its logits."""
    found = root(lambda z: z - np.log(reference) - P @ softmax(z) / kl_tau, np.log(reference), tol=1e-13)
    assert found.success
    return np.asarray(softmax(found.x))


def half_gap(policy: np.ndarray, reference: np.ndarray, kl_tau: float) -> float:
    best = kl_tau * np.log(reference @ np.exp(P @ policy / kl_tau))
    return float(best + kl_tau * (policy * np.log(policy / reference)).sum() - 0.5)


def game(*overrides: str) -> Assembly:
    return assemble(compose(["experiment=game", *overrides]))


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.6])
def test_the_game_has_the_reference_of_its_temperature(temperature: float) -> None:
    """A run at T plays μ^(1/T), and its equilibrium, gap and KL are those of the game with that reference."""
    mu = tempered(temperature)
    evaluation = game("algo=online_ipo", f"generation.temperature={temperature}").evaluate()
    metrics, target = evaluation.metrics, solve(mu, 0.1)
    if temperature == 0.7:
        assert target == pytest.approx([0.522, 0.118, 0.360], abs=5e-4)
    assert [metrics[f"policy/{name}"] for name in "abc"] == pytest.approx(mu.tolist(), abs=1e-5)
    assert metrics["kl"] == pytest.approx(0, abs=1e-6)
    assert metrics["win_rate"] == pytest.approx(0.5)
    assert metrics["kl_equilibrium"] == pytest.approx(float((target * np.log(target / mu)).sum()), abs=1e-5)
    assert metrics["duality_gap"] == pytest.approx(2 * half_gap(mu, mu, 0.1), abs=1e-5)
    shown = ", ".join(f"{name} {p:.3f}" for name, p in zip("abc", target, strict=True))
    assert ("equilibrium", shown) in evaluation.lines
    assert "temperature" not in dict(evaluation.lines)


def test_no_figure_is_a_negative_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    made = game("algo=online_ipo")
    for name in ("kl", "exploitability", "duality_gap"):
        monkeypatch.setattr(games, name, lambda *_: torch.tensor(-1e-9))
    lines = dict(made.evaluate().lines)
    assert lines["KL(policy ‖ reference)"] == "0.0000 nats"
    assert (lines["exploitability"], lines["duality gap"]) == ("0.0000", "0.00000")


def test_another_temperature_of_evaluation_is_another_policy_and_is_said() -> None:
    evaluation = game("generation.temperature=1", "evaluation.temperature=0.7").evaluate()
    policy = [evaluation.metrics[f"policy/{name}"] for name in "abc"]
    assert policy == pytest.approx(tempered(0.7).tolist(), abs=1e-5)
    assert dict(evaluation.lines)["temperature"] == "0.7 in this evaluation, 1 in training"


def test_offline_algorithms_are_evaluated_at_the_temperature_of_evaluation() -> None:
    """They learn at 1, from data: the policy and the reference of another temperature are what is asked for."""
    evaluation = assemble(compose(["experiment=game_pairs", "evaluation.temperature=0.7"])).evaluate()
    policy = [evaluation.metrics[f"policy/{name}"] for name in "abc"]
    assert policy == pytest.approx(tempered(0.7).tolist(), abs=1e-5)
    assert dict(evaluation.lines)["temperature"] == "0.7 in this evaluation, 1 in training"


def test_the_penalty_of_ppo_is_in_the_units_of_the_reward() -> None:
    """A reward divided by its deviation σ under μ leaves a penalty of τσ against P."""
    assembly = game("algo=ppo", "algo.kl_tau=0.5")
    scale = float(assembly.algorithm.state()["reward_shift_and_scale"][1])
    assert scale < 0.5, "win rates against μ vary by less than one"
    assert assembly.algorithm.kl_weight() == pytest.approx(0.5 * scale)
    assert assembly.evaluate().metrics["duality_gap"] == pytest.approx(2 * half_gap(MU, MU, 0.5 * scale), abs=1e-5)
    plain = game("algo=ppo", "algo.kl_tau=0.5", "algo.normalize_reward=false")
    assert plain.evaluate().metrics["duality_gap"] == pytest.approx(2 * half_gap(MU, MU, 0.5), abs=1e-5)


def test_an_action_that_its_temperature_rules_out_keeps_a_logarithm() -> None:
    cold = played(games.CYC, torch.tensor([1.0, 1e-300, 0.0], dtype=torch.float64))
    assert (cold.reference > 0).all()
    assert torch.isfinite(games.equilibrium(cold, 0.1)).all()


def test_tournaments_measure_against_the_reference_that_plays() -> None:
    mu, other = torch.tensor(tempered(0.7)), torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    entries = [
        Participant("other", "runs/other", 1, reference=1),
        Participant("reference", "its reference", None, reference=1),
    ]
    settings = Settings(reference=1, kl_tau=0.1, confidence=0.95, seed=0)
    standing = exact_standing(entries, [other, mu], games.CYC, settings)
    for player, policy in zip(standing.players, (other, mu), strict=True):
        assert player.regularised is not None
        assert player.regularised.gain.value == pytest.approx(half_gap(policy.numpy(), mu.numpy(), 0.1), abs=1e-9)
        assert player.kl is not None
        assert player.kl.value == pytest.approx(float(games.kl(policy, mu)))
    assert standing == exact_standing(entries, [other, mu], replace(games.CYC, reference=other), settings)


def test_games_are_not_truncated() -> None:
    with pytest.raises(InputError, match=r"leave out evaluation\.top_k and evaluation\.top_p"):
        game("evaluation.top_p=0.9")
