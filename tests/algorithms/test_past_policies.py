"""Methods that learn against past policies or several completions of their own: OMWU, ONPO, MNPO, RSPO, SPO, NashPG."""

from pathlib import Path

import pytest
import torch
from helpers import Compared, load_policy, random_batch, refused_smoke

from alignrun.algorithms.base import Algorithm, Tools, discover
from alignrun.algorithms.common.rollout import decode_texts
from alignrun.algorithms.common.workload import workload
from alignrun.launch.compose import compose
from alignrun.types import Completions, Role


def longer(prompts, first, second) -> torch.Tensor:
    return torch.tensor([len(one) / (len(one) + len(other) + 1e-9) for one, other in zip(first, second, strict=True)])


def build(name: str, *overrides: str) -> Algorithm:
    policy, config = load_policy(f"algo={name}", "generation.max_new_tokens=5", *overrides)
    return discover()[name](config.algo, Tools(policy, Compared(longer), config))


def move(algorithm: Algorithm, amount: float = 0.05) -> None:
    with torch.no_grad():
        for weight in algorithm.tools.policy.trainable().values():
            weight += amount


def sums(algorithm: Algorithm, role: Role, prompts, completions: Completions) -> torch.Tensor:
    """[B, K] log-probabilities of whole completions."""
    temperature = algorithm.tools.config.generation.temperature
    with torch.no_grad():
        flat = algorithm.tools.policy.log_probs(role, prompts, completions.flat(), temperature)
    return flat.sum(1).reshape(completions.tokens.shape[:2])


def texts(algorithm: Algorithm, completions: Completions) -> list[list[str]]:
    """B lists of K texts."""
    return [
        decode_texts(algorithm.tools.policy, Completions(tokens, mask))
        for tokens, mask in zip(completions.tokens, completions.mask, strict=True)
    ]


def gradient(algorithm: Algorithm, batch) -> torch.Tensor:
    weights = list(algorithm.tools.policy.trainable().values())
    parts = torch.autograd.grad(algorithm.loss(batch).total, weights)
    return torch.cat([part.flatten() for part in parts])


def iterations(name: str, *overrides: str) -> list[torch.Tensor]:
    """Gradients on three batches, the second in a first iteration and the third in the next; the policy moves."""
    algorithm = build(name, "algo.refresh_every=2", *overrides)
    prompts, _ = random_batch(algorithm.tools.policy, prompts=2)
    found = []
    for step in range(3):
        (batch,) = algorithm.collect(prompts, step)
        found.append(gradient(algorithm, batch))
        move(algorithm)
    return found


def test_a_history_of_one_is_inpo() -> None:
    ones, inpo = iterations("mnpo", "algo.history=1"), iterations("inpo")
    two = iterations("mnpo", "algo.past_opponents=false")
    assert all(torch.equal(one, other) for one, other in zip(ones, inpo, strict=True))
    assert torch.equal(two[1], inpo[1]), "as long as all past policies are the first one"
    assert not torch.allclose(two[2], inpo[2])


def test_without_penalties_rspo_is_sppo() -> None:
    free = ("algo.kl_tau=0", "algo.forward_kl_tau=0", "algo.step_eta=4", "algo.pairing=best_worst")
    sppo = iterations("sppo", "algo.step_eta=4")
    assert all(torch.equal(one, other) for one, other in zip(iterations("rspo", *free), sppo, strict=True))
    held = iterations("rspo", *free, "algo.kl_tau=0.1")
    assert not torch.allclose(held[0], sppo[0])


def test_a_history_holds_the_policies_at_the_start_of_each_iteration() -> None:
    algorithm = build("mnpo", "algo.history=3", "algo.refresh_every=2", "algo.history_weights=[3,1,0]")
    prompts, _ = random_batch(algorithm.tools.policy, prompts=2)
    policy = algorithm.tools.policy
    begun: list[list[torch.Tensor]] = []
    for step in range(5):
        if step % 2 == 0:
            begun.append([weight.detach().clone() for weight in policy.trainable().values()])
        (batch,) = algorithm.collect(prompts, step)
        move(algorithm)
    for role, expected in zip((Role.anchor, Role.previous, Role.previous_2), reversed(begun), strict=True):
        held = policy.snapshot_weights(role).values()
        assert all(torch.equal(one, other) for one, other in zip(held, expected, strict=True)), role
    mixed = algorithm.anchored(batch).sum(1).reshape(batch.completions.tokens.shape[:2])
    now, before = (sums(algorithm, role, prompts, batch.completions) for role in (Role.anchor, Role.previous))
    torch.testing.assert_close(mixed, 0.75 * now + 0.25 * before)
    assert len(algorithm.state()) == 3 * len(policy.trainable()), "what a checkpoint holds"


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("mnpo", ("algo.history=3", "algo.refresh_every=2")),
        ("omwu", ("algo.refresh_every=2",)),
        ("onpo", ("algo.refresh_every=4",)),
    ],
)
def test_a_checkpoint_holds_all_past_policies(name: str, settings: tuple[str, ...]) -> None:
    """Weights and `state` are all that the next step depends on, also where all past policies have been renewed."""
    algorithm, resumed = (build(name, *settings, "generation.temperature=1") for _ in range(2))
    prompts, _ = random_batch(algorithm.tools.policy, prompts=2)
    for step in range(7):
        list(algorithm.collect(prompts, step))
        move(algorithm, 0.1)
    with torch.no_grad():
        for source, target in (
            (algorithm.tools.policy.trainable(), resumed.tools.policy.trainable()),
            (algorithm.state(), resumed.state()),
        ):
            for key, weight in target.items():
                weight.copy_(source[key])
    (expected,), (found,) = (list(one.collect(prompts, 7)) for one in (algorithm, resumed))
    assert torch.equal(found.completions.tokens, expected.completions.tokens)
    assert torch.equal(found.labels, expected.labels)
    assert torch.equal(gradient(resumed, found), gradient(algorithm, expected))


