"""Prompts, preference pairs and demonstrations: where they come from, how they are checked, encoded and batched."""

from alignrun.data.completions import end_of_turn, opened
from alignrun.data.dataset import Dataset
from alignrun.data.demonstrations import DemonstrationSet
from alignrun.data.encoding import Encoding
from alignrun.data.feedback import FeedbackEncoder, PreferenceEncoder, RewardEncoder
from alignrun.data.files import read_rows
from alignrun.data.padding import collate, padding_id
from alignrun.data.pairs import EncodedPair, PairSet, check_labels, encode_policy_pair
from alignrun.data.prompts import PromptSet
from alignrun.data.records import parse_row
from alignrun.data.rendering import Renderer, encode_prompt
from alignrun.data.sources import Loaded, load_examples
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
