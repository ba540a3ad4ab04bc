"""Data sets of preference pairs that are recognised by the names of their columns."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from types import MappingProxyType
from typing import Any

from alignrun.config import ColumnsConfig, DataConfig
from alignrun.data.sources import chosen_source
from alignrun.data.values import BadRowError
from alignrun.types import Example

CATEGORIES = ("subset", "category", "source", "motivation_app", "task", "domain")
"""Columns with the categories of pairs, the most likely first."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The columns of a known data set."""

    name: str
    needs: frozenset[str]
    """The columns by which it is recognised."""
    columns: Mapping[str, Any]
    """The `data.columns` settings that read it."""


SHAPES = (
    Shape(  # github.com/ScalerLab/JudgeBench
        "JudgeBench",
        frozenset(["question", "response_A", "response_B", "label"]),
        MappingProxyType(
            {
                "prompt": "question",
                "chosen": "response_A",
                "rejected": "response_B",
                "votes": ["label"],
                "vote_chosen": "A>B",
                "vote_rejected": "B>A",
                "vote_tie": "A=B",
            }
        ),
    ),
    Shape(  # github.com/WeOpenML/PandaLM
        "PandaLM",
        frozenset(["instruction", "input", "response1", "response2", "annotator1", "annotator2", "annotator3"]),
        MappingProxyType(
            {
                "prompt": "instruction",
                "input": "input",
                "chosen": "response1",
                "rejected": "response2",
                "votes": ["annotator1", "annotator2", "annotator3"],
            }
        ),
    ),
)
"""RewardBench needs none: its columns are `prompt`, `chosen` and `rejected`."""


def recognised(config: DataConfig) -> tuple[DataConfig, str]:
    """The configuration with the columns of the shape that matches its first row, and the shape's name.

    It is unchanged, with an empty name, if columns are configured or the first readable row matches no
    shape.
    """
    if config.columns != ColumnsConfig():
        return config, ""
    rows = chosen_source(config).read(config)
    readable = (row for _, row in chain(rows.train, rows.heldout or ()) if not isinstance(row, BadRowError))
    first = next(readable, None)
    if first is None or isinstance(first, Example):
        return config, ""
    shape = next((shape for shape in SHAPES if shape.needs <= first.keys()), None)
    if shape is None or {"prompt", "chosen", "rejected"} <= first.keys():
        return config, ""
    return replace(config, columns=replace(config.columns, **shape.columns)), shape.name


def category_column(names: Collection[str]) -> str | None:
    """The column with the categories of pairs; None if there is none."""
    return next((name for name in CATEGORIES if name in names), None)
