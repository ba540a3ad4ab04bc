"""The policy as it was some steps ago, for methods that solve one game after another."""

from alignrun.models.policy import Policy
from alignrun.types import Role


def refresh_anchor(policy: Policy, step: int, refresh_every: int) -> None:
    """Make the policy its own anchor π_t where step 0 ≤ `step` is the first of an iteration."""
    if step % refresh_every == 0:
        policy.lerp_towards(Role.anchor, 1.0)
