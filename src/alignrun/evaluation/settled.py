"""Whether a difference is significant: decides what is marked, coloured or claimed in a sentence."""

from alignrun.evaluation.results import Estimate
from alignrun.security.text import counted

FEWEST_PROMPTS = 8
"""Below this many prompts no difference is settled: the bootstrap interval of a few values is far too narrow."""
ROUNDING = 1e-9
"""Values closer to the border than this count as equal to it."""


def too_few(prompts: int | None) -> bool:
    """Whether there are too few prompts to settle a difference; None means an exact value."""
    return prompts is not None and prompts < FEWEST_PROMPTS


def verdict(found: Estimate, border: float = 0.5) -> int:
    """1 if the interval lies above the border, −1 if it lies below, 0 if nothing is settled."""
    if too_few(found.prompts):
        return 0
    return int(found.low > border + ROUNDING) - int(found.high < border - ROUNDING)


def caution(prompts: int | None) -> str:
    """A clause that so few prompts settle nothing; empty if there are enough."""
    return f"fewer than {FEWEST_PROMPTS} prompts settle no difference" if too_few(prompts) else ""


def undecided(found: Estimate, other: str, border: float = 0.5) -> str:
    """A caveat for a value whose interval contains the border; empty if the difference is settled.

    Args:
        found: the value.
        other: what the border stands for, such as `the reference` for a win rate of ½.
        border: the value that means no difference.
    """
    return "" if verdict(found, border) else caution(found.prompts) or f"is indistinguishable from {other}"


def in_words(found: Estimate, confidence: float, other: str = "") -> str:
    """`0.612  (95% interval 0.540 to 0.671, 40 held-out prompts)`, with a caveat if it is not settled.

    With `other`, the value is a win rate against it, and an interval that contains ½ settles nothing.
    """
    if found.prompts is None:
        return f"{found.value:.3f}"
    ends = f"{found.low:.3f} to {found.high:.3f}"
    interval = f"{confidence:.0%} interval {ends}" if found.high > found.low else "no interval"
    warned = undecided(found, other) if other else caution(found.prompts)
    return f"{found.value:.3f}  ({interval}, {counted(found.prompts, 'held-out prompt')}{warned and ': '}{warned})"


def metrics_of(name: str, found: Estimate) -> dict[str, float]:
    """The value as `name`, and the ends of its interval, if any, as `name_low` and `name_high`."""
    ends = {f"{name}_low": found.low, f"{name}_high": found.high} if found.high > found.low else {}
    return {name: found.value, **ends}
