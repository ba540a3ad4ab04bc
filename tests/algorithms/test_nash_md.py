"""Nash-MD-PG against enumeration: its expected gradient is that of the exact objective with the mixture held fixed."""

import itertools

import pytest
import torch
from helpers import Compared, load_policy, random_batch

from alignrun.algorithms.base import Tools
from alignrun.algorithms.common.batches import count, rows
from alignrun.algorithms.common.game_gradient import Judged
from alignrun.algorithms.common.rollout import decode_texts
from alignrun.algorithms.nash_md import NashMD
from alignrun.games.files import load_game
from alignrun.generation.streams import Stream
from alignrun.launch.compose import compose
from alignrun.models.policy import Policy
from alignrun.models.sources import load_tokenizer
from alignrun.preferences import base as preferences
from alignrun.types import Completions, PromptBatch, Role


def build(policy, config) -> NashMD:
    builder = preferences.discover()[config.preference.name].build
    return NashMD(config.algo, Tools(policy, builder(config.preference), config))


@pytest.mark.parametrize("mix_beta", [0.0, 0.125, 1.0])
def test_expected_gradient_on_a_game_is_exact(mix_beta: float) -> None:
    """Σ_{y,y'} π(y) π̃(y') ∇loss(y, y') = −∇[P(π ≻ sg π̃) − τ KL(π‖μ)], summed over all nine pairs of CYC."""
    kl_tau = 0.1
    config = compose(["experiment=game", f"algo.mix_beta={mix_beta}", f"algo.kl_tau={kl_tau}"])
    policy = Policy.load(config.model, config.adapter, config.reference, load_tokenizer(config.model), 0)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in policy.trainable().values():
            weight += 0.1 * torch.randn(weight.shape, generator=generator)
    algorithm = build(policy, config)
    game = load_game("cyc")
    actions = torch.tensor(policy.tokenizer.convert_tokens_to_ids(list(game.actions)))
    prompt = torch.tensor([policy.tokenizer.encode("play")])
    weights = list(policy.trainable().values())

    def batch(count: int) -> PromptBatch:
        return PromptBatch(("play",) * count, prompt.repeat(count, 1), torch.ones(count, prompt.shape[1]).long())

    each = Completions(actions[:, None], torch.ones(3, 1, dtype=torch.bool))
    log_pi = policy.log_probs(Role.policy, batch(3), each)[:, 0]
    log_mu = policy.log_probs(Role.reference, batch(3), each)[:, 0]
    assert (log_pi - log_mu).abs().max() > 0.05
    opponent = ((1 - mix_beta) * log_pi.detach() + mix_beta * log_mu).softmax(0)
    pi = log_pi.exp()
    objective = pi @ game.preferences.float() @ opponent - kl_tau * (pi * (log_pi - log_mu)).sum()
    exact = torch.autograd.grad(-objective, weights)

    expected = [torch.zeros_like(weight) for weight in weights]
    for (i, y), (j, _) in itertools.product(enumerate(actions), enumerate(actions)):
        pair = Judged(
            batch(1),
            Completions(y.reshape(1, 1, 1), torch.ones(1, 1, 1, dtype=torch.bool)),
            game.preferences[i, j].float()[None, None],
        )
        gradients = torch.autograd.grad(algorithm.loss(pair).total, weights)
        probability = pi[i].detach() * opponent[j]
        for total, gradient in zip(expected, gradients, strict=True):
            total += probability * gradient
    largest = max(gradient.abs().max() for gradient in exact)
    assert largest > 1e-3
    for one, other in zip(expected, exact, strict=True):
        torch.testing.assert_close(one, other, atol=float(largest) * 1e-3, rtol=1e-3)


def test_loss_is_the_sum_of_scored_log_probabilities() -> None:
    """Against an independent loop over tokens: −Σ log π(y_n) (P − ½ − τ Σ_{m≥n} log π/μ)."""
    policy, config = load_policy("algo.kl_tau=0.3", "generation.temperature=0.7")
    algorithm = build(policy, config)
    prompts, completions = random_batch(policy, prompts=4)
    preference = torch.tensor([0.9, 0.2, 0.5, 0.7])
    one_each = Completions(completions.tokens[:, None], completions.mask[:, None])
    loss = algorithm.loss(Judged(prompts, one_each, preference[:, None]))
    with torch.no_grad():
        log_pi = policy.log_probs(Role.policy, prompts, completions, temperature=0.7)
        log_mu = policy.log_probs(Role.reference, prompts, completions, temperature=0.7)
    total, kl = 0.0, 0.0
    for row in range(4):
        length = int(completions.mask[row].sum())
        for n in range(length):
            ahead = sum(float(log_pi[row, m] - log_mu[row, m]) for m in range(n, length))
            total -= float(log_pi[row, n]) * (float(preference[row]) - 0.5 - 0.3 * ahead)
        kl += sum(float(log_pi[row, m] - log_mu[row, m]) for m in range(length))
    assert float(loss.total.detach()) == pytest.approx(total, rel=1e-4)
    assert float(loss.metrics["kl"]) == pytest.approx(kl, rel=1e-4)
    assert loss.targets == 4
    assert float(loss.metrics["length"]) == float(loss.tokens) == int(completions.mask.sum())


