"""A Hugging Face data set, its id in data.path."""

from collections.abc import Iterator
from pathlib import Path

from alignrun.config import DataConfig
from alignrun.data.files import checked_row
from alignrun.data.sources.base import Split, source
from alignrun.data.tables import is_saved
from alignrun.data.values import BadRowError, Row
from alignrun.errors import InputError, one_line


@source("hub", reads=("path", "subset", "split", "eval_split", "columns"), needs="path")
def read(config: DataConfig) -> Split:
    """The rows of one split, and of a second one that are held out."""
    return Split(_rows(config, config.split), None if config.eval_split is None else _rows(config, config.eval_split))


def _rows(config: DataConfig, split: str) -> Iterator[tuple[str, Row | BadRowError]]:
    import datasets  # here, since it takes seconds to import
    import httpx2
    import pyarrow  # type: ignore[import-untyped]

    # Errors of the hub, the network, the disk and the parsers, but not interrupts and out-of-memory errors.
    library = (datasets.exceptions.DatasetsError, httpx2.HTTPError, pyarrow.ArrowException)
    builtin = (OSError, ValueError, TypeError, LookupError, ImportError, RuntimeError)

    path = str(config.path)
    source = str(Path(path).expanduser()) if path.startswith("~") else path
    if is_saved(Path(source)):
        raise InputError(
            f"data: {path} is a folder of save_to_disk, which data=jsonl reads: data=jsonl data.path={path}"
        )
    index = -1
    try:
        # The library maps the split into memory and builds rows lazily.
        for index, row in enumerate(datasets.load_dataset(source, config.subset, split=split)):
            origin = f"{path}[{split}]:{index}"
            yield origin, checked_row(row, origin, config.max_row_mb)
    except (*library, *builtin) as error:
        raise InputError(
            f"data: cannot load split '{split}' of '{path}' ({one_line(error)}); "
            "check data.path, data.subset, the name of the split, and the network"
        ) from error
    if index < 0:
        raise InputError(f"data: split '{split}' of '{path}' holds no rows; name another split")
