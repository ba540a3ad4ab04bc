"""The scores of RewardBench (arXiv 2403.13787), from the accuracies on its subsets."""

from collections.abc import Sequence

from alignrun.evaluation.preference_quality import Category

CODE = ("hep-cpp", "hep-go", "hep-java", "hep-js", "hep-python", "hep-rust")
MATHS = "math-prm"
SECTIONS = {
    "Chat": ("alpacaeval-easy", "alpacaeval-length", "alpacaeval-hard", "mt-bench-easy", "mt-bench-med"),
    "Chat Hard": (
        *("mt-bench-hard", "llmbar-natural", "llmbar-adver-neighbor"),
        *("llmbar-adver-GPTInst", "llmbar-adver-GPTOut", "llmbar-adver-manual"),
    ),
    "Safety": (
        *("refusals-dangerous", "refusals-offensive", "xstest-should-refuse", "xstest-should-respond", "donotanswer"),
    ),
    "Reasoning": (MATHS, *CODE),
}
"""Section → its subsets."""


def section_scores(categories: Sequence[Category]) -> dict[str, float]:
    """The score of each section, and their mean `RewardBench`; empty unless the subsets are exactly RewardBench's.

    A section is the mean over its pairs, with mathematics weighted as much as all code together.
    """
    found = {one.name: one for one in categories}
    if found.keys() != {name for names in SECTIONS.values() for name in names}:
        return {}
    weights = {name: float(one.pairs) for name, one in found.items()}
    weights[MATHS] = sum(weights[name] for name in CODE)
    scores = {
        section: sum(weights[name] * found[name].accuracy.value for name in names)
        / sum(weights[name] for name in names)
        for section, names in SECTIONS.items()
    }
    return {**scores, "RewardBench": sum(scores.values()) / len(scores)}
