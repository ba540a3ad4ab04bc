"""Where examples come from: the bundled prompts, a file, the Hugging Face hub, a game, or the configuration itself."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from alignrun.config import BadRows, ColumnsConfig, DataConfig, DataSource, TooLong
from alignrun.data.columns import unread_columns
from alignrun.data.files import checked_row, read_rows
from alignrun.data.game_pairs import game_pairs
from alignrun.data.overlap import overlap_notes
from alignrun.data.records import parse_row
from alignrun.data.values import BadRowError, LargeRowError, Row
from alignrun.errors import InputError, one_line
from alignrun.security.text import counted
from alignrun.types import Example

_BUNDLED = Path(__file__).parent / "bundled"

Rows = Iterable[tuple[str, Row | BadRowError]]


@dataclass(frozen=True, slots=True)
class Loaded:
    """The two sides of a data set, each in the order of the source."""

    train: list[Example]
    heldout: list[Example]
    skipped: int
    """Bad rows left out."""
    notes: tuple[str, ...] = ()
    """What a user should know about them, in lines."""


def load_examples(config: DataConfig) -> Loaded:
    """The examples to train on and the held-out ones.

    Held out are the rows of `eval_path` or `eval_split`; without one, a share `eval_fraction` of the rows, picked by
    a hash of the prompt, so that the choice depends on no seed and no order and equal prompts stay together. Inline
    prompts and the pairs of a game serve as both. `eval_size` keeps the first of them. Raises InputError for whatever
    cannot be loaded, and for a bad row unless those are skipped.
    """
    if config.source is DataSource.game:
        pairs = game_pairs(config)
        return Loaded(pairs, pairs[: config.eval_size], skipped=0)
    train_rows, heldout_rows = _rows(config)
    names: set[str] = set()
    train, skipped = _parse(train_rows, config, names)
    if config.source is DataSource.inline:
        return Loaded(train, train[: config.eval_size], skipped)
    if heldout_rows is None:
        train, heldout = _split(train, config)
    else:
        heldout, more = _parse(heldout_rows, config, names)
        skipped += more
    heldout = heldout[: config.eval_size]
    unread = unread_columns(names, config.columns)
    notes = [f"columns that are not read: {', '.join(unread)}"] if unread else []
    return Loaded(train, heldout, skipped, (*notes, *overlap_notes(train, heldout)))


def _rows(config: DataConfig) -> tuple[Rows, Rows | None]:
    """The rows to train on and the held-out ones, if the configuration names any; read as they are taken."""
    match config.source:
        case DataSource.bundled:
            return read_rows(_BUNDLED / "train.jsonl"), read_rows(_BUNDLED / "heldout.jsonl")
        case DataSource.jsonl:
            heldout = None if config.eval_path is None else _file_rows(config.eval_path, config)
            return _file_rows(str(config.path), config), heldout
        case DataSource.hub:
            heldout = None if config.eval_split is None else _hub_rows(config, config.eval_split)
            return _hub_rows(config, config.split), heldout
    prompts = enumerate(config.prompts)
    return ((f"data.prompts[{index}]", {"prompt": prompt}) for index, prompt in prompts), None


def _parse(rows: Rows, config: DataConfig, names: set[str]) -> tuple[list[Example], int]:
    """The examples of the rows, and how many rows were left out; the names of their columns are put into `names`."""
    # Only a source of the user's own has columns to name.
    named = config.source in (DataSource.jsonl, DataSource.hub)
    columns = config.columns if named else ColumnsConfig()
    examples: list[Example] = []
    bad: list[InputError] = []
    for origin, row in rows:
        try:
            if isinstance(row, BadRowError):
                raise row
            names.update(row)
            examples.append(parse_row(row, origin, columns))
        except LargeRowError as error:
            if config.too_long is TooLong.error:
                raise InputError(f"{error}; data.too_long=skip leaves such rows out") from error
            bad.append(error)
        except (InputError, RecursionError) as error:
            shown = error if isinstance(error, InputError) else InputError(f"data: {origin} is nested too deeply")
            if config.bad_rows is BadRows.error:
                raise InputError(f"{shown}; data.bad_rows=skip leaves such rows out") from error
            bad.append(shown)
    if not examples:
        first = str(bad[0]).removeprefix("data: ")
        raise InputError(f"data: none of the {counted(len(bad), 'row')} can be used; the first: {first}")
    return examples, len(bad)


def _file_rows(path: str, config: DataConfig) -> Rows:
    return read_rows(Path(path).expanduser(), config.max_row_mb)


def _hub_rows(config: DataConfig, split: str) -> Iterator[tuple[str, Row | BadRowError]]:
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
