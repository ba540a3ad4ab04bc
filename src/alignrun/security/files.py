"""Untrusted files: only regular files, no links, within size limits, parsed as data."""

import errno
import json
import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from alignrun.errors import InputError, one_line

MEGABYTE = 10**6
LIMIT = 64 * MEGABYTE
"""Largest file that is read into memory; recorded rows have a separate limit."""
YAML_LIMIT = 4 * MEGABYTE
ROWS_LIMIT = 2000 * MEGABYTE
DEPTH = 64
"""Maximum nesting of lists and mappings."""
DIGITS = 40
"""Maximum digits of an integer: enough for 128 bits, and within the range of a float."""
ENTRIES = 100_000
"""Maximum number of files in a run."""

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_LONG_NUMBER = re.compile(rf"[-+]?(?:[0-9_:]{{{DIGITS + 1},}}|0[bx][0-9a-fA-F_]{{{DIGITS + 1},}})")


def open_regular(path: Path, flags: int = os.O_RDONLY) -> int:
    """Open a regular file, not a link. Raises OSError, and does not block on a FIFO without a writer."""
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "it is a link, and links are not followed", str(path)) from None
        if error.errno == errno.ENXIO:
            raise OSError(errno.EINVAL, "it is not a regular file", str(path)) from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return descriptor


def read_bytes(path: Path, limit: int = LIMIT, advice: str = "") -> bytes:
    """Read a regular file.

    Raises:
        InputError: it is missing, not a regular file, or larger than `limit` bytes; the message ends with `advice`.
    """
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error), advice) from None
    if len(content) > limit:
        raise _unreadable(path, f"it is larger than {limit / MEGABYTE:g} MB", advice)
    return content


def read_json(path: Path, advice: str = "") -> Any:
    """Read a JSON file. Raises InputError as `read_bytes`, and if it is not JSON or exceeds the limits."""
    content = read_bytes(path, advice=advice)
    try:
        return parse_json(content)
    except ValueError as error:
        raise _unreadable(path, one_line(error, 120), advice) from None


def read_yaml(path: Path, advice: str = "") -> Any:
    """Read a YAML file. Raises InputError as `read_json`."""
    content = read_bytes(path, YAML_LIMIT, advice)
    try:
        return parse_yaml(content.decode())
    except ValueError as error:
        raise _unreadable(path, one_line(error, 120), advice) from None


def _unreadable(path: Path, reason: str, advice: str) -> InputError:
    return InputError(f"{path} cannot be read ({reason})" + (f": {advice}" if advice else ""))


def is_step(value: Any) -> bool:
    """Whether a value is a number of steps that a float represents exactly."""
    return type(value) is int and 0 <= value <= 1 << 53


def parse_json(text: str | bytes) -> Any:
    """Parse JSON. Raises ValueError if it is not JSON, is nested too deeply, or has a number with too many digits."""
    try:
        text = text.decode() if isinstance(text, bytes) else text
        found = json.loads(text, parse_int=_integer)
    except RecursionError:
        raise ValueError(f"it is nested more than {DEPTH} deep") from None
    if isinstance(found, dict | list) and text.count("[") + text.count("{") > DEPTH:
        _check_depth(found)
    return found


def _integer(digits: str) -> int:
    if len(digits) > DIGITS:
        raise ValueError(f"it contains a number of {len(digits)} digits")
    return int(digits)


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(DEPTH):
        children = (node.values() if isinstance(node, dict) else node for node in level)
        level = [child for group in children for child in group if isinstance(child, dict | list)]
        if not level:
            return
    raise ValueError(f"it is nested more than {DEPTH} deep")


def parse_yaml(text: str) -> Any:
    """Parse YAML as data: no Python tags, and no aliases, since a few lines of them can expand to billions.

    Raises:
        ValueError: it is not YAML, or exceeds the limits.
    """
    depth = 0
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            if isinstance(event, yaml.AliasEvent):
                raise ValueError("it contains an alias (*name): write the value out")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEPTH:
                raise ValueError(f"it is nested more than {DEPTH} deep")
            if isinstance(event, yaml.ScalarEvent) and event.implicit[0] and _LONG_NUMBER.fullmatch(event.value):
                raise ValueError(f"it contains a number of {len(event.value)} digits")
        return yaml.load(text, Loader=_LOADER)
    except (yaml.YAMLError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(one_line(error, 160)) from None  # constructors of dates and sets raise various exceptions


def refuse_links(folder: Path, names: Iterable[str]) -> None:
    """Refuse links and special files among the named parts of a folder, recursively.

    The folder itself may be reached through links. Raises InputError.
    """
    waiting, seen = [str(folder / name) for name in names], 0
    while waiting:
        path = waiting.pop()
        try:
            mode = os.lstat(path).st_mode
            if stat.S_ISDIR(mode):
                with os.scandir(path) as entries:
                    waiting += [entry.path for entry in entries]
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                continue  # missing, or deleted in the meantime
            raise InputError(f"{path} cannot be read ({error.strerror}): make it readable with chmod") from None
        if stat.S_ISLNK(mode):
            raise InputError(
                f"{path} is a link, and links in a run folder are not followed: replace it by its target, or delete it"
            )
        if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
            raise InputError(f"{path} is neither a file nor a folder: delete it")
        seen += 1
        if seen + len(waiting) > ENTRIES:
            raise InputError(f"{folder} has more than {ENTRIES:,} files: it is not a run that alignrun has written")
