"""Prompts that come with alignrun: 256 to train on, 96 held out."""

from pathlib import Path

from alignrun.config import DataConfig
from alignrun.data.files import read_rows
from alignrun.data.sources.base import Split, source

FOLDER = Path(__file__).parents[1] / "bundled"


@source("bundled")
def read(config: DataConfig) -> Split:
    """The rows of the package's own files."""
    return Split(read_rows(FOLDER / "train.jsonl"), read_rows(FOLDER / "heldout.jsonl"))
