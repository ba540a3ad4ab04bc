"""Distortion: with users who disagree, the best Bradley-Terry reward may point away from what serves them.

User i has utilities u_i in [0, 1] and prefers y to y' with probability σ(β(u_i(y) − u_i(y'))). Distortion is the
largest mean utility within reach, divided by that of the learned policy. arXiv 2505.23749 proves that RLHF's can be
e^Ω(β), depending on which pairs were compared, while Nash learning's grows linearly in β at most.

The instance is ours. The policy chooses between a and b; the annotators compared each of them with the answer c of a
better model, as is usual. c has utility 1 and b ½ for everyone; a has 1 for a share q = 4e^{−β/2} of the users and 0
for the others. Against c, a wins with about q/2 = 2e^{−β/2} and b with about e^{−β/2}: the reward of a is larger. Yet
the mean utility of a is q, exponentially small, and nearly everyone prefers b to a.
"""

import math
from collections.abc import Sequence

from reproductions import Experiment, Result


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def _preference(sharpness: float, users: Sequence[tuple[float, dict[str, float]]], first: str, second: str) -> float:
    return sum(share * _sigmoid(sharpness * (utility[first] - utility[second])) for share, utility in users)


def policies(sharpness: float) -> tuple[float, float, float]:
    """The mean utility of the best answer within reach, of RLHF's without a KL penalty, and of the equilibrium.

    Args:
        sharpness: β, above 4 log 2 so that q < 1.
    """
    q = 4 * math.exp(-sharpness / 2)
    users = [(q, {"a": 1.0, "b": 0.5, "c": 1.0}), (1 - q, {"a": 0.0, "b": 0.5, "c": 1.0})]
    mean = {answer: sum(share * utility[answer] for share, utility in users) for answer in "ab"}
    # Each answer was compared with c alone, so the fit is exact: r(y) − r(c) = logit P(y ≻ c).
    odds = {answer: _preference(sharpness, users, answer, "c") for answer in "ab"}
    rlhf = max("ab", key=lambda answer: odds[answer] / (1 - odds[answer]))
    nash = "a" if _preference(sharpness, users, "a", "b") > 0.5 else "b"
    return max(mean.values()), mean[rlhf], mean[nash]


def distortion() -> Result:
    """Distortion for growing β."""
    findings = []
    for sharpness in (8.0, 12.0, 16.0, 20.0, 24.0):
        best, rlhf, nash = policies(sharpness)
        findings.append(f"β = {sharpness:.0f}: RLHF {best / rlhf:.4g}, Nash {best / nash:.4g}.")
    return Result(findings=findings)


EXPERIMENTS = (Experiment("distortion", "Distortion of RLHF and of Nash learning", "arXiv 2505.23749", distortion),)
