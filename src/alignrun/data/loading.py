"""The rows of a source as examples: parsed, held out, and bad ones refused or left out."""

import hashlib
from dataclasses import dataclass

from alignrun.config import BadRows, DataConfig, TooLong
from alignrun.data.columns import unread_columns
from alignrun.data.overlap import overlap_notes
from alignrun.data.records import parse_row
from alignrun.data.sources import SOURCES, check_source
from alignrun.data.sources.base import Rows
from alignrun.data.values import BadRowError, LargeRowError
from alignrun.errors import InputError
from alignrun.types import Example


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
    check_source(config)
    source = SOURCES[config.source]
    rows = source.read(config)
    names: set[str] = set()
    train, skipped = _parse(rows.train, config, names)
    if source.shared:
        return Loaded(train, train[: config.eval_size], skipped)
    if rows.heldout is None:
        train, heldout = _split(train, config)
    else:
        heldout, more = _parse(rows.heldout, config, names)
        skipped += more
    heldout = heldout[: config.eval_size]
    unread = unread_columns(names, config.columns)
    notes = [f"columns that are not read: {', '.join(unread)}"] if unread else []
    return Loaded(train, heldout, skipped, (*notes, *overlap_notes(train, heldout)))


def _parse(rows: Rows, config: DataConfig, names: set[str]) -> tuple[list[Example], int]:
    """The examples of the rows, and how many rows were left out; the names of their columns are put into `names`."""
    examples: list[Example] = []
    bad: list[InputError] = []
    for origin, row in rows:
        try:
            if isinstance(row, BadRowError):
                raise row
            if isinstance(row, Example):
                examples.append(row)
                continue
            names.update(row)
            examples.append(parse_row(row, origin, config.columns))
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
        raise InputError(f"data: none of the {len(bad)} rows can be used; the first: {first}")
    return examples, len(bad)


def _split(examples: list[Example], config: DataConfig) -> tuple[list[Example], list[Example]]:
    sides: tuple[list[Example], list[Example]] = ([], [])
    for example in examples:
        sides[_position(example.text) < config.eval_fraction].append(example)
    if not all(sides):
        which = "train on" if not sides[0] else "hold out"
        named = "data.eval_split" if "eval_split" in SOURCES[config.source].reads else "data.eval_path"
        raise InputError(
            f"data: {config.path} leaves no row to {which} (rows: {len(examples)}, data.eval_fraction: "
            f"{config.eval_fraction}); add rows, change the fraction, or name held-out rows with {named}=..."
        )
    return sides


def _position(text: str) -> float:
    """A number in [0, 1) that is fixed by the text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6]) / 2**48
