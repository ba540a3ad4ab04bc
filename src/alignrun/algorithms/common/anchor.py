"""The policy as it was some steps ago, for methods that solve one game after another."""

from collections.abc import Mapping

from torch import Tensor

from alignrun.config import require
from alignrun.models.policy import Policy, Role


class Anchor:
    """π_t, a frozen copy of the policy that is renewed every so many optimiser steps, under `Role.anchor`."""

    def __init__(self, policy: Policy, refresh_every: int) -> None:
        self._policy, self._refresh_every = policy, refresh_every
        policy.snapshot(Role.anchor)

    def refresh(self, step: int) -> None:
        """Make the policy its own anchor where step 0 ≤ `step` is the first of an iteration."""
        if step % self._refresh_every == 0:
            self._policy.lerp_towards(Role.anchor, 1.0)

    def state(self) -> Mapping[str, Tensor]:
        """The anchor's weights, for checkpoints."""
        return self._policy.snapshot_weights(Role.anchor)


def check_refresh(refresh_every: int) -> None:
    """Refuse an iteration without steps. Raises InputError."""
    require(refresh_every >= 1, "algo.refresh_every", f"must be at least 1, not {refresh_every}")
