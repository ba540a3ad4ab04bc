"""PPO, RLOO and GRPO: expected gradients by enumeration, the value function on the shared base, and the reward."""

import json
import math
from itertools import combinations_with_replacement
from pathlib import Path

import pytest
import torch
from helpers import Compared, load_policy, random_batch, refused_smoke
from safetensors.torch import load_file

from alignrun import cli
from alignrun.algorithms.base import Algorithm, Tools, discover
from alignrun.algorithms.common.batches import count, rows
from alignrun.algorithms.common.minibatches import minibatches
from alignrun.algorithms.common.rewards import Rewarded
from alignrun.errors import InputError
from alignrun.games.files import load_game
from alignrun.launch.compose import compose
from alignrun.models.policy import Policy
from alignrun.models.sources import load_tokenizer
from alignrun.preferences import base as preferences
from alignrun.preferences.base import Reward
from alignrun.types import Completions, PromptBatch, Role


class Length(Reward):
    """One point for a letter."""

    def rewards(self, prompts, completions) -> torch.Tensor:
        return torch.tensor([float(len(text)) for text in completions])


def longer(prompts, first, second) -> torch.Tensor:
    return torch.tensor([len(one) / (len(one) + len(other) + 1e-9) for one, other in zip(first, second, strict=True)])


def build(name: str, *overrides: str, preference=None) -> Algorithm:
    policy, config = load_policy(f"algo={name}", "generation.max_new_tokens=6", *overrides)
    return discover()[name](config.algo, Tools(policy, preference or Length(2.0), config))


def game_policy(name: str, *overrides: str) -> tuple[Algorithm, Completions, PromptBatch]:
    """The algorithm on CYC, away from the reference, with its three actions as completions of one prompt."""
    config = compose(["experiment=game", f"algo={name}", *overrides])
    policy = Policy.load(config.model, config.adapter, config.reference, load_tokenizer(config.model), 0)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in policy.trainable().values():
            weight += 0.1 * torch.randn(weight.shape, generator=generator)
    preference = preferences.discover()[config.preference.name].build(config.preference)
    algorithm = discover()[name](config.algo, Tools(policy, preference, config))
    actions = torch.tensor(policy.tokenizer.convert_tokens_to_ids(list("abc")))
    ids = torch.tensor([policy.tokenizer.encode("play")])
    prompt = PromptBatch(("play",), ids, torch.ones_like(ids))
    return algorithm, Completions(actions.reshape(1, 3, 1), torch.ones(1, 3, 1, dtype=torch.bool)), prompt


def close(found: list[torch.Tensor], expected: tuple[torch.Tensor, ...]) -> None:
    largest = max(float(gradient.abs().max()) for gradient in expected)
    assert largest > 1e-3
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=largest * 1e-3, rtol=1e-3)


