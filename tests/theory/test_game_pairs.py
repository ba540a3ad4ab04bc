"""Offline algorithms through the real loop, on a language model whose completions are the actions of a game.

IPO ends at the best response to the policy that the pairs were drawn from, π ∝ μ exp(P(y ≻ ν)/τ), also where
preferences are deterministic or cyclic (arXiv 2310.12036, Theorem 1). DPO on deterministic preferences has
no optimum: its policy goes on towards a single action at every τ (§4.2 there).
"""

import itertools
import json
import math
from pathlib import Path

import pytest

from alignrun import cli

CYC_MU, CYC_P = (0.5, 0.3, 0.2), ((0.5, 0.9, 0.3), (0.1, 0.5, 0.8), (0.7, 0.2, 0.5))


def train(run: Path, *overrides: str) -> list[dict[str, float]]:
    """The evaluations of a run."""
    assert cli.main(["experiment=game_pairs", f"run.dir={run}", *overrides]) == 0
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "eval/policy/a" in row]


def policy(evaluation: dict[str, float]) -> tuple[float, ...]:
    return tuple(evaluation[f"eval/policy/{action}"] for action in "abc")


def distance(first: tuple[float, ...], second: tuple[float, ...]) -> float:
    return sum(abs(p - q) for p, q in zip(first, second, strict=True)) / 2


def best_response(opponent: tuple[float, ...], kl_tau: float) -> tuple[float, ...]:
    wins = [sum(p * q for p, q in zip(row, opponent, strict=True)) for row in CYC_P]
    weights = [mu * math.exp(win / kl_tau) for mu, win in zip(CYC_MU, wins, strict=True)]
    return tuple(weight / sum(weights) for weight in weights)


def write_pairs(path: Path, pairs: list[tuple[str, str]]) -> Path:
    rows = [{"prompt": "play", "chosen": winner, "rejected": loser} for winner, loser in pairs]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


@pytest.mark.slow
def test_ipo_ends_at_the_best_response_to_the_data(tmp_path: Path) -> None:
    last = train(tmp_path / "run")[-1]
    target = best_response((1 / 3, 1 / 3, 1 / 3), 0.1)
    assert distance(policy(last), target) < 1e-3, (policy(last), target)
    # A policy at the reference, or the best response to another opponent, would not pass.
    assert distance(CYC_MU, target) > 0.1
    assert distance(best_response(CYC_MU, 0.1), target) > 0.05


@pytest.mark.slow
def test_deterministic_preferences_ipo_obeys_the_temperature_and_dpo_does_not(tmp_path: Path) -> None:
    data = write_pairs(tmp_path / "pairs.jsonl", [("a", "b"), ("b", "c"), ("a", "c")])
    given = ["data=jsonl", f"data.path={data}", f"data.eval_path={data}", "preference.game=dice"]
    weak, strong = "1", "10"
    # arXiv 2310.12036, appendix: logits (1, 0, −1)/(3τ) from a uniform reference.
    for kl_tau, target in ((weak, (0.448441, 0.321322, 0.230237)), (strong, (0.344537, 0.333243, 0.322319))):
        ipo = train(tmp_path / kl_tau / "ipo", "algo=ipo", f"algo.kl_tau={kl_tau}", *given)
        assert distance(policy(ipo[-1]), target) < 2e-3
    # DPO runs into the largest logits that the network has, at either temperature.
    for kl_tau in (weak, strong):
        dpo = train(tmp_path / kl_tau / "dpo", "algo=dpo", f"algo.kl_tau={kl_tau}", *given, "optim.learning_rate=3e-3")
        climbing = [evaluation["eval/policy/a"] for evaluation in dpo]
        assert all(after > before - 1e-3 for before, after in itertools.pairwise(climbing))
        assert climbing[-1] > 0.95
        assert dpo[-1]["eval/loss"] < dpo[0]["eval/loss"] / 10
