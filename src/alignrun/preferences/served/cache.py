"""A judge's answers on disk, so that no question is paid for twice.

Not `diskcache`: it unpickles its entries, so a cache file from elsewhere could run code.
"""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alignrun.errors import InputError, RunError, one_line

PATIENCE = 60
"""Seconds to wait for another process that is writing."""


class AnswerCache:
    """Answers by the hash of their question: one SQLite file that several processes may share."""

    def __init__(self, path: Path) -> None:
        """Open or create the file. Raises InputError if it is not a cache or cannot be written."""
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(path, PATIENCE, isolation_level=None, check_same_thread=False)
            self._keep_a_log()
            # The last line is a test.
            for statement in (
                "PRAGMA synchronous = NORMAL",
                "CREATE TABLE IF NOT EXISTS answers (question TEXT PRIMARY KEY, answer TEXT NOT NULL) WITHOUT ROWID",
                "SELECT answer FROM answers WHERE question = ''",
            ):
                self._connection.execute(statement)
        except (OSError, sqlite3.Error) as error:
            raise InputError(
                f"preference.cache: {path} cannot be used ({one_line(error, 160)}): delete it if it is damaged, or set "
                "preference.cache to another file or to false"
            ) from error

    def _keep_a_log(self) -> None:
        """With a write-ahead log, readers never wait, nor does a writer for the disk.

        If several processes open a new file at once, SQLite refuses all but one of them immediately.
        """
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                self._connection.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
                if not busy or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    def get(self, question: str) -> str | None:
        """The answer, where there is one. Raises RunError if the file cannot be read."""
        with self._in_one_line():
            row = self._connection.execute("SELECT answer FROM answers WHERE question = ?", (question,)).fetchone()
        return None if row is None else str(row[0])

    def put(self, question: str, answer: str) -> None:
        """Store an answer durably. Raises RunError if the file cannot be written."""
        with self._in_one_line():
            self._connection.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", (question, answer))

    @contextmanager
    def _in_one_line(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise RunError(
                f"preference.cache: {self._path} failed ({one_line(error, 160)}): free space or delete it, or set "
                "preference.cache to another file or to false, then repeat the command, or `alignrun resume RUN`"
            ) from error
