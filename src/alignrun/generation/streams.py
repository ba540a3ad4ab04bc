"""Declarations of what to sample: completions of a role, or of the token-wise geometric mixture of two."""

from collections.abc import Iterable
from dataclasses import dataclass

from alignrun.errors import InputError
from alignrun.types import Role


@dataclass(frozen=True, slots=True)
class Mixture:
    """Π_n softmax((1−β) log `first` + β log `second`): β = 0 is the first role, 1 the second (arXiv 2312.00886)."""

    first: Role
    second: Role
    beta: float

    def __post_init__(self) -> None:
        if not 0 <= self.beta <= 1:
            raise InputError(f"mix_beta must lie in [0, 1], not {self.beta}")


Source = Role | Mixture
"""The distribution of a completion."""


@dataclass(frozen=True, slots=True)
class Stream:
    """Samples of every prompt from one source."""

    source: Source
    samples: int
    """Completions per prompt."""
    learned: int = 0
    """The number of them that the loss scores with a gradient; the others only serve as opponents or baselines."""
    temperature: float | None = None
    """The temperature; None means `generation.temperature`."""
    drafted: bool = False
    """Whether its sample j may be drafted by sample j of the stream before it, and then depend on it."""


def roles_of(source: Source) -> tuple[Role, ...]:
    """The roles whose logits a source needs; a mixture with β = 0 or 1 needs only one."""
    if not isinstance(source, Mixture):
        return (source,)
    weights = ((source.first, 1 - source.beta), (source.second, source.beta))
    return tuple(role for role, weight in weights if weight > 0)


def decoding_roles(sources: Iterable[Source]) -> list[Role]:
    """The roles needed to decode the sources together, in the order of their row blocks."""
    needed = {role for source in sources for role in roles_of(source)}
    return [role for role in Role if role in needed]


def decoding_rows(sources: Iterable[Source]) -> int:
    """Model rows per prompt when decoding the sources together: a mixture takes two."""
    return sum(len(roles_of(source)) for source in sources)
