"""How good a preference is: as sentences, as rows for the terminal and the page, and as a page."""

import base64
from collections.abc import Iterator
from dataclasses import dataclass

from alignrun.evaluation.calibration import Reliability
from alignrun.evaluation.plots import as_svg, reliability_plot
from alignrun.evaluation.preference_quality import Category, Quality
from alignrun.evaluation.results import Estimate
from alignrun.evaluation.settled import caution, verdict
from alignrun.reports.page import render
from alignrun.reports.text import Shown, rate, shown
from alignrun.security.text import counted


@dataclass(frozen=True, slots=True)
class PreferenceResult:
    """The contents of `preference.json`, which the page shows."""

    preference: str
    data: str
    quality: Quality
    category: str | None
    """The column with the categories."""
    sections: dict[str, float]
    """The scores of RewardBench; empty on other data."""
    left_out: int
    """Pairs that the preference could not judge."""
    notes: tuple[str, ...]
    confidence: float
    command: str
    config: str
    versions: dict[str, str | None]


def accuracy_headline(result: PreferenceResult) -> Iterator[str]:
    """The accuracy in a sentence, compared with choosing the longer answer."""
    quality = result.quality
    sure = f"{result.confidence:.0%} interval {rate(quality.accuracy.low)} to {rate(quality.accuracy.high)}"
    over = f"{counted(quality.decided, 'pair')} of {counted(quality.prompts, 'prompt')}"
    yield f"Accuracy {rate(quality.accuracy.value)} ({sure}; {over})."
    if unsettled := caution(quality.prompts):
        yield f"{unsettled.capitalize()}."
    else:
        than = {1: "Better than chance", 0: "Not distinguishable from chance", -1: "Worse than chance"}
        yield f"{than[verdict(quality.accuracy)]}; the longer answer is right in {rate(quality.longer_accuracy.value)}."


def measure_rows(result: PreferenceResult) -> list[tuple[str, Shown]]:
    """Every measure by name, in the order of a table."""
    quality = result.quality
    found: list[tuple[str, Estimate | float | None]] = [
        ("accuracy", quality.accuracy),
        ("accuracy of always the longer answer", quality.longer_accuracy),
        ("undecided (P = ½)", quality.ties / quality.decided),
    ]
    if quality.macro_accuracy is not None:
        found.append((f"accuracy, mean over {result.category}", quality.macro_accuracy))
    found += list(result.sections.items())
    if (position := quality.position) is not None:
        found += [
            ("accuracy, better answer shown first", position.chosen_first),
            ("accuracy, better answer shown second", position.chosen_second),
            ("P(the answer shown first wins)", position.first_wins),
            ("same winner in both orders", position.consistent),
        ]
    if (length := quality.length) is not None:
        found += [
            ("prefers the longer answer", length.preferred),
            ("people prefer the longer answer", length.right),
            ("accuracy where the longer is better", length.where_right),
            ("accuracy where the shorter is better", length.where_wrong),
        ]
    calibration = quality.calibration
    found += [
        ("expected calibration error", calibration.ece),
        ("log loss, nats", calibration.log_loss),
        ("entropy of the labels, nats", calibration.label_entropy),
        ("Brier score", calibration.brier),
    ]
    names = {
        "human_agreement": "an annotator agrees with the others",
        "agreement_with_majority": "the preference agrees with the others",
        "preference_correlation": "ρ of P and the share of votes",
        "certainty_correlation": "ρ of certainty and agreement",
    }
    found += [(words, quality.agreement[name]) for name, words in names.items() if name in quality.agreement]
    if (circles := quality.intransitivity) is not None:
        share = Estimate(circles.share, circles.low, circles.high)
        found.append((f"intransitive, of {counted(circles.triples, 'triple')}", share))
    return [(name, shown(value, rate)) for name, value in found]


def category_rows(categories: tuple[Category, ...]) -> list[tuple[str, Shown, Shown]]:
    """Name, pairs and accuracy of each."""
    return [(one.name, Shown(f"{one.pairs:,}"), shown(one.accuracy, rate)) for one in categories]


def preference_page(result: PreferenceResult, diagram: Reliability) -> str:
    """The HTML of the report."""
    figure = as_svg(reliability_plot(diagram, f"{result.preference} on {result.data}"))
    return render(
        "preference.html",
        title="How good is this preference?",
        result=result,
        headline=list(accuracy_headline(result)),
        rows=measure_rows(result),
        categories=category_rows(result.quality.categories),
        confidence=f"{result.confidence:.0%}",
        figure=f"data:image/svg+xml;base64,{base64.b64encode(figure.encode()).decode()}",
    )
