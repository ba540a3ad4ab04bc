"""Opponents that the policy's samples draft: their distribution, their gradient, and the decoder that goes on."""

import math
from dataclasses import replace

import pytest
import torch
from drafts import LENGTH, Texts, all_texts, game_policy, mixture, outcomes, play, tempered, whole
from helpers import Compared, load_policy, random_batch
from torch import Tensor

from alignrun.algorithms.base import Tools, discover
from alignrun.algorithms.common import paired
from alignrun.algorithms.common.game_gradient import GameGradient, Judged
from alignrun.algorithms.common.paired import pair, pair_uniforms, sample_pairs, worth
from alignrun.algorithms.common.rollout import (
    AGAIN,
    DRAFTED,
    Rollouts,
    fitting,
    sample_streams,
    sampling_of,
    step_generator,
)
from alignrun.errors import InputError
from alignrun.generation.decode import sample_completions
from alignrun.generation.streams import Source, decoding_roles
from alignrun.generation.verify import verify
from alignrun.launch.checks import check
from alignrun.launch.compose import compose
from alignrun.models.policy import Policy
from alignrun.types import Completions, PromptBatch, Role

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def game() -> tuple[GameGradient, Texts]:
    """Nash-MD on a game LM that says up to three tokens, and all that it can say."""
    policy, config = game_policy("algo=nash_md", "algo.mix_beta=0.5", "algo.kl_tau=0.1", "generation.max_new_tokens=3")
    algorithm = discover()["nash_md"](config.algo, Tools(policy, Compared(lambda *_: torch.empty(0)), config))
    return algorithm, all_texts(policy, least=-math.inf)


def chi_square(counts: Tensor, likely: Tensor) -> float:
    """How many standard deviations Pearson's statistic is above its mean; the rare outcomes are one."""
    common = likely * counts.sum() > 5
    counts, likely = (torch.cat([side[common], side[~common].sum()[None]]) for side in (counts, likely))
    expected = likely * counts.sum()
    held = expected > 1e-9
    freedom = int(held.sum()) - 1
    statistic = float(((counts - expected).square() / expected)[held].sum())
    return (statistic - freedom) / math.sqrt(2 * freedom)


def count_texts(texts: Texts, drawn: Completions) -> Tensor:
    """[N] how often each text was drawn."""
    width = drawn.tokens.shape[-1]
    same = (drawn.tokens.reshape(-1, 1, width) == texts.completions.tokens[:, :width]).all(2)
    same &= drawn.mask.reshape(-1, width).sum(1)[:, None] == texts.completions.mask.sum(1)
    assert same.any(1).all()
    return same.double().sum(0)


@pytest.mark.parametrize("temperature", [1.0, 1.6])
def test_frequencies_are_those_of_enumeration_and_of_the_native_engine(
    game: tuple[GameGradient, Texts], temperature: float
) -> None:
    algorithm, texts = game
    policy, target = algorithm.tools.policy, mixture(0.5)
    sampling = sampling_of(policy, LENGTH, temperature)
    prompts = play(policy, 3000)
    uniforms = pair_uniforms(3000, 2, sampling, step_generator(CPU, 0, 0))
    sides = sample_pairs(policy, prompts, target, sampling, uniforms, fitting())
    native = sample_streams(policy, prompts, [target] * 2, sampling, step_generator(CPU, 0, 1))
    pi, m = (whole(texts, tempered(texts, source, temperature)) for source in (Role.policy, target))
    assert abs(chi_square(count_texts(texts, sides.ours), pi)) < 4
    theirs = count_texts(texts, sides.theirs)
    assert abs(chi_square(theirs, m)) < 4
    assert chi_square(theirs, pi) > 20, "the test can tell them apart"
    both = torch.stack([theirs, sum(count_texts(texts, one) for one in native)])
    pooled = both.sum(0) / both.sum()
    assert abs(chi_square(both.flatten(), pooled.repeat(2) / 2)) < 4 * math.sqrt(2)
    first, other = sides.ours.tokens[:, 0, 0], sides.theirs.tokens[:, :, 0]
    for number, depends in ((1, False), (0, True)):
        table = torch.bincount(first * 6 + other[:, number], minlength=36).double().reshape(6, 6)
        apart = torch.outer(table.sum(1), table.sum(0)) / table.sum() ** 2
        assert (chi_square(table.flatten(), apart.flatten()) > 20) == depends


