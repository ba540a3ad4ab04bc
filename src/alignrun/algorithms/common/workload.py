"""What a step asks of the model, as far as memory depends on it: derived from what an algorithm declares."""

from dataclasses import dataclass

from alignrun.algorithms.base import discover
from alignrun.config import Config
from alignrun.generation.streams import Source, decoding_rows, roles_of
from alignrun.types import Role


@dataclass(frozen=True, slots=True)
class Workload:
    """Counts for one prompt."""

    learned: int
    """Completions that pass the model together, with a gradient."""
    drawn: tuple[Source, ...]
    """The source of every completion of the largest decoding loop; empty where nothing is sampled."""
    copies: int
    """Frozen policies that are held next to the trained one and the base."""
    half_steps: bool
    """Whether weights and optimiser state are held as they were before a half-step."""
    value: bool
    """Whether a value function is trained too, on an adapter of its own."""


def workload(config: Config) -> Workload:
    """What a step of the configured algorithm asks of the model."""
    kind = discover()[config.algo.name]
    declared = kind.declared(config)
    loops = [tuple(stream.source for stream in streams for _ in range(stream.samples)) for streams in declared]
    sampled = {role for loop in loops for source in loop for role in roles_of(source)}
    return Workload(
        learned=kind.learned or max(sum(stream.learned for stream in streams) for streams in declared),
        drawn=max(loops, key=decoding_rows),
        copies=len({*sampled, *kind.snapshots} - {Role.policy, Role.reference}),
        half_steps=kind.half_steps,
        value=kind.value_function,
    )