def exact_gradient(algorithm: Algorithm, actions: Completions, prompt: PromptBatch, kl_tau: float):
    """π(y) and −∇[E r − τ KL(π‖μ)] for r(y) = P(y ≻ μ)."""
    policy = algorithm.tools.policy
    flat = actions.flat()
    log_pi, log_mu = (policy.log_probs(role, prompt, flat)[:, 0] for role in (Role.policy, Role.reference))
    game = load_game("cyc")
    rewards = (game.preferences @ game.reference).float()
    objective = (log_pi.exp() * (rewards - kl_tau * (log_pi - log_mu))).sum()
    weights = list(policy.trainable().values())
    return log_pi.detach().exp(), rewards, torch.autograd.grad(-objective, weights)


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("name", ["grpo", "rloo"])
def test_groups_of_any_size_have_the_expected_gradient_of_rlhf(
    name: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over all groups of K samples, ∇E r − τ∇KL with the rewards at full weight: a baseline that holds the completion's
    own reward would leave (1 − 1/K)∇E r − τ∇KL, whose zero is RLHF's optimum at τK/(K − 1).
    """
    plain = ["algo.scale_by_std=false", "algo.kl_estimator=k2"] if name == "grpo" else []
    algorithm, actions, prompt = game_policy(name, f"algo.samples_per_prompt={count}", "algo.kl_tau=0.3", *plain)
    pi, rewards, exact = exact_gradient(algorithm, actions, prompt, 0.3)
    weights = list(algorithm.tools.policy.trainable().values())
    expected = [torch.zeros_like(weight) for weight in weights]
    for group in combinations_with_replacement(range(3), count):
        places = list(group)
        drawn = rewards[None, places]
        completions = Completions(actions.tokens[:, places], actions.mask[:, places])
        rewarded = Rewarded(prompt, completions, drawn, torch.zeros_like(drawn))
        monkeypatch.setattr(algorithm, "draw", lambda *_, rewarded=rewarded, **__: rewarded)
        (batch,) = list(algorithm.collect(prompt, 0))
        chance = math.factorial(count) * float(pi[places].prod())
        chance /= math.prod(math.factorial(places.count(action)) for action in range(3))
        for total, part in zip(expected, torch.autograd.grad(algorithm.loss(batch).total, weights), strict=True):
            total += chance * part / count
    close(expected, exact)


def test_the_first_step_of_ppo_is_the_policy_gradient_of_rlhf(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ["algo.normalize_reward=false", "algo.whiten_advantages=false", "algo.trace=1", "algo.epochs=1"]
    algorithm, actions, prompt = game_policy("ppo", "algo.samples_per_prompt=3", "algo.kl_tau=0.1", *settings)
    pi, rewards, exact = exact_gradient(algorithm, actions, prompt, 0.1)
    monkeypatch.setattr(algorithm, "draw", lambda *_, **__: Rewarded(prompt, actions, rewards[None], torch.zeros(1, 3)))
    (rollout,) = list(algorithm.collect(prompt, 0))
    assert rollout.values.abs().max() == 0, "the value function starts at zero"
    weights = list(algorithm.tools.policy.trainable().values())
    expected = [torch.zeros_like(weight) for weight in weights]
    for i in range(3):
        one = rows_of_action(rollout, i)
        for total, part in zip(expected, torch.autograd.grad(algorithm.loss(one).total, weights), strict=True):
            total += pi[i] * part
    close(expected, exact)


def rows_of_action(rollout, place: int):
    """The rollout with one of its completions."""
    from dataclasses import fields, replace

    changes = {}
    for field in fields(rollout):
        value = getattr(rollout, field.name)
        if isinstance(value, torch.Tensor):
            changes[field.name] = value[:, place : place + 1]
        elif isinstance(value, Completions):
            changes[field.name] = Completions(value.tokens[:, place : place + 1], value.mask[:, place : place + 1])
    return replace(rollout, **changes)


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_grpo_is_the_loop_over_its_tokens(estimator: str) -> None:
    algorithm = build(
        "grpo", f"algo.kl_estimator={estimator}", "algo.samples_per_prompt=3", "generation.temperature=0.7"
    )
    policy = algorithm.tools.policy
    prompts, _ = random_batch(policy, prompts=2)
    (batch,) = list(algorithm.collect(prompts, 0))
    with torch.no_grad():
        for weight in policy.trainable().values():
            weight += 0.05
    loss = algorithm.loss(batch)
    completions = batch.completions.flat()
    with torch.no_grad():
        now, mu = (policy.log_probs(r, prompts, completions, 0.7) for r in (Role.policy, Role.reference))
    rewards = batch.rewards
    total = 0.0
    for row in range(6):
        group = rewards[row // 3]
        advantage = float((group[row % 3] - group.mean()) / (group.std() + 1e-4))
        length = int(completions.mask[row].sum())
        for n in range(length):
            ratio = float(torch.exp(now[row, n] - batch.log_probs.flatten(0, 1)[row, n]))
            clipped = min(max(ratio, 0.8), 1.2)
            delta = float(now[row, n] - mu[row, n])
            penalty = 0.0 if estimator == "k2" else float(torch.tensor(-delta).exp()) - 1 + delta
            total += (-min(ratio * advantage, clipped * advantage) + 0.05 * penalty) / length
        if estimator == "k2":
            total += 0.05 * float((now[row] - mu[row])[:length].sum()) ** 2 / 2 / length
    assert float(loss.total.detach()) == pytest.approx(total, rel=1e-3)
    assert loss.targets == 6


@pytest.mark.parametrize("recompute", [False, True])
def test_the_value_has_its_own_gradient_and_the_policy_none_of_it(recompute: bool) -> None:
    """Against one backward pass by hand, also where activations are computed again."""
    algorithm = build("ppo", f"model.gradient_checkpointing={recompute}".lower(), "algo.epochs=1")
    plain = build("ppo", "algo.epochs=1")
    gradients = []
    for one in (algorithm, plain):
        policy = one.tools.policy
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for weight in one.trainable().values():
                weight += 0.1 * torch.randn(weight.shape, generator=generator)
        prompts, _ = random_batch(policy, prompts=2)
        (batch,) = list(one.collect(prompts, 0))
        weights = {**policy.trainable(), **one.trainable()}
        one.loss(batch).total.backward()
        gradients.append({name: weight.grad.clone() for name, weight in weights.items() if weight.grad is not None})
        assert gradients[-1].keys() == weights.keys()
    for name, gradient in gradients[1].items():
        # In norm, since single elements that cancel keep the rounding of their summands, more or less by processor.
        assert (gradients[0][name] - gradient).norm() <= 1e-5 * gradient.norm()
    with plain.value.active():
        values = plain.value.values(prompts, batch.completions.flat())
        returns, old = batch.returns.flatten(0, 1), batch.values.flatten(0, 1)
        errors = torch.maximum((values - returns).square(), (old + (values - old).clamp(-0.2, 0.2) - returns).square())
        by_hand = torch.autograd.grad(
            0.1 * 0.5 * (errors * batch.completions.flat().mask).sum(), list(plain.trainable().values())
        )
    for (name, _), expected in zip(plain.trainable().items(), by_hand, strict=True):
        torch.testing.assert_close(gradients[1][name], expected, rtol=1e-4, atol=1e-6)
    assert any(expected.abs().max() > 1e-3 for expected in by_hand)


def test_the_value_adapter_changes_neither_policy_nor_reference() -> None:
    algorithm = build("ppo")
    policy = algorithm.tools.policy
    prompts, completions = random_batch(policy)
    roles = (Role.policy, Role.reference)
    before = [policy.log_probs(role, prompts, completions).detach() for role in roles]
    bare, _ = load_policy("algo=ppo", "generation.max_new_tokens=6")
    assert torch.equal(bare.log_probs(Role.policy, prompts, completions).detach(), before[0])
    with torch.no_grad():
        for weight in algorithm.trainable().values():
            weight += 0.5
    for role, expected in zip(roles, before, strict=True):
        assert torch.equal(policy.log_probs(role, prompts, completions).detach(), expected)
    assert not set(algorithm.trainable()) & set(policy.trainable())


def test_micro_batches_of_ppo_are_one_large_batch(tmp_path: Path) -> None:
    weights = []
    for size in (4, 1):
        run = tmp_path / str(size)
        settings = [
            "algo=ppo",
            "algo.epochs=2",
            "algo.minibatches=2",
            "train.steps=2",
            f"train.micro_batch_size={size}",
        ]
        assert cli.main(["experiment=smoke", f"run.dir={run}", "optim.learning_rate=0.01", *settings]) == 0
        weights.append(load_file(run / "checkpoints/step-2/weights.safetensors"))
        saved = load_file(run / "checkpoints/step-2/algorithm.safetensors")
        assert "value.head" in saved
        assert saved["value.head"].abs().max() > 0
        saved = load_file(run / "adapter" / "adapter_model.safetensors")
        assert not any("value" in name for name in saved)
    for name, weight in weights[0].items():
        torch.testing.assert_close(weight, weights[1][name], rtol=1e-2, atol=2e-4)


@pytest.mark.parametrize("name", ["ppo", "grpo"])
def test_a_rollout_is_scored_in_micro_batches(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    algorithm = build(name, "train.micro_batch_size=2", "algo.samples_per_prompt=2")
    prompts, _ = random_batch(algorithm.tools.policy)
    whole = build(name, "train.micro_batch_size=null", "algo.samples_per_prompt=2")
    expected = next(iter(whole.collect(prompts, 0)))
    sizes, log_probs = [], Policy.log_probs

    def counting(policy, role, prompts, *rest):
        sizes.append(len(prompts))
        return log_probs(policy, role, prompts, *rest)

    monkeypatch.setattr(Policy, "log_probs", counting)
    found = next(iter(algorithm.collect(prompts, 0)))
    assert max(sizes) == 2 < len(prompts)
    assert sum(sizes) == 2 * len(prompts)
    torch.testing.assert_close((found.log_probs, found.reference), (expected.log_probs, expected.reference))


def test_a_rollout_is_learned_from_whole_in_every_epoch() -> None:
    prompts, _ = random_batch(load_policy()[0], prompts=5)
    parts = list(minibatches(prompts, epochs=2, parts=2, seed=0, step=3))
    assert [count(part) for part in parts] == [3, 2, 3, 2]
    for epoch in (parts[:2], parts[2:]):
        assert sorted(text for part in epoch for text in part.texts) == sorted(prompts.texts)
    assert [part.texts for part in parts[:2]] != [part.texts for part in parts[2:]]
    again = list(minibatches(prompts, epochs=2, parts=2, seed=0, step=3))
    assert [part.texts for part in parts] == [part.texts for part in again]
    assert [count(part) for part in minibatches(prompts, epochs=1, parts=4, seed=0, step=3)] == [2, 1, 1, 1]
    for part in parts:
        for place, text in enumerate(part.texts):
            whole = prompts.texts.index(text)
            assert torch.equal(part.input_ids[place], prompts.input_ids[whole])
    assert torch.equal(rows(prompts, slice(1, 2)).input_ids, prompts.input_ids[1:2])


def test_the_reward_is_in_log_odds_or_a_win_rate() -> None:
    prompts, _ = random_batch(load_policy()[0], prompts=3)
    scalar, wins = build("rloo"), build("rloo", "algo.reward=win_rate", "algo.reference_samples=2")
    assert "log-odds" in scalar.notes()[-1]
    assert "win rate against 2" in wins.notes()[-1]
    (drawn,) = list(scalar.collect(prompts, 0))
    from alignrun.algorithms.common.rollout import decode_texts

    for k in range(4):
        one = Completions(drawn.completions.tokens[:, k], drawn.completions.mask[:, k])
        texts = decode_texts(scalar.tools.policy, one)
        assert drawn.rewards[:, k].tolist() == [len(text) / 2 for text in texts]
    (won,) = list(wins.collect(prompts, 0))
    assert ((won.rewards >= 0) & (won.rewards <= 1)).all()
    pairwise = build("rloo", preference=Compared(longer, by_pair=True))
    assert "win rate" in pairwise.notes()[-1]
    with pytest.raises(InputError, match="has no reward of one completion"):
        build("rloo", "algo.reward=scalar", preference=Compared(longer, by_pair=True))


def test_rebel_regresses_relative_rewards_with_the_kl_in_them() -> None:
    """(1/η)(Δ log π/π_t) against ΔR over the pairs of a prompt, R = r − penalty − τ log π_t/μ, times η."""
    settings = ["algo.samples_per_prompt=3", "algo.step_eta=2", "algo.kl_tau=0.3", "algo.missing_eos_penalty=1.5"]
    algorithm = build("rebel", "generation.max_new_tokens=3", "algo.epochs=2", *settings)
    policy = algorithm.tools.policy
    prompts, _ = random_batch(policy, prompts=4)
    rollout, again = list(algorithm.collect(prompts, 0))
    assert sorted(again.prompts.texts) == sorted(prompts.texts)
    with torch.no_grad():
        for weight in policy.trainable().values():
            weight += 0.03
        flat = rollout.completions.flat()
        now = policy.log_probs(Role.policy, rollout.prompts, flat, algorithm.temperature).sum(1).reshape(4, 3)
        ended = policy.ends(flat).reshape(4, 3)
    old, reference = rollout.log_probs.sum(2), rollout.reference.sum(2)
    total = 0.0
    for b in range(4):
        rewards = rollout.rewards[b] - 1.5 * ~ended[b] - 0.3 * (old[b] - reference[b])
        for i in range(3):
            for j in range(i):
                moved = (now[b, i] - old[b, i]) - (now[b, j] - old[b, j])
                total += 2 * float(moved / 2 - (rewards[i] - rewards[j])) ** 2
    loss = algorithm.loss(rollout)
    assert loss.targets == 12
    assert float(loss.total.detach()) == pytest.approx(total, rel=1e-4)


def test_completions_that_do_not_end_are_penalised() -> None:
    prompts, _ = random_batch(load_policy()[0], prompts=8)
    (free,) = list(build("rloo", "generation.max_new_tokens=3").collect(prompts, 0))
    algorithm = build("rloo", "generation.max_new_tokens=3", "algo.missing_eos_penalty=5")
    (charged,) = list(algorithm.collect(prompts, 0))
    ended = algorithm.tools.policy.ends(free.completions.flat()).reshape(8, 4)
    assert torch.equal(free.rewards, charged.rewards)
    assert torch.equal(charged.penalties, 5.0 * ~ended)
    assert charged.penalties.any()
    loss, taken = algorithm.loss(charged), Rewarded(prompts, free.completions, free.rewards - 5.0 * ~ended, 0 * ~ended)
    assert torch.equal(loss.total, algorithm.loss(taken).total)


def test_rewards_are_normalised_on_the_reference_and_stay_so() -> None:
    algorithm = build("ppo", "algo.epochs=1", "train.batch_size=4", "algo.missing_eos_penalty=3")
    prompts, _ = random_batch(algorithm.tools.policy, prompts=6)

    class Data:
        def __len__(self) -> int:
            return 6

        def batch_at(self, step: int, size: int) -> PromptBatch:
            return prompts

    with torch.no_grad():
        for weight in algorithm.tools.policy.trainable().values():
            weight += 0.3
    algorithm.prepare(Data())
    shift, scale = algorithm._shift_and_scale.tolist()
    parts = enumerate((slice(0, 4), slice(4, 6)))
    drawn = torch.cat(
        [algorithm.draw(rows(prompts, part), n, purpose=98, role=Role.reference).rewards.double() for n, part in parts]
    )
    assert (shift, scale) == pytest.approx((float(drawn.mean()), float(drawn.std())))
    settings = ["algo.trace=1", "algo.whiten_advantages=false", "train.batch_size=4", "algo.missing_eos_penalty=3"]
    again = build("ppo", "algo.epochs=1", *settings)
    again.prepare(Data())
    assert again._shift_and_scale.tolist() == [shift, scale], "whatever the policy has become"
    (rollout,) = list(again.collect(prompts, 0))
    unended = 3.0 * ~again.tools.policy.ends(rollout.completions.flat()).reshape(6, -1)
    assert unended.any()
    penalties = unended + 0.05 * (rollout.log_probs - rollout.reference).sum(2)
    expected = (rollout.rewards - shift) / scale - penalties
    torch.testing.assert_close(rollout.returns[:, :, 0], expected, rtol=1e-4, atol=1e-5, check_dtype=False)
    last = rollout.completions.mask.sum(2, keepdim=True) - 1
    step = unended + 0.05 * (rollout.log_probs - rollout.reference).gather(2, last)[:, :, 0]
    found = rollout.returns.gather(2, last)[:, :, 0]  # the score comes with the last token
    expected = (rollout.rewards - shift) / scale - step
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5, check_dtype=False)


def test_the_controller_steers_the_penalty_and_is_resumed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = ["algo=ppo", "algo.kl_target=0.001", "algo.kl_horizon=100", "optim.learning_rate=0.02"]
    steps = ["train.steps=4", "train.checkpoint_every=1", "train.keep_checkpoints=9"]
    assert cli.main(["experiment=smoke", f"run.dir={run}", *settings, *steps]) == 0
    states = [load_file(run / f"checkpoints/step-{n}/algorithm.safetensors") for n in (1, 2, 3, 4)]
    taus = [float(state["kl_factor"]) for state in states]
    assert len(set(taus)) > 1
    for before, after in zip([1.0, *taus], taus, strict=False):
        assert 1 - 0.2 * 16 / 100 - 1e-9 <= after / before <= 1 + 0.2 * 16 / 100 + 1e-9
    assert cli.main(["resume", str(run), "--step", "2"]) == 0
    again = load_file(run / "checkpoints/step-4/algorithm.safetensors")
    assert float(again["kl_factor"]) == taus[-1]
    assert torch.equal(again["reward_shift_and_scale"], states[0]["reward_shift_and_scale"])
    # Another τ counts when a run goes on; what rewards are divided by stays what the value function has learned.
    assert cli.main(["resume", str(run), "train.steps=5", "algo.kl_tau=5", "train.batch_size=3"]) == 0
    last = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][-2]
    assert last["kl_tau"] == pytest.approx(5 * taus[-1])
    assert last["reward_scale"] == pytest.approx(float(again["reward_shift_and_scale"][1]))


def test_the_controller_never_turns_the_penalty_into_a_reward() -> None:
    algorithm = build("ppo", "algo.epochs=1", "algo.kl_target=100", "algo.kl_horizon=2")
    prompts, _ = random_batch(algorithm.tools.policy, prompts=4)
    for step in range(3):
        list(algorithm.collect(prompts, step))
        assert float(algorithm.kl_tau) == pytest.approx(0.05 * 0.8 ** (step + 1))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("algo=ppo", "adapter=none"), "algo=ppo puts its value function on the same base"),
        (("algo=rloo", "algo.samples_per_prompt=1"), "algo.samples_per_prompt must be at least 2"),
        (("algo=grpo", "algo.clip=0"), "algo.clip must be positive"),
        (("algo=rebel", "algo.step_eta=30"), "algo.step_eta times algo.kl_tau=0.05 must be below 1"),
        (("algo=ppo", "algo.trace=2"), "algo.trace must lie in [0, 1]"),
        (("algo=ppo", "algo.epochs=0"), "algo.epochs must be at least 1"),
        (("algo=grpo", "preference=style_panel", "algo.reward=scalar"), "use algo.reward=win_rate"),
        (("algo=ppo", "algo.minibatches=5"), "algo.minibatches=5 is more than train.batch_size=4"),
        (("algo=ppo", "algo.kl_tau=0", "algo.kl_target=1"), "algo.kl_tau must be positive for algo.kl_target"),
    ],
)
def test_wrong_settings_are_one_line(
    overrides: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused_smoke(capsys, tmp_path, *overrides)
