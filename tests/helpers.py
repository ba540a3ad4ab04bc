"""What several tests share: small policies and batches, refused commands, solutions of games, answers of servers."""

import json
from collections.abc import Callable, Mapping, Sequence
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import root

from alignrun import cli
from alignrun.algorithms.base import discover
from alignrun.config import Config, DataConfig
from alignrun.data.encoding import Encoding
from alignrun.games import Game
from alignrun.launch.compose import compose
from alignrun.models.policy import Policy
from alignrun.models.sources import load_tokenizer
from alignrun.preferences.base import Preference
from alignrun.preferences.examples import letters
from alignrun.types import Completions, PromptBatch

ONLINE = sorted(name for name, kind in discover().items() if kind.online)
"""The algorithms that sample while they train."""

OFFLINE = sorted(name for name, kind in discover().items() if not kind.online)
"""The algorithms that learn from data alone."""


def offline_arguments(name: str, folder: Path) -> list[str]:
    """What such an algorithm needs to learn from eleven rows, which are written into the folder."""
    rows = [
        {"prompt": f"Say {'so ' * (row % 3)}{row}", "chosen": "yes " * (1 + row % 4), "rejected": "no " * (1 + row % 3)}
        for row in range(11)
    ]
    if name == "sft":
        rows = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in rows]
    file = folder / f"{name}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = ["data=jsonl", f"data.path={file}", f"data.eval_path={file}", "data.eval_size=11", "preference=none"]
    return [f"algo={name}", *data]


def encoding_of(tokenizer: Any, **options: Any) -> Encoding:
    """An encoding with room for 100 tokens; options are its fields or keys of `data`."""
    settings = {"system_prompt": None, "context": 100, "max_new_tokens": 0, "seed": 3, **options}
    fields = {name: settings.pop(name) for name in Encoding.__dataclass_fields__ if name in settings}
    return Encoding(tokenizer=tokenizer, data=DataConfig(**settings), **fields)


def load_policy(*overrides: str) -> tuple[Policy, Config]:
    """A policy of the smoke preset, its adapter moved away from zero so that it differs from the reference."""
    config = compose(["experiment=smoke", *overrides])
    policy = Policy.load(config.model, config.adapter, config.reference, load_tokenizer(config.model), config.seed)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for weight in policy.trainable().values():
            weight += 0.2 * torch.randn(weight.shape, generator=generator).to(weight.device)
    return policy, config


def random_batch(policy: Policy, prompts: int = 3, tokens: int = 5, seed: int = 0) -> tuple[PromptBatch, Completions]:
    """Left-padded prompts and right-padded completions of unequal lengths."""
    generator = torch.Generator().manual_seed(seed)
    width = 6
    ids = torch.randint(0, 200, (prompts, width), generator=generator)
    mask = torch.ones(prompts, width, dtype=torch.long)
    completion = torch.randint(0, 200, (prompts, tokens), generator=generator)
    completion_mask = torch.ones(prompts, tokens, dtype=torch.bool)
    for row in range(prompts):
        mask[row, : row % 3] = 0
        completion_mask[row, tokens - row % 2 :] = False
    batch = PromptBatch(tuple(f"prompt {row}" for row in range(prompts)), ids, mask)
    return batch, Completions(completion, completion_mask)


def refused_smoke(capsys: pytest.CaptureFixture[str], folder: Path, *overrides: str) -> str:
    """The one line in which a run of the smoke preset is refused; it leaves nothing behind."""
    assert cli.main(["experiment=smoke", f"run.dir={folder / 'refused'}", *overrides]) == 2
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1
    assert not (folder / "refused").exists()
    return error


def more_letters(prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> list[float]:
    """A preference of pairs, for `preference.function`: each more letter counts."""
    pairs = zip(letters(prompts, first), letters(prompts, second), strict=True)
    return [0.5 + (one - other) / 2 for one, other in pairs]


def turned_cycle(prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> list[float]:
    """A preference of conversations of two actions of CYC, for `preference.function`.

    The second action beats the next in the cycle by 0.9, or if the first actions differ, the one before it. What is no
    action counts as the first.
    """

    def places(text: str) -> list[int]:
        return [max(0, "abc".find(word[-1:])) if word else 0 for word in (text.split("\n\n")[0], text.split(" ")[-1])]

    def wins(one: str, other: str) -> float:
        (a, b), (c, d) = places(one), places(other)
        ahead = (d - b) % 3
        return 0.5 if ahead == 0 else 0.9 if (ahead == 1) == (a == c) else 0.1

    return [wins(*pair) for pair in zip(first, second, strict=True)]


PAIR_BY_PAIR = ["preference=function", "preference.function=helpers:more_letters"]
"""A preference to which every pair is a question."""


class Compared(Preference):
    """A preference given by its function; `by_pair` says whether each pair is a question of its own."""

    def __init__(self, function: Callable[..., torch.Tensor], *, by_pair: bool = False) -> None:
        self._function, self.by_pair = function, by_pair

    def __call__(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> torch.Tensor:
        """[B] what the function says."""
        return self._function(prompts, first, second)


def bradley_terry_fixed_point(game: Game, kl_tau: float, opponent: Callable[[np.ndarray], np.ndarray]) -> list[float]:
    """π ∝ μ exp(r/τ) with r the Bradley-Terry fit to pairs y ~ π, y' ~ opponent(π): P(y ≻ ·) = P_BT(y ≻ ·) on them."""
    table, reference = game.preferences.numpy(), game.reference.numpy()

    def policy_of(rewards: np.ndarray) -> np.ndarray:
        weights = reference * np.exp(np.append(rewards, 0.0) / kl_tau)
        return weights / weights.sum()

    def misfit(rewards: np.ndarray) -> np.ndarray:
        pi = policy_of(rewards)
        r = np.append(rewards, 0.0)
        weights = np.outer(pi, opponent(pi)) + np.outer(opponent(pi), pi)
        return (weights * (table - 1 / (1 + np.exp(r[None, :] - r[:, None])))).sum(1)[:-1]

    found = root(misfit, np.zeros(len(reference) - 1), tol=1e-13)
    assert found.success
    solved: list[float] = policy_of(found.x).tolist()
    return solved


def answer(handler: BaseHTTPRequestHandler, status: int, headers: Mapping[str, str], content: Any) -> None:
    """Send what a test's server says: bytes as they are, anything else as JSON."""
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    handler.send_response(status)
    for name, value in {**headers, "Content-Length": str(len(body))}.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body)
