"""The workload of a training step for the memory plan, derived from the algorithm's declarations."""

from dataclasses import dataclass

from alignrun.algorithms.base import discover
from alignrun.algorithms.common.opponents import BOTH_ORDERS
from alignrun.config import Config
from alignrun.generation.streams import Source, decoding_rows, roles_of
from alignrun.preferences import base as preferences
from alignrun.types import Role


@dataclass(frozen=True, slots=True)
class Workload:
    """The workload per prompt."""

    learned: int
    """Completions in one forward pass with a gradient."""
    drawn: tuple[Source, ...]
    """The source of every completion in the largest decoding loop; empty if nothing is sampled."""
    copies: int
    """Frozen policies in memory in addition to the trained policy and the base."""
    half_steps: bool
    """Whether a copy of weights and optimiser state is kept during a half-step."""
    value: bool
    """Whether a value function is trained as well, on its own adapter."""
    questions: int
    """Questions to the preference, if every pair in each order is one; else 0."""
    later_turns: int = 0
    """How often every completion is followed by another with a prompt of its own."""
    added_tokens: int = 0
    """Tokens by which the last of those prompts is longer than the first."""


def workload(config: Config) -> Workload:
    """The workload of one step of the configured algorithm."""
    kind = discover()[config.algo.name]
    declared = kind.declared(config)
    by_pair = kind.online and preferences.discover()[config.preference.name].by_pair(config.preference)
    opponents = getattr(config.algo, "opponents_per_sample", None)
    loops = [tuple(stream.source for stream in streams for _ in range(stream.samples)) for streams in declared]
    sampled = {role for loop in loops for source in loop for role in roles_of(source)}
    later_turns, added_tokens = kind.later_turns(config)
    return Workload(
        learned=kind.learned or max(sum(stream.learned for stream in streams) for streams in declared),
        drawn=max(loops, key=decoding_rows),
        copies=len({*sampled, *kind.kept(config)} - {Role.policy, Role.reference}),
        half_steps=kind.half_steps,
        value=kind.value_function,
        questions=BOTH_ORDERS * kind.pairs(config, opponents) if by_pair else 0,
        later_turns=later_turns,
        added_tokens=added_tokens,
    )
