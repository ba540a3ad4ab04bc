"""The anchor: a snapshot of the policy from some steps ago, for methods that solve a sequence of games."""

from alignrun.models.policy import Policy
from alignrun.types import Role


def refresh_anchor(policy: Policy, step: int, refresh_every: int) -> None:
    """Snapshot the policy as the anchor π_t if step 0 ≤ `step` is the first of an iteration."""
    if step % refresh_every == 0:
        policy.lerp_towards(Role.anchor, 1.0)
