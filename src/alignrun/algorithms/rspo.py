"""RSPO: SPPO held near the reference by the reverse and the forward KL (Tang et al., arXiv 2503.00030)."""

from collections.abc import Sequence

from torch import Tensor

from alignrun.algorithms.base import algorithm
from alignrun.algorithms.common.online_pairs import Pairing
from alignrun.algorithms.sppo import SPPO, SPPOConfig
from alignrun.config import Config, require, schema
from alignrun.generation.streams import Stream
from alignrun.types import Role


@schema
class RSPOConfig(SPPOConfig):
    """The two penalties, and the samples that they are estimated on."""

    name: str = "rspo"
    kl_tau: float = 0.1
    """τ, the weight of the reverse KL(π‖μ) against a win rate in [0, 1]."""
    forward_kl_tau: float = 0.1
    """τ_f, the weight of the forward KL(μ‖π); with 0 no completions of μ are drawn."""
    reference_samples: int = 4
    """Completions of μ per prompt, for the forward KL."""
    step_eta: float = 3.0
    """η, 1/β of SPPO."""
    pairing: Pairing = Pairing.all
    """Learn from all samples, as the penalties' estimates need, or as in SPPO from the best and the worst."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("kl_tau", "forward_kl_tau"):
            require(getattr(self, name) >= 0, f"algo.{name}", f"must not be negative, not {getattr(self, name)}")
        require(self.reference_samples >= 1, "algo.reference_samples", "must be at least 1")


@algorithm("rspo", RSPOConfig)
class RSPO(SPPO):
    """(log π(y)/π_t(y) − η(P(y ≻ π_t) − ½))²/η + τ(log π(y)/μ(y))² − 2τ_f log π(y'),  y ~ π_t,  y' ~ μ.

    SPPO's loss plus λR(π, μ), here with R = 2τ KL(π‖μ) + 2τ_f KL(μ‖π), so that the fixed point is the equilibrium of
    P(π ≻ π') − τ KL(π‖μ) − τ_f KL(μ‖π): at τ_f = 0 π*_τ, and at τ = τ_f = 0 it is SPPO. With τ alone, a solved
    iteration is magnetic mirror descent, π^(1+ητ) ∝ π_t μ^(ητ) exp(ηP(y ≻ π_t)), but for SPPO's constant normaliser.

    Only the form of the loss, SPPO's plus a regulariser, could be sourced, not the paper's weights. It weighs samples
    of π_t by μ/π_t for the forward KL; this draws from μ, the same expectation without weights that grow with the
    length. `eval/kl_equilibrium` is the distance to π*_τ, which is the fixed point at τ_f = 0 only.
    """

    config: RSPOConfig

    @classmethod
    def streams(cls, config: Config, step: int) -> Sequence[Stream]:
        """SPPO's K completions of π_t and, for the forward KL, some of μ that are learned from."""
        own = super().streams(config, step)
        samples = config.algo.reference_samples
        return (*own, Stream(Role.reference, samples, learned=samples)) if config.algo.forward_kl_tau else own

    def penalty(self, log_ratio: Tensor, others: Tensor) -> Tensor | float:
        """The sum over N judged completions of τ(log π/μ)², and N times the mean of −2τ_f log π(y')."""
        reverse = self.config.kl_tau * log_ratio.square().sum()
        return reverse - 2 * self.config.forward_kl_tau * others.mean() * len(log_ratio) if len(others) else reverse
