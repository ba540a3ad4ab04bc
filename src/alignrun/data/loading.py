"""Loads the rows of a source as examples: parses them, splits off held-out ones, refuses or skips bad ones."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from alignrun.config import BadRows, ColumnsConfig, DataConfig, TooLong
from alignrun.data.columns import Wanted, unread_columns
from alignrun.data.overlap import Seen
from alignrun.data.plain import RowReader
from alignrun.data.skips import Skips
from alignrun.data.sources import Source, chosen_source
from alignrun.data.sources.base import Rows
from alignrun.data.store import Examples, Record, record_of
from alignrun.data.values import BadRowError, LargeRowError
from alignrun.errors import InputError
from alignrun.security.text import counted
from alignrun.types import Example, prompt_text

_NAMED = 12


@dataclass(frozen=True, slots=True)
class Loaded:
    """The two sides of a data set, each in the order of the source."""

    train: Examples
    heldout: Examples
    skipped: int
    """Bad rows left out."""
    skips: Skips = field(default_factory=Skips)
    """Why bad rows were left out."""
    unread: tuple[str, ...] = ()
    """Notes for the user on columns that are not read, one per line."""
    split: tuple[str, ...] = ()
    """Notes on how the rows are split."""

    @property
    def notes(self) -> tuple[str, ...]:
        """All notes."""
        return (*self.unread, *self.split)


def load_examples(config: DataConfig, wanted: Wanted = ()) -> Loaded:
    """The examples to train on and the held-out ones, with the `wanted` columns of their rows.

    Held out are the rows of `eval_path` or `eval_split`; without one, a share `eval_fraction` of the rows, picked by a
    hash of the prompt, so that the choice depends on neither seed nor order, and equal prompts stay together. Inline
    prompts and the pairs of a game are used for both. `eval_size` keeps the first ones. Each row is read and checked
    once. Raises InputError for whatever cannot be loaded, and for a bad row unless those are skipped.
    """
    source = chosen_source(config)
    rows = source.read(config)
    reading, seen = _Reading(config, RowReader(config.columns, wanted)), Seen()
    train, heldout = Examples(), Examples()
    held = 0
    share = config.eval_fraction if rows.heldout is None and not source.shared else 0.0

    def hold_out(record: Record) -> None:
        nonlocal held
        held += 1
        if config.eval_size is None or held <= config.eval_size:
            heldout.add(record)

    for record in reading.records(rows.train):
        text = prompt_text(record[0])
        if share and _position(text) < share:
            hold_out(record)
        else:
            train.add(record)
            seen.add(text)
    if source.shared:
        heldout = Examples(train[: config.eval_size])
        left_over = _left_over(len(train), len(heldout), share)
        idle = _unused_share(config, "are both trained and evaluated on")
        return Loaded(train, heldout, len(reading.skips), reading.skips, split=(*left_over, *idle))
    for record in reading.records(rows.heldout or ()):
        hold_out(record)
    if not train or not heldout:
        raise _one_sided(config, source, len(train) + held, "hold out" if train else "train on", reading.skips)
    unread = tuple(_unread(reading.read.names, config.columns, wanted))
    unused = _left_over(held, len(heldout), share)
    idle = () if share else _unused_share(config, "are trained on, and others are held out already")
    split = (*unused, *seen.notes(heldout), *idle)
    return Loaded(train, heldout, len(reading.skips), reading.skips, unread, split)


@dataclass(frozen=True, slots=True)
class Ordered:
    """Examples in the order of the source."""

    examples: Examples
    skipped: int
    """Bad rows left out."""
    apart: bool
    """Whether the source has separate held-out rows, which are left out."""
    notes: tuple[str, ...] = ()
    """As in `Loaded`."""


def remarks(loaded: Loaded | Ordered) -> Iterator[str]:
    """What a user should know about the rows, one line each: how many cannot be used, and the notes."""
    if loaded.skipped:
        yield f"data: skipped {counted(loaded.skipped, 'row')} that cannot be used"
    for note in loaded.notes:
        yield f"data: {note}"


def unusable(loaded: Loaded | Ordered) -> tuple[str, ...]:
    """A note for a report on how many rows cannot be used; empty if none."""
    return (f"Left out: {counted(loaded.skipped, 'row')} that cannot be used.",) if loaded.skipped else ()


def load_in_order(config: DataConfig, wanted: Wanted = (), *, apart: bool = True) -> Ordered:
    """The examples in the order of the source; with `apart`, separate held-out rows follow those to train on.

    Raises as `load_examples`, and if there are none.
    """
    rows = chosen_source(config).read(config)
    reading, found = _Reading(config, RowReader(config.columns, wanted)), Examples()
    for side in (rows.train, (rows.heldout or ()) if apart else ()):
        for record in reading.records(side):
            found.add(record)
    if not found:
        raise InputError(f"data: {config.path or config.name} has no rows")
    notes = tuple(_unread(reading.read.names, config.columns, wanted))
    return Ordered(found, len(reading.skips), rows.heldout is not None and not apart, notes)


@dataclass(slots=True)
class _Reading:
    """Checks rows, and collects notes for the user."""

    config: DataConfig
    read: RowReader
    skips: Skips = field(default_factory=Skips)

    def records(self, rows: Rows) -> Iterator[Record]:
        """The examples of the rows. Raises InputError for a bad row unless those are skipped, and if none is left."""
        read = self.read
        good, first_bad = False, ""
        for origin, row in rows:
            try:
                if isinstance(row, BadRowError):
                    raise row
                record = record_of(row) if isinstance(row, Example) else read(row, origin)
            except (InputError, RecursionError) as error:
                bad = self._leave_out(error, origin)
                first_bad = first_bad or bad
            else:
                good = True
                yield record
        if first_bad and not good:
            raise InputError(f"data: none of the {counted(len(self.skips), 'row')} can be used; the first: {first_bad}")

    def _leave_out(self, error: InputError | RecursionError, origin: str) -> str:
        """Record a bad row. Raises InputError unless such rows are skipped."""
        shown = str(error) if isinstance(error, InputError) else f"data: {origin} is nested too deeply"
        large = isinstance(error, LargeRowError)
        if self.config.too_long is TooLong.error if large else self.config.bad_rows is BadRows.error:
            key = "too_long" if large else "bad_rows"
            raise InputError(f"{shown}; data.{key}=skip leaves such rows out") from error
        self.skips.add(shown, origin)
        return shown.removeprefix("data: ")


def _unread(names: Iterable[str], columns: ColumnsConfig, wanted: Wanted) -> list[str]:
    unread = [] if wanted is None else [name for name in unread_columns(names, columns) if name not in wanted]
    more = f" and {len(unread) - _NAMED} more" if len(unread) > _NAMED else ""
    return [f"columns that are not read: {', '.join(unread[:_NAMED])}{more}"] if unread else []


def _left_over(held: int, used: int, share: float) -> tuple[str, ...]:
    """A note if not all held-out rows are evaluated on; `share` of the rows is held out, if not 0."""
    change = "data.eval_size=null takes all" + ", and a smaller data.eval_fraction leaves more to train on" * bool(
        share
    )
    return (f"{used} of {held} held-out rows are evaluated on: {change}",) if used < held else ()


def _unused_share(config: DataConfig, rows: str) -> tuple[str, ...]:
    """What to know where a share to hold out is set that this data set does not use."""
    usual = config.eval_fraction == DataConfig.eval_fraction
    return () if usual else (f"data.eval_fraction={config.eval_fraction:g} is not used: all rows {rows}",)


def _one_sided(config: DataConfig, source: Source, rows: int, which: str, skips: Skips) -> InputError:
    named = "data.eval_split" if "eval_split" in source.reads else "data.eval_path"
    bad = f", {len(skips)} left out, as {next(iter(skips.by_reason()))}" if len(skips) else ""
    return InputError(
        f"data: {config.path} leaves no row to {which} (rows: {rows}{bad}, data.eval_fraction: "
        f"{config.eval_fraction}); add rows, change the fraction, or name held-out rows with {named}=..."
    )


def _position(text: str) -> float:
    """A number in [0, 1) determined by the text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6]) / 2**48