def test_the_expected_gradient_leaves_out_the_opponent_that_a_sample_drafted(game: tuple[GameGradient, Texts]) -> None:
    """Over i ≠ j it is −∇[P(π ≻ sg m) − τ KL(π‖μ)] exactly; with i = j it is not, since y'_j depends on y_j."""
    algorithm, texts = game
    policy, target = algorithm.tools.policy, mixture(0.5)
    pi, m = (tempered(texts, source, 1.0) for source in (Role.policy, target))
    joint, _ = outcomes(texts, Role.policy, target, texts.sampling(), pi, m)
    count = len(joint)
    table = torch.rand(count, count, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    table = 0.5 + (table - table.T) / 2
    weights = list(policy.trainable().values())
    ours, theirs = joint.sum(1), joint.sum(0)

    texts_of = Completions(texts.completions.tokens, texts.completions.mask)
    log_pi, log_mu = (policy.log_probs(role, play(policy), texts_of).sum(1) for role in (Role.policy, Role.reference))
    likely = log_pi.exp()
    torch.testing.assert_close(likely.detach(), ours, atol=1e-12, rtol=0)
    objective = likely @ table @ whole(texts, m) - 0.1 * (likely * (log_pi - log_mu)).sum()
    exact = flat(torch.autograd.grad(-objective, weights))

    def expected(preference: Tensor) -> Tensor:
        """Σ_y π(y) ∇loss(y) of one sample, with E[P(y ≻ y') | y] [N], in which the loss is linear."""
        total = torch.zeros(())
        for row in (ours > 1e-13).nonzero().flatten().tolist():
            one = Completions(texts_of.tokens[row : row + 1, None], texts_of.mask[row : row + 1, None])
            total = total + ours[row] * algorithm.loss(Judged(play(policy), one, preference[row].reshape(1, 1))).total
        return flat(torch.autograd.grad(total, weights))

    apart = expected(table @ theirs)
    largest = float(exact.abs().max())
    assert largest > 1e-3
    torch.testing.assert_close(apart, exact, atol=largest * 1e-6, rtol=1e-6)
    paired_up = (joint * table).sum(1) / ours.clamp(min=1e-300)
    both = expected((table @ theirs + paired_up) / 2)
    assert float((both - exact).abs().max()) > 0.02 * largest, "two opponents each, one of which a sample drafted"


def flat(parts: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([part.flatten() for part in parts])


@pytest.mark.parametrize("asked", [None, 1, 2])
def test_no_sample_meets_the_opponent_that_it_drafted(asked: int | None) -> None:
    """y_i and y'_j are tokens that name their numbers, and P(y_i ≻ y'_j) = i/10 + j/100."""
    some = f"algo.opponents_per_sample={asked or 'null'}"
    policy, config = load_policy("algo=nash_md", "algo.samples_per_prompt=4", some)
    met = []

    def by_number(prompts: object, first: list[str], second: list[str]) -> Tensor:
        met.extend(zip(first, second, strict=True))
        return torch.tensor([int(one) / 10 + int(other) / 100 for one, other in zip(first, second, strict=True)])

    algorithm = discover()["nash_md"](config.algo, Tools(policy, Compared(by_number, by_pair=True), config))
    numbers = torch.tensor(policy.tokenizer.convert_tokens_to_ids(list("0123"))).expand(5, -1)[..., None]
    named = Completions(numbers, torch.ones_like(numbers, dtype=torch.bool))
    prompts, _ = random_batch(policy, prompts=5)
    found = algorithm.rollouts.preference(prompts, named, named, 0, apart=True)
    meetings = {(min(pair), max(pair)) for pair in met}
    assert meetings
    assert all(one != other for one, other in meetings)
    if asked is None:
        assert torch.allclose(found[0], torch.tensor([(i * 30 + 6 - i) / 300 for i in range(4)]))
    algorithm.rollouts.preference(prompts, named, named, 0)
    assert asked or any(one == other for one, other in met)


class Slow:
    """Every row reads its whole text again, without a cache and without padding."""

    def __init__(self, policy: Policy, texts: list[Tensor], roles: list[Role]) -> None:
        self.policy, self.roles = policy, [role for role in roles for _ in texts]
        self.texts = texts * len(roles)

    def prefill(self) -> Tensor:
        alone = [PromptBatch(("",), text[None], torch.ones_like(text)[None]) for text in self.texts]
        both = zip(alone, self.roles, strict=True)
        return torch.stack([self.policy.decoder(one, [role], 1).prefill()[0] for one, role in both])

    def select(self, rows: list[int]) -> None:
        self.roles, self.texts = [self.roles[row] for row in rows], [self.texts[row] for row in rows]

    def step(self, tokens: Tensor) -> Tensor:
        self.texts = [torch.cat([text, token[None]]) for text, token in zip(self.texts, tokens, strict=True)]
        return self.prefill()


@pytest.mark.parametrize("opponent", [mixture(0.5), Role.average, Role.reference])
@pytest.mark.parametrize("kind", ["lora", "none", "replayed", "in pieces"])
def test_going_on_in_the_cache_equals_reading_everything_again(
    opponent: Source, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts padded on the left, drafts of unequal lengths, rejected anywhere: token for token."""
    policy, _ = load_policy(*(["adapter=none"] if kind == "none" else []))
    if opponent is Role.average:
        policy.snapshot(Role.average)
        with torch.no_grad():
            for weight in policy.snapshot_weights(Role.average).values():
                weight *= 1.6
    if kind == "replayed":
        monkeypatch.setattr(Policy, "_replays", True)
    if kind == "in pieces":
        monkeypatch.setattr(paired, "AT_ONCE", 7)
    prompts, _ = random_batch(policy, prompts=3)
    sampling = sampling_of(policy, 7, 0.9)
    sampling.stop_ids.extend(range(40))
    drawn = sample_streams(policy, prompts, [Role.policy] * 3, sampling, step_generator(CPU, 1, 0))
    ours = Completions(torch.stack([one.tokens for one in drawn], 1), torch.stack([one.mask for one in drawn], 1))
    numbers = torch.rand(2, 9, 7, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    sides = pair(policy, prompts, ours, opponent, sampling, *numbers)
    drafts, width = ours.flat(), ours.tokens.shape[2]
    roles = [Role.policy, *([Role.reference] if opponent is not Role.average else [Role.average])]
    found = verify(
        drafts, Role.policy, opponent, sampling, policy.logits(roles, prompts, drafts), *numbers[..., :width]
    )
    assert sides.accepted is not None
    assert torch.equal(sides.accepted.flatten(), found.accepted)
    theirs = sides.theirs.flat()
    lengths = set()
    for row in range(9):
        prefix = found.prefix.tokens[row][found.prefix.mask[row]]
        expected = prefix
        if not found.ended[row]:
            prompt = prompts.input_ids[row // 3][prompts.attention_mask[row // 3].bool()]
            decoder = Slow(policy, [torch.cat([prompt, prefix])], decoding_roles([opponent]))
            left = 7 - len(prefix)
            limit = torch.tensor([[left]])
            uniforms = numbers[1, row, len(prefix) :][:, None, None]
            (rest,) = sample_completions(
                decoder, 1, [opponent], replace(sampling, max_new_tokens=left), uniforms, limits=limit
            )
            expected = torch.cat([prefix, rest.tokens[0][rest.mask[0]]])
            lengths.add(len(prefix))
        assert theirs.tokens[row][theirs.mask[row]].tolist() == expected.tolist()
        assert (theirs.tokens[row][~theirs.mask[row]] == sampling.pad_id).all()
    assert len(lengths) > (kind != "none"), "otherwise the rows would not differ"
    if sides.log_ratio is not None:
        scored = [policy.log_probs(role, prompts, drafts, 0.9) for role in (Role.policy, Role.reference)]
        torch.testing.assert_close(
            sides.log_ratio.flatten(0, 1), (scored[0] - scored[1]).detach(), atol=1e-4, rtol=1e-4
        )
    assert (sides.log_ratio is None) == (opponent is Role.average)


def test_the_policy_is_its_own_opponent_as_it_is() -> None:
    policy, _ = load_policy()
    prompts, _ = random_batch(policy)
    sampling = sampling_of(policy, 5, 1.0)
    uniforms = pair_uniforms(len(prompts), 2, sampling, step_generator(CPU, 0, 0))
    sides = sample_pairs(policy, prompts, mixture(0.0), sampling, uniforms, fitting())
    assert sides.theirs is sides.ours
    assert sides.accepted is not None
    assert torch.equal(sides.accepted, sides.ours.mask.sum(2))


def test_drafting_is_chosen_by_what_the_last_drafts_kept_and_never_by_this_step() -> None:
    def chosen(measured: float, step: int, *overrides: str, prompts: int = 32) -> bool:
        policy, config = load_policy("algo.samples_per_prompt=8", *overrides)
        kind = discover()[config.algo.name]
        rollouts = kind(config.algo, Tools(policy, Compared(lambda *_: torch.empty(0)), config)).rollouts
        rollouts.measured[DRAFTED] = measured
        return rollouts.drafts(kind.streams(config, step), prompts, step)

    least = worth(mixture(0.125), 256, CPU)
    assert 0.5 < least < 0.6
    assert min(worth(mixture(0.125), 16, CPU), worth(Role.average, 256, CPU)) > 1
    assert chosen(least + 0.01, 1)
    assert not chosen(least - 0.01, 1)
    assert chosen(least - 0.01, AGAIN)
    assert chosen(0.0, 1, "generation.opponents=drafted")
    assert not chosen(1.0, 1, "generation.opponents=independent")
    assert not chosen(1.0, 1, "algo.samples_per_prompt=1")
    assert not chosen(1.0, 0, "generation.batch_size=2"), "so few rows do not pay for a second loop"
    assert not chosen(1.0, 0, "algo=nash_ema")
    assert chosen(0.0, 1, "algo=self_play")
    assert worth(mixture(0.125), 256, torch.device("cuda")) == math.inf


def test_prompts_in_pieces_are_drafted_and_judged_as_one_batch() -> None:
    policy, config = load_policy(
        "algo.samples_per_prompt=3", "generation.batch_size=2", "generation.max_new_tokens=6",
        "generation.opponents=drafted", "algo.mix_beta=0.5",
    )  # fmt: skip
    algorithm = discover()["nash_md"](config.algo, Tools(policy, Compared(lambda _, a, b: torch.rand(len(a))), config))
    prompts, _ = random_batch(policy, prompts=5)
    streams = algorithm.streams(config, 0)
    sides = algorithm.rollouts.opposed(prompts, streams, 0)
    at_once = replace(config, generation=replace(config.generation, batch_size=None))
    whole = Rollouts(replace(algorithm.tools, config=at_once))
    together = whole.opposed(prompts, streams, 0)
    assert torch.equal(sides.ours.tokens, together.ours.tokens), "no draw depends on how many are decoded together"
    assert torch.equal(sides.theirs.tokens, together.theirs.tokens)
    assert sides.accepted is not None
    assert sides.accepted.shape == (5, 3)
    assert algorithm.drain()[DRAFTED] == pytest.approx(float(sides.accepted.sum() / sides.theirs.mask.sum()))
    (batch,) = algorithm.collect(prompts, 0)
    known, anew = (algorithm.loss(one) for one in (batch, replace(batch, log_ratio=None)))
    torch.testing.assert_close(known.total, anew.total, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(known.metrics["kl"], anew.metrics["kl"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["algo=online_ipo"], "algo=online_ipo has no opponent that its samples can draft"),
        (["algo=nash_md", "algo.samples_per_prompt=1"], "algo.samples_per_prompt=1 leaves no opponent"),
        (["generation.engine=server", "generation.server_url=http://localhost:1"], "a rollout server drafts mixtures"),
    ],
)
def test_drafts_that_cannot_be_are_refused(overrides: list[str], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        check(compose(["experiment=smoke", "generation.opponents=drafted", *overrides]))


def test_a_model_with_windows_cannot_continue_drafts(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, config = load_policy("generation.opponents=drafted")
    monkeypatch.setattr(Policy, "rereads", False)
    tools = Tools(policy, Compared(lambda *_: torch.empty(0)), config)
    with pytest.raises(InputError, match="full attention"):
        discover()["nash_md"](config.algo, tools)
