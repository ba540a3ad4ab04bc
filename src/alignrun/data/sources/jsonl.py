"""A .jsonl, .json, .csv or .tsv file, each also .gz, a .parquet file or a folder of save_to_disk in data.path."""

from pathlib import Path

from alignrun.config import DataConfig
from alignrun.data.files import read_rows
from alignrun.data.sources.base import Rows, Split, source


@source("jsonl", reads=("path", "eval_path", "columns"), needs="path")
def read(config: DataConfig) -> Split:
    """The rows of one file, and of a second one that are held out."""

    def rows(path: str) -> Rows:
        return read_rows(Path(path).expanduser(), config.max_row_mb)

    return Split(rows(str(config.path)), None if config.eval_path is None else rows(config.eval_path))
