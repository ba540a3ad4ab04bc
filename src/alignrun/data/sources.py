"""Where examples come from: the bundled prompts, a file, the Hugging Face hub, a game, or the configuration itself."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from alignrun.config import BadRows, ColumnsConfig, DataConfig, DataSource, TooLong
from alignrun.data.columns import unread_columns
from alignrun.data.files import checked_row, read_rows
from alignrun.data.game_pairs import game_pairs
from alignrun.data.overlap import Seen
from alignrun.data.plain import row_reader
from alignrun.data.store import Examples, Record
from alignrun.data.values import BadRowError, LargeRowError, Row
from alignrun.errors import InputError, one_line
from alignrun.security.text import counted
from alignrun.types import prompt_text

_BUNDLED = Path(__file__).parent / "bundled"
_NAMED = 12

Rows = Iterable[tuple[str, Row | BadRowError]]


@dataclass(frozen=True, slots=True)
class Loaded:
    """The two sides of a data set, each in the order of the source."""

    train: Examples
    heldout: Examples
    skipped: int
    """Bad rows left out."""
    notes: tuple[str, ...] = ()
    """What a user should know about them, in lines."""


def load_examples(config: DataConfig) -> Loaded:
    """The examples to train on and the held-out ones.

    Held out are the rows of `eval_path` or `eval_split`; without one, a share `eval_fraction` of the rows, picked by
    a hash of the prompt, so that the choice depends on no seed and no order and equal prompts stay together. Inline
    prompts and the pairs of a game serve as both. `eval_size` keeps the first of them. Each row is read once, and
    checked. Raises InputError for whatever cannot be loaded, and for a bad row unless those are skipped.
    """
    if config.source is DataSource.game:
        pairs = game_pairs(config)
        heldout = Examples(pairs[: config.eval_size])
        return Loaded(Examples(pairs), heldout, 0, _left_over(len(pairs), len(heldout)))
    train_rows, heldout_rows = _rows(config)
    reading, seen = _Reading(config), Seen()
    train, heldout = Examples(), Examples()
    held = 0
    share = config.eval_fraction if heldout_rows is None and config.source is not DataSource.inline else 0.0

    def hold_out(record: Record) -> None:
        nonlocal held
        held += 1
        if config.eval_size is None or held <= config.eval_size:
            heldout.add(record)

    for record in reading.records(train_rows):
        text = prompt_text(record[0])
        if share and _position(text) < share:
            hold_out(record)
        else:
            train.add(record)
            seen.add(text)
    if config.source is DataSource.inline:
        heldout = Examples(train[: config.eval_size])
        return Loaded(train, heldout, reading.skipped, _left_over(len(train), len(heldout)))
    for record in reading.records(heldout_rows or ()):
        hold_out(record)
    if not train or not heldout:
        raise _one_sided(config, len(train) + held, "hold out" if train else "train on")
    notes = [*_unread(reading.names, config.columns), *_left_over(held, len(heldout)), *seen.notes(heldout)]
    return Loaded(train, heldout, reading.skipped, tuple(notes))


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


@dataclass(slots=True)
class _Reading:
    """Checks rows, and remembers what a user should know about all of them."""

    config: DataConfig
    skipped: int = 0
    names: set[str] = field(default_factory=set)
    """The columns that rows had."""

    def records(self, rows: Rows) -> Iterator[Record]:
        """The examples of the rows. Raises InputError for a bad row unless those are skipped, and if none is left."""
        # Only a source of the user's own has columns to name.
        named = self.config.source in (DataSource.jsonl, DataSource.hub)
        read = row_reader(self.config.columns if named else ColumnsConfig())
        good, first_bad = False, ""
        for origin, row in rows:
            try:
                if isinstance(row, BadRowError):
                    raise row
                self.names.update(row)
                record = read(row, origin)
            except (InputError, RecursionError) as error:
                bad = self._leave_out(error, origin)
                first_bad = first_bad or bad
            else:
                good = True
                yield record
        if first_bad and not good:
            raise InputError(f"data: none of the {counted(self.skipped, 'row')} can be used; the first: {first_bad}")

    def _leave_out(self, error: InputError | RecursionError, origin: str) -> str:
        """What is wrong with a row. Raises InputError unless such rows are skipped."""
        shown = str(error) if isinstance(error, InputError) else f"data: {origin} is nested too deeply"
        large = isinstance(error, LargeRowError)
        if self.config.too_long is TooLong.error if large else self.config.bad_rows is BadRows.error:
            key = "too_long" if large else "bad_rows"
            raise InputError(f"{shown}; data.{key}=skip leaves such rows out") from error
        self.skipped += 1
        return shown.removeprefix("data: ")


def _file_rows(path: str, config: DataConfig) -> Rows:
    return read_rows(Path(path).expanduser(), config.max_row_mb)


def _hub_rows(config: DataConfig, split: str) -> Iterator[tuple[str, Row | BadRowError]]:
    import datasets  # here, since it takes seconds to import
    import httpx2
    import pyarrow  # type: ignore[import-untyped]

    # What the hub, the network, the disk and the parsers raise; interrupts and a full memory are none of theirs.
    library = (datasets.exceptions.DatasetsError, httpx2.HTTPError, pyarrow.ArrowException)
    builtin = (OSError, ValueError, TypeError, LookupError, ImportError, RuntimeError)

    path = str(config.path)
    source = str(Path(path).expanduser()) if path.startswith("~") else path
    index = -1
    try:
        # The library maps the split into memory, and makes a row when it comes to it.
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


def _unread(names: set[str], columns: ColumnsConfig) -> list[str]:
    unread = unread_columns(names, columns)
    more = f" and {len(unread) - _NAMED} more" if len(unread) > _NAMED else ""
    return [f"columns that are not read: {', '.join(unread[:_NAMED])}{more}"] if unread else []


def _left_over(held: int, used: int) -> tuple[str, ...]:
    """What to know where not all held-out rows are evaluated on."""
    change = "data.eval_size=null takes all, and a smaller data.eval_fraction leaves more to train on"
    return (f"{used} of {held} held-out rows are evaluated on: {change}",) if used < held else ()


def _one_sided(config: DataConfig, rows: int, which: str) -> InputError:
    named = "data.eval_split" if config.source is DataSource.hub else "data.eval_path"
    return InputError(
        f"data: {config.path} leaves no row to {which} (rows: {rows}, data.eval_fraction: "
        f"{config.eval_fraction}); add rows, change the fraction, or name held-out rows with {named}=..."
    )


def _position(text: str) -> float:
    """A number in [0, 1) that is fixed by the text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6]) / 2**48
