import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from alignrun.config import ComparedPairs
from alignrun.evaluation import comparisons
from alignrun.evaluation.comparisons import compare, mean_win_rates
from alignrun.preferences.base import Preference

PROMPTS = ("p", "longer prompt")
TEXTS = (
    (("aa", "b"), ("c", "dddd")),
    (("b", "eee"), ("c", "c")),
    (("", "f"), ("gg", "aa")),
)
"""Three players, two prompts, two completions each; some of them are equal."""


def lead(prompt: str, first: str, second: str) -> float:
    """An antisymmetric preference that depends on the prompt and is no function of a difference of scores."""
    score = len(first) - len(second) + (len(prompt) / 7) * math.sin(len(first) * (len(second) + 2))
    mirrored = len(second) - len(first) + (len(prompt) / 7) * math.sin(len(second) * (len(first) + 2))
    return 1 / (1 + math.exp(-(score - mirrored) / 4))


class Recording(Preference):
    def __init__(self) -> None:
        self.asked: list[tuple[str, str, str]] = []

    def __call__(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> Tensor:
        rows = list(zip(prompts, first, second, strict=True))
        self.asked += rows
        return torch.tensor([lead(*row) for row in rows], dtype=torch.float64)


def test_every_pair_has_the_preference_of_its_texts() -> None:
    table = compare(Recording(), PROMPTS, TEXTS, ComparedPairs.all)
    assert table.shape == (2, 3, 2, 3, 2)
    for x, i, k, j, other in np.ndindex(table.shape):
        first, second = TEXTS[i][x][k], TEXTS[j][x][other]
        expected = 0.5 if first == second else lead(PROMPTS[x], first, second)
        assert table[x, i, k, j, other] == pytest.approx(expected, abs=1e-12), (x, i, k, j, other)


def test_no_pair_of_texts_is_asked_twice_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, preference = compare(Recording(), PROMPTS, TEXTS, ComparedPairs.all), Recording()
    monkeypatch.setattr(comparisons, "QUESTIONS", 1)
    assert np.array_equal(compare(preference, PROMPTS, TEXTS, ComparedPairs.all), whole)
    unordered = [(prompt, *sorted((first, second))) for prompt, first, second in preference.asked]
    assert len(unordered) == len(set(unordered))
    assert all(first != second for _, first, second in preference.asked)
    # 6 texts a prompt, of which 5 and 4 are different.
    assert len(unordered) == 10 + 6


def test_matched_pairs_cost_k_a_pair_of_players_and_the_rest_is_unknown() -> None:
    preference = Recording()
    table = compare(preference, PROMPTS, TEXTS, ComparedPairs.matched)
    for x, i, k, j, other in np.ndindex(table.shape):
        if (i == j and k == other) or (i != j and k == other):
            assert not np.isnan(table[x, i, k, j, other])
        else:
            assert np.isnan(table[x, i, k, j, other])
    assert len(preference.asked) <= 2 * 3 * 2


def test_against_is_the_mean_over_pairs_and_asks_nobody_about_himself() -> None:
    preference = Recording()
    rates = mean_win_rates(preference, PROMPTS, TEXTS[0], TEXTS[2], ComparedPairs.all)
    for x in range(2):
        mean = np.mean([lead(PROMPTS[x], a, b) if a != b else 0.5 for a in TEXTS[0][x] for b in TEXTS[2][x]])
        assert rates[x] == pytest.approx(mean)
    ours = {(prompt, *sorted((a, b))) for x, prompt in enumerate(PROMPTS) for a in TEXTS[0][x] for b in TEXTS[2][x]}
    assert {(prompt, *sorted((a, b))) for prompt, a, b in preference.asked} <= ours
    matched = mean_win_rates(preference, PROMPTS, TEXTS[0], TEXTS[2], ComparedPairs.matched)
    assert matched[0] == pytest.approx(np.mean([lead("p", "aa", ""), lead("p", "b", "f")]))


def test_antisymmetric_by_construction() -> None:
    table = compare(Recording(), PROMPTS, TEXTS, ComparedPairs.all)
    assert np.allclose(table + table.transpose(0, 3, 4, 1, 2), 1)
