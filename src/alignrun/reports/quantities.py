"""The titles, number formats and order of metrics on a page."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from alignrun.evaluation.results import Estimate
from alignrun.reports.text import Form, number, rate

POLICY = "policy/"
"""The prefix of the logged probabilities of a game's actions."""


@dataclass(frozen=True, slots=True)
class Quantity:
    """A metric as shown to a reader."""

    label: str
    form: Form = number
    curve: str = ""
    """The title of its curve if training and evaluations measure different things."""
    note: str = ""
    """An explanation of the difference."""
    even: float | None = None
    """The value without a difference: a line across its curve."""
    smooth: bool = True
    """Whether its training values are noisy, so that a running mean is drawn over them."""

    @property
    def title(self) -> str:
        """The title of its curve."""
        return self.curve or self.label


QUANTITIES = {
    "win_rate": Quantity(
        "win rate against the reference",
        rate,
        "win rate",
        "Training: against the algorithm's opponent. Evaluations: against the reference.",
        even=0.5,
    ),
    "accuracy": Quantity("held-out accuracy", rate, "accuracy", even=0.5),
    "length_accuracy": Quantity("accuracy of choosing the longer", rate),
    "over_length": Quantity("accuracy above the longer", rate),
    "loss": Quantity("loss"),
    "kl": Quantity("KL(policy ‖ reference), nats"),
    "exploitability": Quantity("exploitability", rate),
    "duality_gap": Quantity("duality gap"),
    "kl_equilibrium": Quantity("KL(equilibrium ‖ policy), nats"),
    "opponent/gain": Quantity("gain against the opponent", rate, even=0.0),
    "opponent/win_rate": Quantity("win rate against the opponent", rate, even=0.5),
    "perplexity": Quantity("perplexity"),
    "rewards/margin": Quantity("reward margin"),
    "margin": Quantity("reward margin"),
    "entropy": Quantity("entropy, nats a token"),
    "length": Quantity("length, tokens a completion"),
    "reference_length": Quantity("length of the reference, tokens"),
    "eos_rate": Quantity("completions that end by themselves", rate),
    "grad_norm": Quantity("gradient norm"),
    "learning_rate": Quantity("learning rate", smooth=False),
    "ece": Quantity("expected calibration error", rate),
    "brier": Quantity("Brier score", rate),
    "log_loss": Quantity("log loss, nats"),
    "label_entropy": Quantity("entropy of the labels, nats"),
    "human_agreement": Quantity("agreement of an annotator with the others", rate),
    "agreement_with_majority": Quantity("agreement with the majority", rate),
    "intransitive": Quantity("intransitive triples", rate),
    "intransitive_high": Quantity("intransitive triples, upper end", rate),
}
DISTANCES = {
    "kl_equilibrium": "is {} nats from the equilibrium of its game, KL(equilibrium ‖ policy)",
    "duality_gap": "leaves a duality gap of {}, which is 0 at the equilibrium",
    "exploitability": "can be exploited by {}, which is 0 at an equilibrium",
}
"""Distances from the equilibrium of a game, the most direct first, and their sentences."""
OVER_PROMPTS = dict.fromkeys(("accuracy", "length_accuracy", "over_length"), "decided_prompts")
"""The metric with the number of prompts of another's interval, if it is not `prompts`."""
ORDER = {name: place for place, name in enumerate(QUANTITIES)}


def quantity(name: str) -> Quantity:
    """The quantity of a metric; an unknown metric keeps its name."""
    if name.startswith(POLICY):
        return Quantity(f"probability of {name.removeprefix(POLICY)}", rate)
    return QUANTITIES.get(name) or Quantity(name.replace("_", " "))


def in_order(names: Mapping[str, object]) -> list[str]:
    """The known metrics first, in their order, then the others in the given order."""
    return sorted(names, key=lambda name: ORDER.get(name, len(ORDER)))


def with_intervals(metrics: Mapping[str, float]) -> dict[str, Estimate]:
    """`name`, `name_low` and `name_high` as one estimate; a number without them as one without an interval."""
    return {name: estimate(name, metrics) for name in metrics if not _is_end(name, metrics)}


def estimate(name: str, metrics: Mapping[str, float]) -> Estimate:
    """A metric with its interval, and its number of prompts if the other metrics have it."""
    value = metrics[name]
    low, high = (metrics.get(f"{name}_{end}", value) for end in ("low", "high"))
    prompts = metrics.get(OVER_PROMPTS.get(name, "prompts"), math.nan) if f"{name}_low" in metrics else math.nan
    return Estimate(value, low, high, int(prompts) if math.isfinite(prompts) else None)


def _is_end(name: str, metrics: Mapping[str, float]) -> bool:
    """Whether a metric is an end of another's interval."""
    base = name.removesuffix("_low").removesuffix("_high")
    return base != name and f"{base}_low" in metrics and base in metrics
