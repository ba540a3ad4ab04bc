"""Algorithms on pairs of their own samples: who is sampled, which pairs are formed, and what goes into the loss."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from helpers import Compared, load_policy, random_batch, refused_smoke

from alignrun.algorithms.base import Algorithm, Tools, discover
from alignrun.algorithms.common.batches import count, rows
from alignrun.algorithms.common.online_pairs import JudgedPairs, Pairing, judged_pairs
from alignrun.algorithms.common.opponents import Comparisons, all_among
from alignrun.algorithms.common.rollout import decode_texts
from alignrun.algorithms.common.schedules import mix_beta_at
from alignrun.algorithms.common.stacking import stack
from alignrun.algorithms.nash_mp import Opposed
from alignrun.types import Completions, Role

NAMES = ("online_dpo", "online_ipo", "ipo_md", "xpo", "inpo")


def longer(prompts, first, second) -> torch.Tensor:
    """A preference for length that never ties by accident."""
    return torch.tensor([len(one) / (len(one) + len(other) + 1e-9) for one, other in zip(first, second, strict=True)])


def build(name: str, *overrides: str, preference=longer) -> Algorithm:
    policy, config = load_policy(f"algo={name}", "generation.max_new_tokens=6", *overrides)
    return discover()[name](config.algo, Tools(policy, Compared(preference), config))


def sums(algorithm: Algorithm, role: Role, batch) -> torch.Tensor:
    """[B, K] log-probabilities of whole completions, one completion at a time."""
    policy, temperature = algorithm.tools.policy, algorithm.tools.config.generation.temperature
    columns = []
    with torch.no_grad():
        for k in range(batch.completions.tokens.shape[1]):
            one = Completions(batch.completions.tokens[:, k], batch.completions.mask[:, k])
            columns.append(policy.log_probs(role, batch.prompts, one, temperature).sum(1))
    return torch.stack(columns, 1)


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_is_that_of_a_loop_over_pairs(name: str) -> None:
    algorithm = build(name, "generation.temperature=0.8", "algo.kl_tau=0.3")
    policy = algorithm.tools.policy
    prompts, _ = random_batch(policy, prompts=3)
    (batch,) = list(algorithm.collect(prompts, step=5))
    assert isinstance(batch, JudgedPairs)
    with torch.no_grad():
        for weight in policy.trainable().values():  # away from the anchor
            weight += 0.05 * torch.ones_like(weight)
    pi, mu = (sums(algorithm, role, batch) for role in (Role.policy, Role.reference))
    texts = [
        decode_texts(policy, Completions(batch.completions.tokens[:, k], batch.completions.mask[:, k]))
        for k in range(batch.completions.tokens.shape[1])
    ]
    samples = algorithm.config.samples_per_prompt
    pairs = [(i, j) for i in range(samples) for j in range(i + 1, samples)]
    if name == "xpo":
        pairs = [(i, j) for i in range(samples) for j in range(samples, 2 * samples)]
    anchor = sums(algorithm, Role.anchor, batch) if name == "inpo" else None
    total = 0.0
    for b in range(3):
        for i, j in pairs:
            p = float(longer(None, [texts[i][b]], [texts[j][b]]))
            h = float(pi[b, i] - mu[b, i] - pi[b, j] + mu[b, j])
            if name == "inpo":
                share = algorithm.config.step_eta * 0.3
                mixed = share * mu + (1 - share) * anchor
                h = float(pi[b, i] - mixed[b, i] - pi[b, j] + mixed[b, j])
                total += h * h / algorithm.config.step_eta - (2 * p - 1) * h
            elif name in ("online_ipo", "ipo_md"):
                total += 0.3 * h * h - (2 * p - 1) * h
            else:
                sigmoid = 1 / (1 + torch.exp(torch.tensor(-0.3 * h, dtype=torch.float64)))
                total -= float(p * sigmoid.log() + (1 - p) * (1 - sigmoid).log())
            if name == "xpo":
                total += algorithm.config.optimism * float(pi[b, j])
    loss = algorithm.loss(batch)
    assert float(loss.total.detach()) == pytest.approx(total, rel=2e-4)
    assert loss.targets == 3 * len(pairs)
    own = (pi - mu)[:, :samples]
    assert float(loss.metrics["kl"]) / loss.targets == pytest.approx(float(own.mean()), rel=1e-3, abs=1e-5)


def test_optimism_lowers_the_probability_of_what_the_reference_wrote() -> None:
    losses = {}
    for optimism in (0.0, 0.5):
        algorithm = build("xpo", f"algo.optimism={optimism}")
        prompts, _ = random_batch(algorithm.tools.policy)
        (batch,) = list(algorithm.collect(prompts, step=0))
        losses[optimism] = float(algorithm.loss(batch).total.detach())
    theirs = sums(algorithm, Role.policy, batch)[:, 4:].sum() * 4  # each meets all four of the policy's
    assert losses[0.5] - losses[0.0] == pytest.approx(0.5 * float(theirs), rel=1e-4)


def log_ratio(algorithm: Algorithm, completions: Completions, prompts, over: Role, under: Role) -> float:
    with torch.no_grad():
        one, other = (algorithm.tools.policy.log_probs(role, prompts, completions) for role in (over, under))
    return float((one - other).sum())


def test_the_samplers_are_those_that_the_papers_say() -> None:
    """log π/μ is positive where π samples and negative where μ does; a mixture at β = 1 is μ."""
    prompts, _ = random_batch(load_policy()[0], prompts=24)
    drawn = {}
    for name, overrides in (
        ("online_ipo", ()),
        ("ipo_md", ("algo.mix_beta=0",)),
        ("ipo_md", ("algo.mix_beta=1",)),
        ("xpo", ()),
    ):
        algorithm = build(name, "generation.temperature=1", "generation.max_new_tokens=12", *overrides)
        (batch,) = list(algorithm.collect(prompts, step=0))
        drawn[name, overrides] = [
            log_ratio(algorithm, Completions(*(part[:, k] for part in values)), prompts, Role.policy, Role.reference)
            for values in [(batch.completions.tokens, batch.completions.mask)]
            for k in range(values[0].shape[1])
        ]
    assert all(value > 0 for value in drawn["online_ipo", ()])
    assert drawn["ipo_md", ("algo.mix_beta=0",)] == drawn["online_ipo", ()]
    assert all(value < 0 for value in drawn["ipo_md", ("algo.mix_beta=1",)])
    assert all(value > 0 for value in drawn["xpo", ()][:4])
    assert all(value < 0 for value in drawn["xpo", ()][4:])


@pytest.mark.parametrize("name", ["inpo", "sppo"])
def test_iterations_sample_from_the_anchor_until_it_is_renewed(name: str) -> None:
    algorithm = build(name, "algo.refresh_every=3", "generation.temperature=1")
    policy = algorithm.tools.policy
    prompts, _ = random_batch(policy, prompts=2)
    first = next(iter(algorithm.collect(prompts, step=0)))
    kept = {key: value.clone() for key, value in algorithm.state().items()}
    assert len(kept) == len(policy.trainable())
    with torch.no_grad():
        for weight in policy.trainable().values():
            weight += 0.3
    later = next(iter(algorithm.collect(prompts, step=2)))
    again = next(iter(build(name, "generation.temperature=1").collect(prompts, step=2)))
    assert torch.equal(later.completions.tokens, again.completions.tokens), "the policy's own steps change no sample"
    assert not torch.equal(first.completions.tokens, later.completions.tokens)
    assert all(torch.equal(kept[key], value) for key, value in algorithm.state().items())
    list(algorithm.collect(prompts, step=3))
    current = list(policy.trainable().values())
    assert all(torch.equal(one, other) for one, other in zip(algorithm.state().values(), current, strict=True))


def test_best_and_worst_are_by_wins_over_the_others() -> None:
    prompts, _ = random_batch(load_policy()[0], prompts=2)
    table = torch.tensor([[0.5, 0.9, 0.1], [0.1, 0.5, 0.2], [0.9, 0.8, 0.5]])
    ties = torch.full((3, 3), 0.5)
    streams = [Completions(torch.full((2, 1), k), torch.ones(2, 1, dtype=torch.bool)) for k in range(3)]
    judged = Comparisons(*all_among(3)[:, None].expand(-1, 2, -1), torch.stack([table, ties])[:, *all_among(3)])
    batch = judged_pairs(prompts, stack(streams), judged, Pairing.best_worst)
    assert batch.first.tolist()[0] == [2]
    assert batch.second.tolist()[0] == [1]
    assert batch.labels[:, 0].tolist() == pytest.approx([0.8, 0.5])
    assert batch.first[1] != batch.second[1], "also where nothing is better"
    every = judged_pairs(prompts, stack(streams), judged)
    assert every.first.tolist() == [[0, 0, 1]] * 2
    assert every.second.tolist() == [[1, 2, 2]] * 2
    assert every.labels[0].tolist() == pytest.approx([0.9, 0.1, 0.2])
    assert count(rows(every, slice(1, 2))) == 1


def test_each_pair_is_judged_once() -> None:
    asked = []

    def remember(prompts, first, second) -> torch.Tensor:
        asked.extend(zip(prompts, first, second, strict=True))
        return longer(prompts, first, second)

    algorithm = build("online_ipo", preference=remember)
    prompts, _ = random_batch(algorithm.tools.policy, prompts=2)
    list(algorithm.collect(prompts, step=0))
    assert len(asked) == 2 * 6


def test_sppo_regresses_on_wins_over_the_other_samples() -> None:
    algorithm = build("sppo", "algo.pairing=all", "algo.samples_per_prompt=3", "algo.step_eta=4")
    policy = algorithm.tools.policy
    prompts, _ = random_batch(policy, prompts=2)
    (batch,) = list(algorithm.collect(prompts, step=0))
    with torch.no_grad():
        for weight in policy.trainable().values():
            weight += 0.05
    moved = sums(algorithm, Role.policy, batch) - sums(algorithm, Role.anchor, batch)
    total = 0.0
    for b in range(2):
        texts = [
            decode_texts(
                policy, Completions(batch.completions.tokens[b : b + 1, k], batch.completions.mask[b : b + 1, k])
            )
            for k in range(3)
        ]
        for k in range(3):
            wins = [float(longer(None, texts[k], texts[other])) for other in range(3) if other != k]
            total += (float(moved[b, k]) - 4 * (sum(wins) / 2 - 0.5)) ** 2 / 4
    assert float(algorithm.loss(batch).total.detach()) == pytest.approx(total, rel=1e-4)
    best = build("sppo", "algo.samples_per_prompt=3")
    (ranked,) = list(best.collect(prompts, step=0))
    assert ranked.completions.tokens.shape[1] == 2
    highest, lowest = batch.win_rates.max(1).values, batch.win_rates.min(1).values
    assert torch.allclose(ranked.win_rates, torch.stack([highest, lowest], 1))


@pytest.mark.parametrize("label", ["better", "win_rates"])
def test_dno_contrasts_completions_by_their_win_rates_where_the_margin_is_large(label: str) -> None:
    settings = ["algo.samples_per_prompt=4", "algo.step_eta=4", "algo.kl_tau=0.1", "algo.min_margin=0.1"]
    algorithm = build("dno", "algo.pairing=all", f"algo.label={label}", *settings)
    policy = algorithm.tools.policy
    prompts, _ = random_batch(policy, prompts=3)
    (batch,) = list(algorithm.collect(prompts, step=0))
    with torch.no_grad():
        for weight in policy.trainable().values():
            weight += 0.05
    pi, mu, anchor = (sums(algorithm, role, batch) for role in (Role.policy, Role.reference, Role.anchor))
    total, kept, margins = 0.0, 0, []
    for b in range(3):
        texts = [
            decode_texts(
                policy, Completions(batch.completions.tokens[b : b + 1, k], batch.completions.mask[b : b + 1, k])
            )
            for k in range(4)
        ]
        rates = [sum(float(longer(None, texts[k], texts[j])) for j in range(4) if j != k) / 3 for k in range(4)]
        margins.append(max(rates) - min(rates))
        ratios = pi[b] - 0.4 * mu[b] - 0.6 * anchor[b]
        for i in range(4):
            for j in range(i):
                gain, h = torch.tensor(rates[i] - rates[j]), float(ratios[i] - ratios[j]) / 4
                if abs(gain) >= 0.1:
                    others = [k for k in range(4) if k not in (i, j)]
                    apart = sum(
                        float(longer(None, texts[i], texts[k]) - longer(None, texts[j], texts[k])) for k in others
                    )
                    q = float(torch.sigmoid(torch.tensor(apart / 2))) if label == "win_rates" else float(gain > 0)
                    h = torch.tensor(h)
                    total -= q * float(torch.sigmoid(h).log()) + (1 - q) * float(torch.sigmoid(-h).log())
                    kept += 1
    loss = algorithm.loss(batch)
    assert 0 < kept < loss.targets == 18
    assert float(loss.metrics["kept"]) == kept
    assert float(loss.total.detach()) == pytest.approx(total, rel=1e-4)
    practical = build("dno", *settings)
    (best,) = list(practical.collect(prompts, step=0))
    assert best.labels.flatten().tolist() == [1.0] * 3
    assert best.kept.flatten().tolist() == [margin >= 0.1 for margin in margins]


def test_mirror_prox_judges_the_same_completions_against_where_the_half_step_led(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    algorithm = build("nash_mp", "generation.temperature=1", "algo.explore_temperature=3")
    policy = algorithm.tools.policy
    prompts, _ = random_batch(policy, prompts=4)
    judged = []
    preference = algorithm.rollouts.preference
    monkeypatch.setattr(algorithm.rollouts, "preference", lambda *given: judged.append(given) or preference(*given))
    taken = []

    @contextmanager
    def half_step(batch: Opposed) -> Iterator[None]:
        taken.append(batch)
        with torch.no_grad():
            for weight in policy.trainable().values():
                weight += 0.3
        yield

    algorithm.half_step = half_step
    (whole,) = algorithm.collect(prompts, step=0)
    (half,) = taken
    assert torch.equal(half.completions.tokens, whole.completions.tokens)
    assert half.own is None
    (_, _, before, *_), (_, _, opponents, *_) = judged
    assert torch.equal(whole.own.tokens, before.tokens), "the policy's own, from before the half-step"
    with torch.no_grad():
        flat, moved, own = (
            policy.log_probs(Role.policy, prompts, Completions(*(part[:, 0] for part in parts(side)))).sum()
            for side in (whole.completions, opponents, whole.own)
        )
    assert moved > flat, "opponents come from the moved policy, and what is fitted from a flat one"
    assert moved > own
    texts = [
        [decode_texts(policy, Completions(side.tokens[:, k], side.mask[:, k])) for k in range(4)]
        for side in (whole.completions, opponents)
    ]
    for b in range(4):
        expected = sum(float(longer(None, [texts[0][1][b]], [texts[1][k][b]])) for k in range(4)) / 4
        assert float(whole.win_rates[b, 1]) == pytest.approx(expected, rel=1e-4)


def test_a_falling_mixture_ends_exactly_at_its_end_value() -> None:
    for steps in range(2, 60):
        betas = [mix_beta_at(step, steps, 0.1, 0.0) for step in range(steps)]
        assert (betas[0], betas[-1]) == (0.1, 0.0)
        assert all(before > after for before, after in pairwise(betas))
    assert mix_beta_at(0, 1, 0.1, 0.0) == mix_beta_at(5, 9, 0.1, None) == 0.1


def parts(completions: Completions) -> tuple[torch.Tensor, torch.Tensor]:
    return completions.tokens, completions.mask


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("algo=online_ipo", "algo.samples_per_prompt=1"), "algo.samples_per_prompt must be at least 2"),
        (("algo=xpo", "algo.samples_per_prompt=0"), "algo.samples_per_prompt must be at least 1"),
        (("algo=online_dpo", "algo.kl_tau=0"), "algo.kl_tau must be positive"),
        (("algo=ipo_md", "algo.mix_beta=1.5"), "algo.mix_beta must lie in [0, 1]"),
        (("algo=nash_md", "algo.mix_beta_end=-1"), "algo.mix_beta_end must lie in [0, 1]"),
        (("algo=inpo", "algo.step_eta=10"), "algo.step_eta times algo.kl_tau=0.1 must be below 1"),
        (("algo=sppo", "algo.refresh_every=0"), "algo.refresh_every must be at least 1"),
        (("algo=dno", "algo.kl_tau=-1"), "algo.kl_tau must not be negative"),
        (("algo=dno", "algo.kl_tau=0.3"), "algo.step_eta times algo.kl_tau=0.3 must be below 1"),
        (("algo=dno", "algo.min_margin=1"), "algo.min_margin must lie in [0, 1)"),
        (("algo=dno", "algo.opponents_per_sample=2"), "must be null for algo.pairing=best_worst"),
        (
            ("algo=dno", "algo.pairing=all", "algo.opponents_per_sample=1"),
            "algo.opponents_per_sample must be at least 2",
        ),
        (("algo=dno", "algo.samples_per_prompt=2"), "algo.samples_per_prompt must be at least 3"),
        (("algo=xpo", "algo.pairing=best_worst"), "algo.pairing must stay `all`"),
        (("algo=nash_prox", "algo.anchor_tau=0"), "algo.anchor_tau must be positive"),
        (("algo=nash_ema", "algo.ema_decay=2"), "algo.ema_decay must lie in [0, 1]"),
        (("algo=nash_mp", "algo.explore_temperature=0"), "algo.explore_temperature must be positive"),
        (("algo=online_ipo", "preference=none"), "algo=online_ipo needs a preference"),
        (("algo=dpo", "data=game_pairs", "train.max_kl=5"), "train.max_kl needs samples of the policy"),
    ],
)
def test_wrong_settings_are_one_line(
    overrides: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused_smoke(capsys, tmp_path, *overrides)
