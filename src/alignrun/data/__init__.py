"""Prompts and preference pairs: where they come from, how they are checked, encoded and batched."""

from alignrun.data.prompts import PromptSet
from alignrun.data.records import parse_row, read_rows
from alignrun.data.sources import load_examples
from alignrun.data.templates import encode_prompt

__all__ = ["PromptSet", "encode_prompt", "load_examples", "parse_row", "read_rows"]
