"""Nash-MD (arXiv 2312.00886) in one file: a training loop of your own from the pieces of the package.

    python examples/nash_md_loop.py                          # a three-action game, whose equilibrium is known
    python examples/nash_md_loop.py kl_tau=0.3 steps=100     # other settings of `Settings`

`alignrun algo=nash_md experiment=game` does the same, and also accumulates micro-batches, resumes, logs and runs on
several processes. Copy this file to try a loop that no algorithm of the package has.

Shape legend: B prompts, K completions of each prompt from each side, T tokens.
"""

import sys
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from alignrun import games
from alignrun.algorithms.common.rollout import decode_texts, sample_streams, stack, step_generator
from alignrun.games.files import PROMPT, load_game
from alignrun.generation.decode import Sampling
from alignrun.generation.streams import Mixture
from alignrun.launch.compose import compose
from alignrun.models.policy import Policy
from alignrun.models.sources import load_tokenizer
from alignrun.objectives.nash import policy_gradient_loss, suffix_advantages
from alignrun.preferences.base import Preference
from alignrun.preferences.matrix import MatrixPreference
from alignrun.types import Completions, PromptBatch, Role


@dataclass
class Settings:
    """Settings, given on the command line as key=value."""

    game: str = "cyc"
    kl_tau: float = 0.1
    """τ, the weight of KL(π‖μ) against a win rate in [0, 1]."""
    mix_beta: float = 0.125
    """β, the share of the reference μ in the opponent."""
    prompts: int = 16
    samples: int = 16
    """K"""
    steps: int = 60
    learning_rate: float = 1e-3
    seed: int = 0


def main(arguments: list[str]) -> float:
    """Train, and return KL(π*_τ ‖ π), the distance from the equilibrium: small, and 0 only if mix_beta = 0."""
    settings = read_settings(arguments)
    policy, game = load_policy(settings), load_game(settings.game)
    preference = MatrixPreference(game)
    prompts = play(policy, settings.prompts)
    weights = list(policy.trainable().values())
    optimizer = torch.optim.AdamW(weights, lr=settings.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, settings.steps)
    equilibrium = games.equilibrium(game, settings.kl_tau)
    for step in range(settings.steps):
        ours, theirs = sample(policy, prompts, settings, step)
        win_rates = judge(policy, preference, prompts, ours, theirs)
        optimizer.zero_grad()
        loss = nash_md_loss(policy, prompts, ours, win_rates, settings)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, max_norm=1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % 20 == 0 or step + 1 == settings.steps:
            played = probabilities(policy, game)
            distance = float(games.kl(equilibrium, played))
            actions = ", ".join(f"{name} {float(share):.3f}" for name, share in zip(game.actions, played, strict=True))
            print(f"step {step + 1}: loss {float(loss.detach()):+.4f}, {actions}, KL(π*‖π) {distance:.5f}")
    return distance


def sample(policy: Policy, prompts: PromptBatch, settings: Settings, step: int) -> tuple[Completions, Completions]:
    """y ~ π and y' ~ π̃^β, each [B, K, T], in one decoding loop on one copy of the base."""
    opponent = Mixture(Role.policy, Role.reference, settings.mix_beta)
    sources = [Role.policy] * settings.samples + [opponent] * settings.samples
    # One token, since a completion is an action of the game.
    sampling = Sampling(max_new_tokens=1, stop_ids=policy.stop_ids, pad_id=policy.tokenizer.pad_token_id)
    generator = step_generator(policy.device, settings.seed, step)  # of the step alone, so that any step can be redone
    drawn = sample_streams(policy, prompts, sources, sampling, generator)
    return stack(drawn[: settings.samples]), stack(drawn[settings.samples :])


def judge(
    policy: Policy, preference: Preference, prompts: PromptBatch, ours: Completions, theirs: Completions
) -> Tensor:
    """[B, K] P(y ≻ y' | x) of each y, averaged over all y' of its prompt."""
    first, second = (
        [decode_texts(policy, Completions(side.tokens[:, k], side.mask[:, k])) for k in range(side.tokens.shape[1])]
        for side in (ours, theirs)
    )
    judged = [torch.stack([preference(prompts.texts, mine, other) for other in second]).mean(0) for mine in first]
    return torch.stack(judged, dim=1).to(policy.device)


def nash_md_loss(
    policy: Policy, prompts: PromptBatch, ours: Completions, win_rates: Tensor, settings: Settings
) -> Tensor:
    """−E[Σ_n log π(y_n) · (P(y ≻ y') − ½ − τ Σ_{m≥n} log π(y_m)/μ(y_m))], whose gradient is that of eqs. 13-14."""
    completions = ours.flat()  # [B·K, T], the K completions of a prompt in consecutive rows
    log_probs = policy.log_probs(Role.policy, prompts, completions)
    penalty = settings.kl_tau * (log_probs.detach() - policy.log_probs(Role.reference, prompts, completions))
    advantages = suffix_advantages(win_rates.flatten(), penalty, completions.mask)
    return policy_gradient_loss(log_probs, advantages, completions.mask) / len(completions.tokens)


@torch.no_grad()
def probabilities(policy: Policy, game: games.Game) -> Tensor:
    """[n] the probability with which the policy plays each action of the game."""
    actions = torch.tensor(policy.tokenizer.convert_tokens_to_ids(list(game.actions)), device=policy.device)
    each = Completions(actions[:, None], torch.ones_like(actions, dtype=torch.bool)[:, None])
    return policy.log_probs(Role.policy, play(policy, len(actions)), each)[:, 0].double().softmax(0).cpu()


def play(policy: Policy, count: int) -> PromptBatch:
    """The one prompt of a game, `count` times; prompts of a data set come from `alignrun.data.PromptSet`."""
    ids = torch.tensor([policy.tokenizer.encode(PROMPT)], device=policy.device).repeat(count, 1)
    return PromptBatch((PROMPT,) * count, ids, torch.ones_like(ids))


def load_policy(settings: Settings) -> Policy:
    """The model that plays the game, with a LoRA adapter; the reference is the same model with the adapter off.

    `compose(["model=llama-8b"])` gives the sections of a real model.
    """
    config = compose(["experiment=game", f"preference.game={settings.game}", f"seed={settings.seed}"])
    return Policy.load(config.model, config.adapter, config.reference, load_tokenizer(config.model), config.seed)


def read_settings(arguments: list[str]) -> Settings:
    """Settings from key=value. Exits with one line where a key is unknown."""
    kinds = {field.name: type(getattr(Settings(), field.name)) for field in fields(Settings)}
    given = dict(argument.partition("=")[::2] for argument in arguments)
    if unknown := sorted(given.keys() - kinds.keys()):
        sys.exit(f"{unknown[0]} is not a setting: choose from {', '.join(kinds)}")
    return Settings(**{name: kinds[name](value) for name, value in given.items()})


if __name__ == "__main__":
    main(sys.argv[1:])
