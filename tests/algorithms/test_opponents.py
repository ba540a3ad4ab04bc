"""Which pairs are judged: drawn without bias, by enumeration of every draw, and with less variance than other draws."""

import itertools
import zlib
from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from helpers import Compared, load_policy, random_batch

from alignrun.algorithms.base import Algorithm, Tools, discover
from alignrun.algorithms.common import opponents
from alignrun.algorithms.common.online_pairs import Pairing
from alignrun.algorithms.common.opponents import against, among, draw_against, draw_among, pairs_against, pairs_among
from alignrun.algorithms.common.rollout import Rollouts
from alignrun.games.files import load_game
from alignrun.preferences import base as preferences
from alignrun.preferences.examples import letters, same_first_letter
from alignrun.preferences.function import FunctionConfig, FunctionKind, FunctionPreference, FunctionReward
from alignrun.preferences.judge.config import JudgeConfig
from alignrun.preferences.learned import EmbeddedPreference, LearnedConfig, LearnedPreference
from alignrun.preferences.pair_model import PairModel
from alignrun.preferences.pairrm import PairRM
from alignrun.preferences.panel import PanelConfig


def every_order(count: int) -> torch.Tensor:
    """[count!, count]"""
    return torch.tensor(list(itertools.permutations(range(count))))


@pytest.mark.parametrize(("count", "asked"), [(k, m) for k in (2, 3, 4, 5, 6) for m in range(1, k)])
def test_among_completions_every_pair_is_equally_likely_and_each_meets_equally_many(count: int, asked: int) -> None:
    pairs = among(every_order(count), asked).permute(1, 2, 0)
    assert pairs.shape[1] == pairs_among(count, asked)
    odd = asked * count % 2
    times = torch.zeros(count, count, dtype=torch.long)
    for drawn in pairs.tolist():
        assert len({frozenset(pair) for pair in drawn}) == len(drawn), "no pair twice, none with itself"
        met = sorted(sum(one in pair for pair in drawn) for one in range(count))
        assert met == [asked] * (count - odd) + [asked + 1] * odd
        for one, other in drawn:
            times[one, other] += 1
            times[other, one] += 1
    assert len(set(times[~torch.eye(count, dtype=torch.bool)].tolist())) == 1


@pytest.mark.parametrize(
    ("ours", "others", "asked"), [(4, 4, 2), (3, 5, 2), (5, 3, 1), (2, 4, 3), (1, 4, 2), (3, 4, 4)]
)
def test_against_others_every_pair_is_equally_likely_and_all_are_used_equally_often(
    ours: int, others: int, asked: int
) -> None:
    pairs = against(every_order(others), ours, asked).permute(1, 2, 0)
    assert pairs.shape[1] == pairs_against(ours, others, asked)
    times = torch.zeros(ours, others, dtype=torch.long)
    for drawn in pairs.tolist():
        assert len({tuple(pair) for pair in drawn}) == ours * asked
        assert [one for one, _ in drawn] == [one for one in range(ours) for _ in range(asked)]
        used = [sum(other == place for _, other in drawn) for place in range(others)]
        assert max(used) - min(used) <= 1
        for one, other in drawn:
            times[one, other] += 1
    assert len(set(times.flatten().tolist())) == 1


def intransitive(prompts: Any, first: Any, second: Any) -> torch.Tensor:
    """Antisymmetric, and otherwise without any order."""

    def lead(one: str, other: str) -> float:
        low, high = sorted((one, other))
        return (zlib.crc32(f"{low}|{high}".encode()) / 2**32 - 0.5) * (1 if one == low else -1) * (one != other)

    return torch.tensor([0.5 + lead(one, other) for one, other in zip(first, second, strict=True)])


def build(name: str, *overrides: str, by_pair: bool = True) -> Algorithm:
    settings = ["generation.max_new_tokens=4", "algo.samples_per_prompt=3", "algo.opponents_per_sample=1"]
    settings.append("generation.opponents=independent")
    policy, config = load_policy(f"algo={name}", *settings, *overrides)
    algorithm = discover()[name](config.algo, Tools(policy, Compared(intransitive, by_pair=by_pair), config))
    algorithm.half_step = nullcontext
    return algorithm


