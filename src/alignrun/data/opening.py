"""Opens untrusted files; a damaged file or a decompression bomb ends in a one-line error."""

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from alignrun.errors import InputError, one_line

UNPACKED, _UNPACKED_TIMES = 64_000_000, 100
"""The limits of a decompressed file, in bytes and as a multiple of its size: text compresses by 3 to 20 times."""


class _Unpacked(io.RawIOBase):
    """The decompressed content of a file, up to a plausible size for text."""

    def __init__(self, path: Path) -> None:
        self._file, self._path = gzip.GzipFile(path), path
        self._left = max(UNPACKED, _UNPACKED_TIMES * path.stat().st_size)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._file.readinto(buffer)
        self._left -= count
        if self._left < 0:
            raise InputError(
                f"data: {self._path} unpacks to more than {_UNPACKED_TIMES} times its size: that would fill the "
                "memory; if its rows are what you want, unpack it and name the unpacked file"
            )
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


@contextmanager
def file_errors(path: Path) -> Iterator[None]:
    """Turn errors of the file system and gzip into one line."""
    try:
        yield
    except FileNotFoundError as error:
        raise InputError(f"data: there is no file {path}; check the path") from error
    except IsADirectoryError as error:
        raise InputError(f"data: {path} is a directory; name a file inside it") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"data: {path} is a damaged gzip file ({one_line(error)}); fetch it again") from error
    except OSError as error:
        raise InputError(f"data: {path} cannot be read ({one_line(error)})") from error


def open_packed(path: Path) -> IO[bytes]:
    """A file as bytes, unpacked if its name ends in .gz."""
    return io.BufferedReader(_Unpacked(path), 1 << 20) if path.name.lower().endswith(".gz") else path.open("rb")