def test_only_the_history_that_is_asked_for_takes_memory() -> None:
    for history in (1, 3):
        assert workload(compose(["experiment=smoke", "algo=mnpo", f"algo.history={history}"])).copies == history


def test_optimistic_labels_are_of_this_iteration_and_the_one_before() -> None:
    algorithm = build("omwu", "algo.refresh_every=1", "algo.samples_per_prompt=3", "generation.temperature=1")
    prompts, _ = random_batch(algorithm.tools.policy, prompts=2)
    list(algorithm.collect(prompts, 0))
    move(algorithm)
    (batch,) = algorithm.collect(prompts, 1)
    _, before = algorithm.rollouts.sample(prompts, algorithm.streams(algorithm.tools.config, 1), 1)
    ours, theirs = texts(algorithm, batch.completions), texts(algorithm, before)
    drawn = {
        role: sums(algorithm, role, prompts, before).sum() for role in (Role.previous, Role.anchor, Role.reference)
    }
    assert drawn[Role.previous] == max(drawn.values()), "opponents are drawn from the iteration before"
    for b in range(2):
        for m, (i, j) in enumerate(((0, 1), (0, 2), (1, 2))):
            p = float(longer(None, [ours[b][i]], [ours[b][j]]))
            edge = [sum(float(longer(None, [ours[b][k]], [other])) for other in theirs[b]) / 3 for k in (i, j)]
            expected = 0.5 + (2 * p - 1) - (edge[0] - edge[1])
            assert float(batch.labels[b, m]) == pytest.approx(expected, abs=1e-5)


def test_mnpo_weighs_its_opponents_as_its_anchor() -> None:
    settings = ("algo.refresh_every=1", "algo.samples_per_prompt=3", "algo.history_weights=[3,1]")
    algorithm = build("mnpo", *settings, "generation.temperature=1")
    prompts, _ = random_batch(algorithm.tools.policy, prompts=2)
    list(algorithm.collect(prompts, 0))
    move(algorithm)
    (batch,) = algorithm.collect(prompts, 1)
    _, before = algorithm.rollouts.sample(prompts, algorithm.streams(algorithm.tools.config, 1), 1)
    ours, theirs = texts(algorithm, batch.completions), texts(algorithm, before)
    for b in range(2):
        for m, (i, j) in enumerate(((0, 1), (0, 2), (1, 2))):
            p = float(longer(None, [ours[b][i]], [ours[b][j]]))
            rates = [sum(float(longer(None, [ours[b][k]], [other])) for other in theirs[b]) / 3 for k in (i, j)]
            expected = 0.75 * p + 0.25 * (0.5 + rates[0] - rates[1])
            assert float(batch.labels[b, m]) == pytest.approx(expected, abs=1e-5)
    alone = build("mnpo", *settings, "algo.past_opponents=false")
    assert len(alone.streams(alone.tools.config, 0)) == 1


def test_onpo_fits_its_two_policies_one_after_the_other() -> None:
    algorithm = build("onpo", "algo.refresh_every=4", "generation.temperature=1")
    policy = algorithm.tools.policy
    prompts, _ = random_batch(policy, prompts=2)
    auxiliary, sampled = [], []
    for step in range(5):
        (batch,) = algorithm.collect(prompts, step)
        move(algorithm, 0.1)
        auxiliary.append(next(iter(policy.snapshot_weights(Role.auxiliary).values())).flatten()[0].item())
        sampled.append(next(iter(policy.snapshot_weights(Role.anchor).values())).flatten()[0].item())
    start = sampled[0]
    assert [round(value - start, 4) for value in sampled] == [0, 0, 0, 0, 0.4], "π_t draws throughout an iteration"
    assert [round(value - start, 4) for value in auxiliary] == [0, 0, 0.2, 0.2, 0.2], "π' ends in its middle"
    ratios = algorithm.log_ratios(batch, torch.zeros(()), torch.zeros(())).sum(1).reshape(batch.first.shape[0], -1)
    torch.testing.assert_close(-ratios, sums(algorithm, Role.auxiliary, prompts, batch.completions))
    assert any("ends within an iteration" in note for note in build("onpo", "train.steps=5").notes())
    assert not build("onpo", "train.steps=32").notes()


