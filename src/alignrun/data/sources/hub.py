"""A Hugging Face data set, its id in data.path."""

from collections.abc import Iterator
from pathlib import Path

from alignrun.config import DataConfig
from alignrun.data.files import checked_row
from alignrun.data.sources.base import Split, source
from alignrun.data.values import BadRowError, Row
from alignrun.errors import InputError, one_line


@source("hub", reads=("path", "subset", "split", "eval_split", "columns"), needs="path")
def read(config: DataConfig) -> Split:
    """The rows of one split, and of a second one that are held out."""
    return Split(_rows(config, config.split), None if config.eval_split is None else _rows(config, config.eval_split))


def _rows(config: DataConfig, split: str) -> Iterator[tuple[str, Row | BadRowError]]:
    from datasets import load_dataset  # here, since it takes seconds to import

    path = str(config.path)
    source = str(Path(path).expanduser()) if path.startswith("~") else path
    try:
        rows: list[Row] = list(load_dataset(source, config.subset, split=split))
    except Exception as error:  # the hub, the network, the disk and the parsers each raise kinds of their own
        raise InputError(
            f"data: cannot load split '{split}' of '{path}' ({one_line(error)}); "
            "check data.path, data.subset, the name of the split, and the network"
        ) from error
    if not rows:
        raise InputError(f"data: split '{split}' of '{path}' holds no rows; name another split")
    for index, row in enumerate(rows):
        origin = f"{path}[{split}]:{index}"
        yield origin, checked_row(row, origin, config.max_row_mb)
