"""Files of measurements."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from alignrun.errors import InputError
from alignrun.run.directory import write_text_atomic


def read(path: Path) -> dict[str, Any]:
    """What was measured. Raises InputError without such a file."""
    if not path.is_file():
        raise InputError(f"no measurements in {path.parent}: {path.name} is missing")
    record: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return record


def write(path: Path, record: Mapping[str, Any]) -> None:
    """Keep it, as one line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomic(path, json.dumps(record, ensure_ascii=False, separators=(",", ":")) + "\n")


def json_lines(rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows of a data set, as data=jsonl reads them."""
    return "".join(json.dumps(row) + "\n" for row in rows)