def test_rspo_adds_both_divergences() -> None:
    settings = ("algo.kl_tau=0.3", "algo.forward_kl_tau=0.2", "algo.step_eta=4", "algo.reference_samples=2")
    algorithm = build("rspo", *settings, "algo.samples_per_prompt=3")
    prompts, _ = random_batch(algorithm.tools.policy, prompts=2)
    (batch,) = algorithm.collect(prompts, 0)
    move(algorithm)
    pi, mu, anchor = (
        sums(algorithm, role, prompts, batch.completions) for role in (Role.policy, Role.reference, Role.anchor)
    )
    assert batch.win_rates.shape == (2, 3)
    assert mu[:, 3:].sum() > pi[:, 3:].sum(), "the last two are of the reference"
    total = 0.0
    for b in range(2):
        for k in range(3):
            total += float(pi[b, k] - anchor[b, k] - 4 * (batch.win_rates[b, k] - 0.5)) ** 2 / 4
            total += 0.3 * float(pi[b, k] - mu[b, k]) ** 2
        total -= 3 * 2 * 0.2 * float(pi[b, 3:].mean())
    assert float(algorithm.loss(batch).total.detach()) == pytest.approx(total, rel=1e-4)


def test_the_win_rates_of_spo_are_over_the_others_of_the_prompt() -> None:
    algorithm = build("spo", "algo.samples_per_prompt=4")
    prompts, _ = random_batch(algorithm.tools.policy, prompts=2)
    (batch,) = algorithm.collect(prompts, 0)
    for b, every in enumerate(texts(algorithm, batch.completions)):
        for k, one in enumerate(every):
            rates = [float(longer(None, [one], [other])) for place, other in enumerate(every) if place != k]
            assert float(batch.preference[b, k]) == pytest.approx(sum(rates) / 3, abs=1e-5)


def test_nash_pg_takes_clipped_steps_against_its_magnet() -> None:
    """On a rollout the ratio, its clipping and the pull of the magnet, in a loop over completions and tokens."""
    settings = ("algo.kl_tau=0.3", "algo.anchor_tau=0.4", "algo.refresh_every=2", "algo.epochs=3", "algo.clip=0.1")
    algorithm = build("nash_pg", *settings, "algo.samples_per_prompt=3", "generation.temperature=0.7")
    policy = algorithm.tools.policy
    prompts, _ = random_batch(policy, prompts=2)
    list(algorithm.collect(prompts, 0))
    move(algorithm)
    batch, *more = algorithm.collect(prompts, 1)
    assert len(more) == 2
    flat = batch.completions.flat()
    old, magnet, mu = (
        policy.log_probs(role, batch.prompts, flat, 0.7).detach() for role in (Role.policy, Role.anchor, Role.reference)
    )
    assert (old - magnet).abs().max() > 0.01, "the magnet stays where the game began"
    move(algorithm)
    pi = policy.log_probs(Role.policy, batch.prompts, flat, 0.7).detach()
    total, clipped = 0.0, 0
    for row, win_rate in enumerate(batch.win_rates.flatten().tolist()):
        for n in range(int(flat.mask[row].sum())):
            ratio = float((pi[row, n] - old[row, n]).exp())
            bounded = min(1.1, max(0.9, ratio))
            clipped += bounded != ratio
            total -= min(ratio * (win_rate - 0.5), bounded * (win_rate - 0.5))
        total += 0.2 * float((pi[row] - magnet[row]).sum()) ** 2 + 0.15 * float((pi[row] - mu[row]).sum()) ** 2
    assert clipped
    assert float(algorithm.loss(batch).total.detach()) == pytest.approx(total, rel=1e-4)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("algo=mnpo", "algo.history=5"), "algo.history must lie in [1, 4], not 5"),
        (("algo=mnpo", "algo.history_weights=[1]"), "algo.history_weights must be algo.history=2 numbers"),
        (("algo=mnpo", "algo.history_weights=[0,0]"), "must not be negative, nor all zero"),
        (("algo=onpo", "algo.refresh_every=5"), "algo.refresh_every must be even"),
        (("algo=omwu", "algo.kl_tau=-1"), "algo.kl_tau must not be negative, not -1"),
        (("algo=rspo", "algo.forward_kl_tau=-1"), "algo.forward_kl_tau must not be negative"),
        (("algo=spo", "algo.samples_per_prompt=1"), "algo.samples_per_prompt must be at least 2, to be compared"),
        (("algo=nash_pg", "algo.anchor_tau=0"), "algo.anchor_tau must be positive"),
        (("algo=nash_pg", "algo.minibatches=1000"), "algo.minibatches=1000 is more than train.batch_size"),
    ],
)
def test_wrong_settings_are_one_line(
    overrides: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused_smoke(capsys, tmp_path, *overrides)
