"""How far a rollout server's policy q is from the trained π, and the weights that correct policy gradients for it.

Both have the same weights; kernels, batches and dtypes differ. Without a server q is π, and there is nothing to see.

Legend: N completions, T tokens.
"""

import torch
from torch import Tensor

from alignrun import distributed
from alignrun.config import Config, Engine, ServerKind
from alignrun.errors import RunError
from alignrun.generation.server.dialect import SGLANG, VLLM
from alignrun.objectives.divergence import kl_k1, kl_k3
from alignrun.objectives.importance import sequence_weights, token_weights
from alignrun.types import Completions

KL = "mismatch_kl"
"""The metric that `generation.server_max_kl` limits."""


def log_ratio(completions: Completions, log_probs: Tensor) -> Tensor | None:
    """[N, T] log π/q of every token, 0 on padding, from log π [N, T]; None if no server drew the completions."""
    if completions.drawn_with is None:
        return None
    return torch.where(completions.mask, log_probs.detach() - completions.drawn_with, 0.0)


def mismatch_metrics(completions: Completions, log_probs: Tensor) -> dict[str, Tensor]:
    """Sums over the N completions of KL(q‖π) in nats per token, estimated with k3 and k1; {} without a server."""
    ratio = log_ratio(completions, log_probs)
    if ratio is None:
        return {}
    lengths = completions.mask.sum(1).clamp(min=1)
    # The samples are of q, so that Δ = log q/π.
    return {KL: (kl_k3(-ratio).sum(1) / lengths).sum(), f"{KL}_k1": (kl_k1(-ratio).sum(1) / lengths).sum()}


def check_mismatch(config: Config, kl: float, what: str = "the completions") -> None:
    """Raise RunError, on all processes, if KL(q‖π) in nats per token is above what the configuration allows."""
    limit = config.generation.server_max_kl
    if limit is None or kl <= limit:
        return
    kind = config.generation.server_kind
    known = {ServerKind.vllm: [VLLM], ServerKind.sglang: [SGLANG]}.get(kind, [VLLM, SGLANG])
    with distributed.raise_together():
        raise RunError(
            f"generation.engine=server: {what} are not of the trained policy: KL(server‖policy) is {kl:.3g} nats per "
            f"token, above generation.server_max_kl={limit:g}: serve the base that is trained, in its dtype, and "
            f"{', or '.join(dialect.log_probs for dialect in known)}; then `alignrun resume RUN`, with a higher limit "
            "if you expect it"
        )


class Correction:
    """The weights π/q of a run's policy gradients, and the largest ratio that they have seen."""

    def __init__(self, config: Config) -> None:
        self._cap = config.generation.server_weight_cap
        self._served = config.generation.engine is Engine.server
        self._largest: Tensor | None = None

    def by_sequence(self, completions: Completions, log_probs: Tensor) -> Tensor | float:
        """[N, 1] the truncated weight of each completion, from log π [N, T]; 1 without a server or a cap."""
        ratio = self._watch(completions, log_probs)
        if ratio is None or self._cap is None:
            return 1.0
        return sequence_weights(ratio, completions.mask, self._cap)[:, None]

    def by_token(self, completions: Completions, log_probs: Tensor) -> Tensor | float:
        """[N, T] the truncated weight of each token, from log π [N, T]; 1 without a server or a cap."""
        ratio = self._watch(completions, log_probs)
        if ratio is None or self._cap is None:
            return 1.0
        return token_weights(ratio, completions.mask, self._cap)

    def drain(self) -> dict[str, float]:
        """The largest π/q of a token since the last call, over all processes; {} where nothing was corrected."""
        if not self._served:
            return {}
        largest, self._largest = 0.0 if self._largest is None else self._largest.item(), None
        largest = distributed.largest(largest)  # a process may have had no rows
        return {"mismatch_largest": largest} if largest else {}

    def _watch(self, completions: Completions, log_probs: Tensor) -> Tensor | None:
        ratio = log_ratio(completions, log_probs)
        if ratio is not None:
            most = ratio.max().exp()
            self._largest = most if self._largest is None else torch.maximum(self._largest, most)
        return ratio
