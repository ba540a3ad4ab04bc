"""What a step asks of the model, as far as memory depends on it."""

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
    value: bool = False
    """Whether a value function is trained too, on an adapter of its own."""

    @property
    def rows(self) -> int:
        """Rows of the model in the decoding loop: a mixture has two."""
        return sum(needs_policy(beta) + needs_reference(beta) for beta in self.drawn)
