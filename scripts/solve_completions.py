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
from studies.solutions import bradley_terry_rewards, cyclic_share, tilted

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


def interval(values: Sequence[float]) -> str:
    """The mean with its bootstrap interval over prompts."""
    column = np.asarray(values)
    draws = np.random.default_rng(0).integers(len(column), size=(RESAMPLES, len(column)))
    low, high = np.quantile(column[draws].mean(1), [0.025, 0.975])
    return f"{column.mean():6.3f} ({low:.3f} to {high:.3f})"


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
