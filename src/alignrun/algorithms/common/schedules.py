"""What changes along a run beside the learning rate."""

from alignrun.config import require


def mix_beta_at(step: int, steps: int, start: float, end: float | None) -> float:
    """The mixture's β at step 0 ≤ `step` < `steps`: constant, or linear from `start` to exactly `end` at the last step.

    A function of the step and their number, so that a run continues the same schedule unless it is resumed for more
    steps; a single step takes `start`.
    """
    if end is None:
        return start
    share = step / max(1, steps - 1)
    return (1 - share) * start + share * end


def widest_mix_beta(start: float, end: float | None) -> float:
    """The β of the schedule that asks most of the model: 0 and 1 are decoded without the other policy."""
    return start if end is None or end == start else 0.5


def check_mixture(start: float, end: float | None) -> None:
    """Refuse a β outside [0, 1]. Raises InputError."""
    for name, value in (("mix_beta", start), ("mix_beta_end", end)):
        require(value is None or 0 <= value <= 1, f"algo.{name}", f"must lie in [0, 1], not {value}")
