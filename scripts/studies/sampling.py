"""Completions of a policy on the prompts of a configuration, with their divergence from the reference."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from alignrun.config import Config
from alignrun.data.loading import load_examples
from alignrun.data.prompts import PromptSet
from alignrun.evaluation.completions import Drawing, draw, score
from alignrun.launch.build import distinct_prompts, load_trained, make_encoding
from alignrun.models.policy import Policy
from alignrun.tournament.players import Loader, find_player
from alignrun.types import Role


@dataclass(frozen=True, slots=True)
class Sampled:
    """K completions of each of X prompts."""

    prompts: list[str]
    texts: list[list[str]]
    kl: NDArray[np.float64]
    """[X] the mean of log π(y | x) − log μ(y | x), an estimate of KL(π‖μ) in nats."""


def sample_reference(config: Config, samples: int) -> Sampled:
    """Completions of the reference that a run with this configuration would have."""
    policy = load_trained(config, make_encoding(config).tokenizer)
    assert isinstance(policy, Policy)
    return _sample(config, policy, Role.reference, samples, f"study {config.seed}")


def sample_run(run: Path, samples: int) -> Sampled:
    """Completions of a run's policy at its newest checkpoint, or of a checkpoint RUN/checkpoints/step-N.

    The name of its folder selects the random numbers, so that two runs of one seed are sampled independently.
    """
    player = find_player(str(run))
    return _sample(player.config, Loader().load(player), player.role, samples, f"study {run.name}")


def _sample(config: Config, policy: Policy, role: Role, samples: int, stream: str) -> Sampled:
    examples = distinct_prompts(load_examples(config.data).heldout)
    prompts = PromptSet.build(examples, make_encoding(config))
    generation = config.generation
    drawing = Drawing(samples, generation.max_new_tokens, generation.temperature, 0, 1.0, batch_size=1, seed=0)
    drawn = draw(policy, role, prompts, drawing, stream)
    ours = np.array(drawn.log_probs)
    theirs = ours if role is Role.reference else score(policy, Role.reference, prompts, drawn.tokens, drawing)
    return Sampled([example.prompt for example in examples], drawn.texts, (ours - theirs).mean(1))
