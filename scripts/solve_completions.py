"""Solve a preference on real completions exactly: Bradley-Terry and RLHF against the equilibrium.

    python scripts/solve_completions.py [--prompts 24] [--samples 48] [key=value …]

Each prompt becomes a matrix game between K completions of the reference, with μ uniform on them, and is
solved without training for

- the equilibrium π*_τ (arXiv 2312.00886);
- RLHF on the win rate against μ, π ∝ μ exp(P(y ≻ μ)/τ'), which is also offline IPO's policy (arXiv 2310.12036);
- RLHF on the Bradley-Terry reward that fits all pairs best, π ∝ μ exp(r(y)/τ').

τ' is set for each prompt so that all three have the KL of the equilibrium. Intervals resample prompts. The overrides
are those of `alignrun`; `algo.kl_tau` is τ.
"""

import argparse
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import brentq, minimize
from torch import Tensor

from alignrun.data.loading import load_examples
from alignrun.data.prompts import PromptSet
from alignrun.evaluation.completions import Drawing, draw
from alignrun.games import Game, duality_gap, equilibrium, exploitability, kl, win_rate, win_rates
from alignrun.launch.build import distinct_prompts, load_trained, make_encoding
from alignrun.launch.compose import compose
from alignrun.models.policy import Policy
from alignrun.preferences.base import Preference, build_preference
from alignrun.types import Role

RESAMPLES = 10_000


def completion_game(preference: Preference, prompt: str, texts: Sequence[str]) -> Game:
    """The game between the different texts, each as likely under μ as it was drawn."""
    actions, counts = np.unique(np.asarray(texts, dtype=object), return_counts=True)
    n = len(actions)
    rows, columns = np.triu_indices(n, 1)
    upper = preference([prompt] * len(rows), list(actions[rows]), list(actions[columns])).double()
    table = torch.full((n, n), 0.5, dtype=torch.float64)
    table[rows, columns], table[columns, rows] = upper, 1 - upper
    return Game(table, torch.as_tensor(counts / counts.sum()), tuple(actions))


def bradley_terry_rewards(game: Game) -> Tensor:
    """argmin_r −E_{y,y'∼μ}[P(y ≻ y') log σ(r(y) − r(y'))], with mean 0; [n]."""
    table = game.preferences.numpy()
    weight = np.outer(game.reference.numpy(), game.reference.numpy())

    def loss(rewards: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        margin = rewards[:, None] - rewards[None, :]
        pull = weight * (1 / (1 + np.exp(-margin)) - table)
        return float((weight * (np.logaddexp(0, margin) - table * margin)).sum()), pull.sum(1) - pull.sum(0)

    fitted = minimize(loss, np.zeros(len(table)), jac=True, method="L-BFGS-B", options={"maxiter": 5000, "ftol": 1e-14})
    return torch.as_tensor(fitted.x - fitted.x.mean())


def tilted(game: Game, rewards: Tensor, divergence: float) -> Tensor:
    """π ∝ μ exp(r/τ') with the τ' at which KL(π‖μ) is the one asked for; the largest there is where it is beyond."""

    def policy(log_inverse: float) -> Tensor:
        return torch.softmax(game.reference.log() + rewards * np.exp(log_inverse), dim=0)

    low, high = -12.0, 12.0
    if float(kl(policy(high), game.reference)) <= divergence:
        return policy(high)
    root = brentq(lambda x: float(kl(policy(x), game.reference)) - divergence, low, high)
    return policy(root)


def interval(values: Sequence[float]) -> str:
    """The mean with its bootstrap interval over prompts."""
    column = np.asarray(values)
    draws = np.random.default_rng(0).integers(len(column), size=(RESAMPLES, len(column)))
    low, high = np.quantile(column[draws].mean(1), [0.025, 0.975])
    return f"{column.mean():6.3f} ({low:.3f} to {high:.3f})"


def cyclic_share(game: Game) -> float:
    """The share of triples of actions that form a cycle."""
    beats = (game.preferences > 0.5).double()
    cycles = float(torch.trace(beats @ beats @ beats)) / 3
    n = len(game.actions)
    return cycles / (n * (n - 1) * (n - 2) / 6) if n > 2 else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--samples", type=int, default=48)
    given, overrides = parser.parse_known_args()
    config = compose(["preference=style_panel", f"data.eval_size={given.prompts}", *overrides])
    encoding = make_encoding(config)
    examples = distinct_prompts(load_examples(config.data).heldout)
    policy = load_trained(config, encoding.tokenizer)
    assert isinstance(policy, Policy)
    preference = build_preference(config.preference, policy.backbone)
    new = config.generation.max_new_tokens
    drawing = Drawing(given.samples, new, config.generation.temperature, 0, 1.0, batch_size=1, seed=config.seed)
    drawn = draw(policy, Role.reference, PromptSet.build(examples, encoding), drawing, "reference")

    tau = config.algo.kl_tau
    columns: dict[str, dict[str, list[float]]] = {}
    cycles, against = [], "P(equilibrium beats it)"
    for example, texts in zip(examples, drawn.texts, strict=True):
        game = completion_game(preference, example.prompt, texts)
        cycles.append(cyclic_share(game))
        solution = equilibrium(game, tau)
        divergence = float(kl(solution, game.reference))
        policies = {
            "reference": game.reference,
            "equilibrium": solution,
            "RLHF on P(y beats the reference)": tilted(game, win_rates(game, game.reference), divergence),
            "RLHF on a Bradley-Terry reward": tilted(game, bradley_terry_rewards(game), divergence),
        }
        for name, one in policies.items():
            row = columns.setdefault(name, {})
            for measure, value in (
                ("KL", kl(one, game.reference)),
                ("P(it beats the reference)", win_rate(game, one, game.reference)),
                (against, win_rate(game, solution, one)),
                ("exploitability", exploitability(game, one)),
                ("duality gap / 2", duality_gap(game, one, tau) / 2),
            ):
                row.setdefault(measure, []).append(float(value))
    print(f"{len(examples)} prompts, {given.samples} completions of up to {new} tokens, tau {tau}")
    print(f"cyclic triples: {interval(cycles)}")
    for name, row in columns.items():
        print(name)
        for measure, values in row.items():
            print(f"  {measure:28s} {interval(values)}")


if __name__ == "__main__":
    main()
