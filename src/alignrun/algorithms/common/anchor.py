"""The anchor: a snapshot of the policy from some steps ago, for methods that solve a sequence of games."""

from collections.abc import Sequence
from itertools import pairwise

from alignrun.models.policy import Policy
from alignrun.types import Role


def refresh_anchor(policy: Policy, step: int, refresh_every: int, past: Sequence[Role] = ()) -> None:
    """Snapshot the policy as the anchor π_t if step 0 ≤ `step` is the first of an iteration.

    `past` are the roles of π_{t−1}, π_{t−2}, …: each takes over what the one before it held.
    """
    if step % refresh_every:
        return
    for newer, older in reversed(list(pairwise((Role.anchor, *past)))):
        policy.copy_snapshot(newer, older)
    policy.lerp_towards(Role.anchor, 1.0)
