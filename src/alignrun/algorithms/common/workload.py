"""The workload of a training step for the memory plan, derived from the algorithm's declarations."""

from collections.abc import Iterable
from dataclasses import dataclass

from alignrun.algorithms.base import discover
from alignrun.algorithms.common.opponents import BOTH_ORDERS
from alignrun.algorithms.common.paired import always_paired, may_pair
from alignrun.config import Config, Opponents
from alignrun.generation.streams import Source, Stream, decoding_roles, decoding_rows, roles_of
from alignrun.preferences import base as preferences
from alignrun.types import Role


@dataclass(frozen=True, slots=True)
class Workload:
    """The workload per prompt."""

    learned: int
    """Completions in one forward pass with a gradient."""
    drawn: tuple[Source, ...]
    """The source of every completion in the largest decoding loop; empty if nothing is sampled."""
    continued: tuple[Role, ...]
    """The role of every row that reads a draft and may continue it, with room for two completions."""
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
    sampled = {role for streams in declared for stream in streams for role in roles_of(stream.source)}
    generation = config.generation
    loops = [_sources(one for one in streams if not always_paired(one, generation)) for streams in declared]
    pairs = [
        one
        for streams in declared
        for one in streams
        if may_pair(one) and generation.opponents is not Opponents.independent
    ]
    read = [decoding_roles([Role.policy, one.source]) * one.samples for one in pairs if _differs(one.source)]
    widest: list[Role] = max(read, key=len) if read else []
    later_turns, added_tokens = kind.later_turns(config)
    return Workload(
        learned=kind.learned or max(sum(stream.learned for stream in streams) for streams in declared),
        drawn=max(loops, key=decoding_rows),
        continued=tuple(widest),
        copies=len({*sampled, *kind.kept(config)} - {Role.policy, Role.reference}),
        half_steps=kind.half_steps,
        value=kind.value_function,
        questions=BOTH_ORDERS * kind.pairs(config, opponents) if by_pair else 0,
        later_turns=later_turns,
        added_tokens=added_tokens,
    )


def _differs(source: Source) -> bool:
    """Whether a source is not the policy itself, whose opponents are its samples as they are."""
    return roles_of(source) != (Role.policy,)


def _sources(streams: Iterable[Stream]) -> tuple[Source, ...]:
    """The source of every completion."""
    return tuple(stream.source for stream in streams for _ in range(stream.samples))