def spied(policy, config, preference) -> NashMD:
    """The algorithm with a preference of the test's own."""
    return NashMD(config.algo, Tools(policy, Compared(preference), config))


def test_completions_come_from_the_policy_and_opponents_from_the_mixture() -> None:
    """With β = 1 the opponent is the reference: log π − log μ is positive on y and negative on y'."""
    policy, config = load_policy(
        "algo.mix_beta=1.0", "algo.samples_per_prompt=1", "generation.max_new_tokens=12", "generation.temperature=1.0"
    )
    algorithm = spied(policy, config, lambda prompts, first, second: torch.full((len(first),), 0.25))
    prompts, _ = random_batch(policy, prompts=24)
    (batch,) = list(algorithm.collect(prompts, step=0))
    assert torch.equal(batch.preference, torch.full((24, 1), 0.25))
    ours, theirs = (
        Completions(one.tokens[:, 0], one.mask[:, 0])
        for one in algorithm.rollouts.sample(prompts, [Stream(Role.policy, 1), Stream(Role.reference, 1)], 0)
    )
    assert torch.equal(ours.tokens, batch.completions.tokens[:, 0])

    @torch.no_grad()
    def margin(completions: Completions) -> torch.Tensor:
        log_probs, reference = (policy.log_probs(role, prompts, completions) for role in (Role.policy, Role.reference))
        return (log_probs - reference).sum()

    assert margin(ours) > 0 > margin(theirs)


def test_each_completion_is_judged_against_all_opponents_of_its_own_prompt() -> None:
    policy, config = load_policy("algo.samples_per_prompt=3", "generation.max_new_tokens=6")
    seen: list[tuple[str, str, str]] = []

    def remember(prompts, first, second):
        seen.extend(zip(prompts, first, second, strict=True))
        return torch.tensor([len(one) / (len(one) + len(other) + 1) for one, other in zip(first, second, strict=True)])

    algorithm = spied(policy, config, remember)
    prompts, _ = random_batch(policy, prompts=2)
    (batch,) = list(algorithm.collect(prompts, step=4))
    assert batch.completions.tokens.shape[:2] == batch.preference.shape == (2, 3)
    assert len(seen) == 2 * 3 * 3
    for b, prompt in enumerate(prompts.texts):
        for k in range(3):
            completion = Completions(batch.completions.tokens[b : b + 1, k], batch.completions.mask[b : b + 1, k])
            (text,) = decode_texts(policy, completion)
            mine = [len(one) / (len(one) + len(other) + 1) for p, one, other in seen if p == prompt and one == text]
            repeats = len(mine) // 3  # two completions may read the same
            assert len(mine) == 3 * repeats >= 3
            assert float(batch.preference[b, k]) == pytest.approx(sum(mine) / len(mine), rel=1e-5)


def test_sampling_in_chunks_gives_whole_batches() -> None:
    policy, config = load_policy("algo.samples_per_prompt=2", "generation.batch_size=2", "generation.max_new_tokens=6")
    algorithm = spied(policy, config, lambda prompts, first, second: torch.rand(len(first)))
    prompts, _ = random_batch(policy, prompts=5)
    (batch,) = list(algorithm.collect(prompts, step=0))
    assert count(batch) == 5
    assert batch.completions.tokens.shape[:2] == batch.completions.mask.shape[:2] == batch.preference.shape == (5, 2)
    part = rows(batch, slice(1, 3))
    assert count(part) == 2
    assert part.prompts.texts == prompts.texts[1:3]
    assert torch.equal(part.completions.tokens, batch.completions.tokens[1:3])
    assert torch.equal(part.preference, batch.preference[1:3])


def test_the_game_model_plays_the_reference_before_training() -> None:
    config = compose(["experiment=game"])
    from alignrun.launch.build import assemble

    assembly = assemble(config)
    metrics = assembly.evaluate().metrics
    for name, probability in zip("abc", (0.5, 0.3, 0.2), strict=True):
        assert metrics[f"policy/{name}"] == pytest.approx(probability, abs=1e-5)
    assert metrics["duality_gap"] == pytest.approx(0.06840333, abs=1e-5)
    assert metrics["kl_equilibrium"] == pytest.approx(0.105543, abs=1e-5)
    assert metrics["exploitability"] == pytest.approx(0.08, abs=1e-5)
