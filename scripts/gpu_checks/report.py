"""What was found: values next to what is expected of them, by section, as one JSON and one table."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

PASSED, FAILED, SKIPPED, LATE = "passed", "failed", "skipped", "no time left"


class Skip(Exception):
    """A section cannot run here; the message says why."""


@dataclass
class Entry:
    """A value and what is expected of it."""

    name: str
    value: Any
    expected: str
    passed: bool | None
    """None for a value that is only reported."""


@dataclass
class Section:
    """One section with its entries in order."""

    name: str
    status: str = PASSED
    reason: str = ""
    """Why it failed as a whole or did not run."""
    seconds: float = 0.0
    entries: list[Entry] = field(default_factory=list)

    def check(self, name: str, value: Any, expected: str, passed: bool) -> None:
        """Add a value that must be as expected."""
        self.entries.append(Entry(name, value, expected, bool(passed)))
        if not passed:
            self.status = FAILED

    def at_most(self, name: str, value: float, bound: float) -> None:
        """Add a value with an upper bound; not a number fails."""
        self.check(name, value, f"at most {bound:g}", value <= bound)

    def near(self, name: str, value: float, expected: float, rel: float) -> None:
        """Add a value that must be within a fraction of the expected one."""
        self.check(name, value, f"{expected:.4g} within {rel:.0%}", abs(value - expected) <= rel * abs(expected))

    def note(self, name: str, value: Any, expected: str = "") -> None:
        """Add a value that is only reported, with an estimate where there is one."""
        self.entries.append(Entry(name, value, expected, None))

    def fail(self, reason: str) -> None:
        """The section ended early."""
        self.status, self.reason = FAILED, reason


@dataclass
class Report:
    """All sections, and where they ran."""

    machine: dict[str, Any]
    sections: list[Section] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether every section passed, or was skipped for a reason other than time."""
        return all(section.status in (PASSED, SKIPPED) for section in self.sections)

    def write(self, path: Path) -> None:
        """Write the JSON."""
        path.write_text(json.dumps({"passed": self.passed, **asdict(self)}, indent=1, default=str) + "\n", "utf-8")

    def show(self, console: Console) -> None:
        """Print the table."""
        table = Table(box=None, pad_edge=False)
        for name in ("section", "value", "found", "expected", ""):
            table.add_column(name, overflow="fold")
        for section in self.sections:
            table.add_row(section.name, section.reason, f"{section.seconds:.1f} s", "", section.status)
            for entry in section.entries:
                mark = "" if entry.passed is None else (PASSED if entry.passed else FAILED)
                table.add_row("", entry.name, _shown(entry.value), entry.expected, mark)
        console.print(table, markup=False, highlight=False)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_shown(part)}" for name, part in value.items())
    return str(value)
