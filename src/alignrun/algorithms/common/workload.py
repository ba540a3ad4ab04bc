"""What a step asks of the model, as far as memory depends on it."""

from collections.abc import Sequence
from dataclasses import dataclass

from alignrun.generation.decode import needs_policy, needs_reference


@dataclass(frozen=True, slots=True)
class Workload:
    """Counts for one prompt."""

    learned: int
    """Completions that pass the model together, with a gradient."""
    drawn: tuple[float, ...] = ()
    """β of every stream that is decoded in one loop; empty where nothing is sampled."""
    copies: int = 0
    """Frozen policies that are held beside the trained one and the base."""
    trial: bool = False
    """Whether weights and optimiser state are held as they were before a half-step."""
    value: bool = False
    """Whether a value function is trained too, on an adapter of its own."""

    @classmethod
    def against(cls, samples: int, opponent: float, copies: int = 0) -> "Workload":
        """Samples of the policy, which are learned from, and as many of an opponent with that β."""
        return cls(learned=samples, drawn=(0.0,) * samples + (opponent,) * samples, copies=copies)


def decoding_rows(betas: Sequence[float]) -> int:
    """Rows of the model that streams with these β take in the decoding loop: a mixture has two."""
    return sum(needs_policy(beta) + needs_reference(beta) for beta in betas)
