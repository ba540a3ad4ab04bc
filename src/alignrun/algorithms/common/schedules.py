"""Schedules other than the learning rate, and checks of the iteration settings."""

from alignrun.config import require


def mix_beta_at(step: int, steps: int, start: float, end: float | None) -> float:
    """The mixture's β at step 0 ≤ `step` < `steps`: constant, or linear from `start` to `end` at the last step.

    It depends only on the step and the number of steps, so a resumed run continues the same schedule unless it is given
    more steps. With a single step, it is `start`.
    """
    if end is None:
        return start
    share = step / max(1, steps - 1)
    return (1 - share) * start + share * end


def check_mixture(start: float, end: float | None) -> None:
    """Refuse a β outside [0, 1]. Raises InputError."""
    for name, value in (("mix_beta", start), ("mix_beta_end", end)):
        require(value is None or 0 <= value <= 1, f"algo.{name}", f"must lie in [0, 1], not {value}")


def check_refresh(refresh_every: int) -> None:
    """Require at least one step per iteration. Raises InputError."""
    require(refresh_every >= 1, "algo.refresh_every", f"must be at least 1, not {refresh_every}")


def check_games(anchor_tau: float, refresh_every: int) -> None:
    """Require a penalty and a length of every game of a sequence. Raises InputError."""
    require(anchor_tau > 0, "algo.anchor_tau", f"must be positive, not {anchor_tau}")
    check_refresh(refresh_every)


def check_opponents(opponents: int | None) -> None:
    """Require at least one opponent of a completion. Raises InputError."""
    require(opponents is None or opponents >= 1, "algo.opponents_per_sample", f"must be at least 1, not {opponents}")


def check_minibatches(epochs: int, parts: int) -> None:
    """Require at least one epoch and one minibatch. Raises InputError."""
    require(epochs >= 1, "algo.epochs", f"must be at least 1, not {epochs}")
    require(parts >= 1, "algo.minibatches", f"must be at least 1, not {parts}")
