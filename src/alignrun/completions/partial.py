"""A file that appears only when it is complete, and the part of it that is done so far."""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from alignrun.errors import InputError
from alignrun.run.directory import writing
from alignrun.security.files import ROWS_LIMIT, open_regular, parse_json

AGAIN = "repeat the command"
ELSEWHERE = "choose another out"


def refuse_existing(out: Path) -> None:
    """Raise InputError if there is something at a path that is to be written."""
    if os.path.lexists(out):
        raise InputError(f"{out} exists: {ELSEWHERE}")
    if not out.parent.is_dir():
        raise InputError(f"{out.parent} is not a folder: create it, or {ELSEWHERE}")


class Partial:
    """OUT.partial: a line that says what it is a part of, then a line for each batch that is done.

    It is locked while it is open; a kill loses at most the batch in progress.
    """

    def __init__(self, out: Path, key: str) -> None:
        """Open it, or start it. Raises InputError if it is a part of something else, or in use."""
        self.path = out.with_name(f"{out.name}.partial")
        self._out = out
        with writing(self.path, AGAIN, ELSEWHERE):
            self._file = os.fdopen(open_regular(self.path, os.O_RDWR | os.O_CREAT), "r+b")
        try:
            self._lock()
            self.batches = list(self._read(key))
        except BaseException:
            self._file.close()
            raise

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"another process is writing {self.path}: wait until it ends, or {ELSEWHERE}") from None
        except OSError:
            pass  # some network file systems have no locks

    def _read(self, key: str) -> Iterator[Any]:
        """The batches that are done. A torn last line is cut off."""
        end = 0
        for number, line in enumerate(self._file.read(ROWS_LIMIT).split(b"\n")[:-1]):
            try:
                found = parse_json(line)
            except ValueError:
                break
            if number == 0 and found != {"key": key}:
                raise InputError(
                    f"{self.path} is a part of another command's file, or its policy, data or judge has changed since: "
                    f"delete it, or {ELSEWHERE}"
                )
            end += len(line) + 1
            if number:
                yield found
        self._file.truncate(end)
        self._file.seek(end)
        if not end:
            self._write({"key": key})

    def add(self, batch: Any) -> None:
        """Keep a batch. Raises RunError if it cannot be written."""
        self._write(batch)
        self.batches.append(batch)

    def _write(self, content: Any) -> None:
        with writing(self.path, AGAIN, ELSEWHERE):
            self._file.write(json.dumps(content).encode() + b"\n")
            self._file.flush()

    def close(self) -> None:
        """Release the lock, and keep what is done for the next time."""
        self._file.close()

    def publish(self, pieces: Iterable[str]) -> None:
        """Write the file, and remove this part. Raises InputError if there is a file by now, and RunError."""
        temporary = self._out.with_name(f".{self._out.name}.tmp-{os.getpid()}")
        with writing(self._out, AGAIN, ELSEWHERE):
            try:
                temporary.unlink(missing_ok=True)
                descriptor = open_regular(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
                with os.fdopen(descriptor, "wb") as file:
                    # A lone surrogate, which JSON input can contain, becomes its \\u escape, which is valid JSON again.
                    file.writelines(piece.encode(errors="backslashreplace") for piece in pieces)
                    file.flush()
                    os.fsync(file.fileno())
                _move(temporary, self._out)
            finally:
                temporary.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.path.unlink()


def _move(temporary: Path, out: Path) -> None:
    """Give a file its name unless that is taken. Raises InputError if it is."""
    try:
        os.link(temporary, out)  # a rename would replace a file that has appeared in the meantime
    except FileExistsError:
        refuse_existing(out)
    except OSError:  # a file system without hard links
        refuse_existing(out)
        temporary.rename(out)
