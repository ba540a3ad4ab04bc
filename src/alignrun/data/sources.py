"""Where examples come from: the bundled prompts, a file, the Hugging Face hub, or the configuration itself."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from alignrun.config import ColumnsConfig, DataConfig, DataSource
from alignrun.data.records import Row, parse_row, read_rows
from alignrun.errors import InputError, one_line
from alignrun.types import Example

_BUNDLED = Path(__file__).parent / "bundled"


def load_examples(config: DataConfig) -> tuple[list[Example], list[Example]]:
    """The examples to train on and the held-out ones, each in the order of the source.

    Held out are the rows of `eval_path` or `eval_split`; without one, a share `eval_fraction` of the rows, picked by
    a hash of the prompt, so that the choice depends on no seed and no order and equal prompts stay together. Inline
    prompts serve as both. `eval_size` keeps the first of them. Raises InputError for whatever cannot be loaded.
    """
    heldout: list[Example] | None = None
    match config.source:
        case DataSource.bundled:
            train = _parse(read_rows(_BUNDLED / "train.jsonl"), ColumnsConfig())
            heldout = _parse(read_rows(_BUNDLED / "heldout.jsonl"), ColumnsConfig())
        case DataSource.jsonl:
            train = _from_file(str(config.path), config.columns)
            if config.eval_path is not None:
                heldout = _from_file(config.eval_path, config.columns)
        case DataSource.hub:
            train = _from_hub(config, config.split)
            if config.eval_split is not None:
                heldout = _from_hub(config, config.eval_split)
        case DataSource.inline:
            rows = ((f"data.prompts[{index}]", {"prompt": prompt}) for index, prompt in enumerate(config.prompts))
            heldout = train = _parse(rows, ColumnsConfig())
    if heldout is None:
        train, heldout = _split(train, config)
    return train, heldout[: config.eval_size]


def _parse(rows: Iterable[tuple[str, Row]], columns: ColumnsConfig) -> list[Example]:
    return [parse_row(row, origin, columns) for origin, row in rows]


def _from_file(path: str, columns: ColumnsConfig) -> list[Example]:
    return _parse(read_rows(Path(path).expanduser()), columns)


def _from_hub(config: DataConfig, split: str) -> list[Example]:
    from datasets import load_dataset  # here, since it takes seconds to import

    path = str(config.path)
    try:
        rows: list[Row] = list(load_dataset(path, config.subset, split=split))
    except Exception as error:  # the hub, the network, the disk and the parsers each raise kinds of their own
        raise InputError(
            f"data: cannot load split '{split}' of '{path}' ({one_line(error)}); "
            "check data.path, data.subset, the name of the split, and the network"
        ) from error
    if not rows:
        raise InputError(f"data: split '{split}' of '{path}' holds no rows; name another split")
    return _parse(((f"{path}[{split}]:{index}", row) for index, row in enumerate(rows)), config.columns)


def _split(examples: list[Example], config: DataConfig) -> tuple[list[Example], list[Example]]:
    sides: tuple[list[Example], list[Example]] = ([], [])
    for example in examples:
        sides[_position(example.text) < config.eval_fraction].append(example)
    if not all(sides):
        which = "train on" if not sides[0] else "hold out"
        named = "data.eval_split" if config.source is DataSource.hub else "data.eval_path"
        raise InputError(
            f"data: {config.path} leaves no row to {which} (rows: {len(examples)}, data.eval_fraction: "
            f"{config.eval_fraction}); add rows, change the fraction, or name held-out rows with {named}=..."
        )
    return sides


def _position(text: str) -> float:
    """A number in [0, 1) that is fixed by the text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6]) / 2**48
