"""Prompts, preference pairs and demonstrations: where they come from, how they are checked, encoded and batched."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alignrun.data.completions import end_of_turn, opened
    from alignrun.data.dataset import Dataset
    from alignrun.data.demonstrations import DemonstrationSet
    from alignrun.data.encoding import Encoding
    from alignrun.data.feedback import FeedbackEncoder, PreferenceEncoder, RewardEncoder
    from alignrun.data.files import read_rows
    from alignrun.data.loading import Loaded, load_examples
    from alignrun.data.padding import collate, padding_id
    from alignrun.data.pairs import EncodedPair, PairSet, check_labels, encode_policy_pair
    from alignrun.data.prompts import PromptSet
    from alignrun.data.records import parse_row
    from alignrun.data.rendering import Renderer, encode_prompt
    from alignrun.data.store import Examples

__all__ = [
    "Dataset",
    "DemonstrationSet",
    "EncodedPair",
    "Encoding",
    "Examples",
    "FeedbackEncoder",
    "Loaded",
    "PairSet",
    "PreferenceEncoder",
    "PromptSet",
    "Renderer",
    "RewardEncoder",
    "check_labels",
    "collate",
    "encode_policy_pair",
    "encode_prompt",
    "end_of_turn",
    "load_examples",
    "opened",
    "padding_id",
    "parse_row",
    "read_rows",
]

_MODULES = (
    "completions",
    "dataset",
    "demonstrations",
    "encoding",
    "feedback",
    "files",
    "loading",
    "padding",
    "pairs",
    "prompts",
    "records",
    "rendering",
    "store",
)


def __getattr__(name: str) -> Any:
    """A name of the package, from its module when it is first read: sources are found without torch."""
    if name in __all__:
        for module in (import_module(f"{__name__}.{module}") for module in _MODULES):
            if name in vars(module):
                return vars(module)[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