def gradient(algorithm: Algorithm) -> torch.Tensor:
    """That of the loss of one prompt, divided by its targets."""
    prompts, _ = random_batch(algorithm.tools.policy, prompts=1)
    (batch,) = algorithm.collect(prompts, 0)
    loss = algorithm.loss(batch)
    weights = list(algorithm.tools.policy.trainable().values())
    parts = torch.autograd.grad(loss.total / loss.targets, weights)
    return torch.cat([part.flatten() for part in parts])


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("self_play", ()),
        ("nash_mp", ()),
        ("online_dpo", ()),
        ("inpo", ()),
        ("xpo", ("algo.optimism=0.1",)),
        ("sppo", ("algo.pairing=all",)),
        ("rloo", ("algo.reference_samples=3",)),
        ("grpo", ("algo.reference_samples=3", "algo.scale_by_std=false")),
    ],
)
def test_the_expected_gradient_over_all_draws_is_that_of_all_pairs(
    name: str, overrides: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    algorithm = build(name, *overrides)
    sample, (prompts, _) = algorithm.rollouts.sample, random_batch(algorithm.tools.policy, prompts=1)
    once = cache(lambda streams, purpose: sample(prompts, streams, 0, purpose=purpose))
    monkeypatch.setattr(algorithm.rollouts, "sample", lambda _, streams, step, purpose=0: once(tuple(streams), purpose))
    drawn = []
    for order in every_order(3):
        monkeypatch.setattr(opponents, "_orders", lambda *_, order=order: order[None])
        drawn.append(gradient(algorithm))
    mean = torch.stack(drawn).mean(0)
    monkeypatch.setattr(Rollouts, "_opponents", None)
    whole = gradient(algorithm)
    largest = float(whole.abs().max())
    assert largest > 1e-4
    assert float((torch.stack(drawn) - whole).abs().max()) > 0.03 * largest, "single draws differ"
    torch.testing.assert_close(mean, whole, atol=largest * 1e-4, rtol=1e-3)


@pytest.mark.parametrize("asked", [1, 2])
def test_equal_use_has_less_variance_than_independent_draws(asked: int) -> None:
    """Of the gradient on CYC by enumeration: of three samples of either side, and of all draws of opponents."""
    game = load_game("cyc").preferences.double()
    pi = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    samples = torch.tensor(list(itertools.product(range(3), repeat=3)))  # [27, 3]
    likely = pi[samples].prod(1)
    table = game[samples[:, None, :, None], samples[None, :, None, :]]  # [27, 27, 3, 3]
    scores = torch.eye(3, dtype=torch.float64)[samples] - pi  # ∇ log π of each of ours, in the logits

    def moments(pairs: torch.Tensor) -> tuple[torch.Tensor, float]:
        """The mean and the total variance of the gradient over samples and equally likely draws [D, M, 2]."""
        wins = torch.zeros(len(pairs), 27, 27, 3, dtype=torch.float64)
        for draw, those in enumerate(pairs.tolist()):
            for one, other in those:
                wins[draw, ..., one] += table[..., one, other] / asked
        gradients = torch.einsum("dstk,ska->dsta", wins - 0.5, scores) / 3
        weights = (likely[:, None] * likely)[None, ..., None] / len(pairs)
        mean = (weights * gradients).sum((0, 1, 2))
        return mean, float((weights * (gradients - mean).square()).sum())

    subsets = list(itertools.combinations(range(3), asked))
    independent = [
        [(one, other) for one, chosen in enumerate(each) for other in chosen]
        for each in itertools.product(subsets, repeat=3)
    ]
    equal_use, other = (
        moments(pairs) for pairs in (against(every_order(3), 3, asked).permute(1, 2, 0), torch.tensor(independent))
    )
    exact = torch.autograd.functional.jacobian(lambda logits: logits.softmax(0) @ game @ pi, pi.log())
    assert torch.allclose(equal_use[0], exact)
    assert torch.allclose(other[0], exact)
    assert equal_use[1] < 0.99 * other[1]


def test_a_step_draws_its_own_pairs_and_nothing_else_changes_them() -> None:
    algorithm = build("self_play", "algo.samples_per_prompt=6")
    policy = algorithm.tools.policy
    prompts, _ = random_batch(policy, prompts=4)
    drawn = {}
    for step, purpose in ((0, 0), (1, 0), (0, 1), (0, 0)):
        torch.rand(3)
        ours, theirs = algorithm.rollouts.sample(prompts, algorithm.streams(algorithm.tools.config, 0), 0)
        found = algorithm.rollouts.against(prompts, ours, theirs, step, purpose).second
        assert (step, purpose) not in drawn or torch.equal(drawn[step, purpose], found)
        drawn[step, purpose] = found
    first, *others = drawn.values()
    assert not any(torch.equal(first, other) for other in others)
    assert any(not torch.equal(first[0], row) for row in first), "prompts have draws of their own"
    again = build("self_play", "algo.samples_per_prompt=6")
    (batch,) = again.collect(prompts, 0)
    (same,) = build("self_play", "algo.samples_per_prompt=6").collect(prompts, 0)
    assert torch.equal(batch.preference, same.preference)


def test_all_pairs_of_scores_are_judged_and_no_more_than_there_are() -> None:
    built = {name: build(name) for name in ("self_play", "online_ipo")}
    prompts, _ = random_batch(built["self_play"].tools.policy, prompts=2)
    for name, by_pair, overrides, pairs in (
        ("self_play", True, {}, 3),
        ("self_play", False, {}, 9),
        ("self_play", True, {"opponents_per_sample": 7}, 9),
        ("online_ipo", True, {}, 2),
        ("online_ipo", False, {}, 3),
        ("online_ipo", True, {"pairing": Pairing.best_worst}, 3),
    ):
        asked = []

        def remember(prompts: Any, first: Any, second: Any, asked: list[Any] = asked) -> torch.Tensor:
            asked.extend(prompts)
            return intransitive(prompts, first, second)

        tools = built[name].tools
        config = replace(tools.config, algo=replace(tools.config.algo, **overrides))
        preference = Compared(remember, by_pair=by_pair)
        algorithm = discover()[name](config.algo, Tools(tools.policy, preference, config))
        list(algorithm.collect(prompts, 0))
        assert len(asked) == 2 * pairs
        assert algorithm.asked == (2 * 2 * pairs if by_pair else 0)
        note = f"judging: {'all 9' if pairs == 9 else 'all 3' if overrides else f'{pairs} of'}"
        assert any(line.startswith(note) for line in algorithm.notes()) == by_pair


def test_every_draw_fits_what_is_declared() -> None:
    generator = torch.Generator().manual_seed(0)
    for samples, others, asked in itertools.product((1, 2, 5), (1, 3, 4), (None, 1, 2, 9)):
        assert draw_against(generator, 2, samples, others, asked).shape == (
            2, 2, pairs_against(samples, others, asked),
        )  # fmt: skip
        assert draw_among(generator, 2, others, asked).shape == (2, 2, pairs_among(others, asked))


SENTIMENT = {"name": "sentiment"}


def test_a_preference_says_before_it_is_built_whether_it_judges_pair_by_pair() -> None:
    kinds = preferences.discover()
    configs = {
        "sentiment": (kinds["sentiment"].config_class(), None),
        "panel": (PanelConfig(members={"a": SENTIMENT, "b": SENTIMENT}), None),
        "matrix": (kinds["matrix"].config_class(), None),
        "judge": (JudgeConfig(url="http://localhost/v1", model="m", cache=False), None),
        "function": (FunctionConfig(function="a:b"), FunctionPreference("a:b", same_first_letter)),
        "learned": (LearnedConfig(path="not/there/yet"), LearnedPreference),
        "general_preference": (None, None),
        "pair_model": (None, PairModel),
        "pairrm": (None, PairRM),
    }
    asking = PanelConfig(members={"a": SENTIMENT, "b": {"name": "function", "function": "a:b"}})
    assert kinds["panel"].by_pair(asking), "a panel with one member that judges pairs"
    for name, (config, built) in configs.items():
        found = built if built is not None or config is None else kinds[name].build(config)
        assert kinds[name].by_pair(config) == (False if found is None else found.by_pair), name
    judge = {"name": "judge", "url": "http://localhost/v1", "model": "m", "cache": False}
    panel = PanelConfig(members={"a": {"name": "sentiment"}, "b": judge})
    assert kinds["panel"].by_pair(panel) is kinds["panel"].build(panel).by_pair is True, "as one of its members does"
    scores = FunctionConfig(function="a:b", kind=FunctionKind.reward)
    assert kinds["function"].by_pair(scores) is FunctionReward("a:b", letters, 1.0).by_pair is False
    assert not EmbeddedPreference.by_pair
    assert {name for name, kind in kinds.items() if kind.by_pair is preferences.always} == {
        "judge", "pair_model", "pairrm",
    }  # fmt: skip
