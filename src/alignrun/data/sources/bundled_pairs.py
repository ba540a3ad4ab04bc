"""Pairs that come with alignrun, each with the reason why one is better: 100 to train on, 20 held out."""

from alignrun.config import DataConfig
from alignrun.data.files import read_rows
from alignrun.data.sources.base import Split, source
from alignrun.data.sources.bundled import FOLDER

EVERY = 6


@source("bundled_pairs")
def read(config: DataConfig) -> Split:
    """The rows of the package's own file; every sixth is held out, since rows of a kind stand together."""
    rows = list(read_rows(FOLDER / "pairs.jsonl"))
    return Split([row for place, row in enumerate(rows, 1) if place % EVERY], rows[EVERY - 1 :: EVERY])
