"""Read a run's folder without failing: a run may be new, killed or partially copied."""

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignrun.errors import InputError
from alignrun.run.directory import RunDirectory
from alignrun.security.files import LIMIT, ROWS_LIMIT, YAML_LIMIT, is_step, parse_json, parse_yaml, read_bytes
from alignrun.types import Sample

FIGURE_LIMIT = 2_000_000
"""Size in bytes beyond which a figure is named but not shown."""


@dataclass(frozen=True, slots=True)
class MetricsRow:
    """A line of metrics.jsonl; a value that was not finite is NaN."""

    step: int
    values: dict[str, float]


@dataclass(frozen=True, slots=True)
class RunRecord:
    """The contents of a run's folder."""

    path: Path
    config: Mapping[str, Any]
    config_text: str
    overrides: tuple[str, ...]
    environment: Mapping[str, Any]
    summary: dict[str, float] | None
    """Final metrics; None while the run has not finished."""
    rows: tuple[MetricsRow, ...]
    samples: tuple[Sample, ...]
    """The samples of the last evaluation."""
    samples_step: int | None
    figures: dict[str, bytes | None]
    """SVG by file name; None for one too large to show."""
    changed: tuple[str, ...]
    """Inputs of the run that changed during it, each with the step."""
    unreadable: tuple[str, ...]
    """Files that are broken, or have broken lines, in words."""

    def setting(self, key: str) -> Any:
        """A value of the configuration by its dotted key; None if it has none."""
        node: Any = self.config
        for part in key.split("."):
            node = node.get(part) if isinstance(node, Mapping) else None
        return node

    @property
    def total_steps(self) -> int | None:
        """The number of steps configured."""
        steps = self.setting("train.steps")
        return steps if is_step(steps) and steps > 0 else None


def read(run: RunDirectory) -> RunRecord:
    """Read the folder; missing files give empty fields, broken ones are named in `unreadable`."""
    problems: list[str] = []
    sampled = [row for row in _lines(run.samples_file, problems) if is_step(row.get("step"))]
    last = max((row["step"] for row in sampled), default=None)
    return RunRecord(
        path=run.path,
        config=_yaml(run.config_file, {}, problems),
        config_text=_text(run.config_file, YAML_LIMIT, []),
        overrides=tuple(map(str, _yaml(run.overrides_file, [], problems))),
        environment=_object(run.environment_file, problems),
        summary=read_summary(run, problems),
        rows=read_metrics(run, problems),
        samples=tuple(_sample(row) for row in sampled if row["step"] == last),
        samples_step=last,
        figures={file.name: _figure(file) for file in sorted(run.path.glob("*.svg"))},
        changed=_strings(_object(run.pins_file, problems).get("changed")),
        unreadable=tuple(problems),
    )


def read_summary(run: RunDirectory, problems: list[str]) -> dict[str, float] | None:
    """The final metrics of a run; None if there are none. Adds problems with the file to `problems`."""
    return _numbers(_object(run.summary_file, problems)) or None


def read_metrics(run: RunDirectory, problems: list[str]) -> tuple[MetricsRow, ...]:
    """The rows of metrics.jsonl in the order of their steps. Adds problems with the file to `problems`."""
    metrics = [row for row in _lines(run.metrics_file, problems) if is_step(row.get("step"))]
    return tuple(sorted((MetricsRow(row["step"], _numbers(row)) for row in metrics), key=lambda row: row.step))


def _text(file: Path, limit: int, problems: list[str]) -> str:
    try:
        return read_bytes(file, limit).decode(errors="replace") if os.path.lexists(file) else ""
    except InputError:
        problems.append(f"{file.name} cannot be read")
        return ""


def _object(file: Path, problems: list[str]) -> dict[str, Any]:
    text = _text(file, LIMIT, problems)
    if not text:
        return {}
    try:
        found = parse_json(text)
    except ValueError:
        found = None
    if isinstance(found, dict):
        return found
    problems.append(f"{file.name} cannot be read")
    return {}


def _lines(file: Path, problems: list[str]) -> list[dict[str, Any]]:
    """The objects of a JSON Lines file."""
    lines = _text(file, ROWS_LIMIT, problems).split("\n")
    found = []
    for line in lines:
        try:
            found.append(parse_json(line) if line.strip() else None)
        except ValueError:
            problems.append(f"a line of {file.name} is torn and left out")
    return [row for row in found if isinstance(row, dict)]


def _yaml(file: Path, missing: Any, problems: list[str]) -> Any:
    try:
        found = parse_yaml(text) if (text := _text(file, YAML_LIMIT, problems)) else missing
    except ValueError:
        found = None
    if isinstance(found, type(missing)):
        return found
    problems.append(f"{file.name} cannot be read")
    return missing


def _strings(found: Any) -> tuple[str, ...]:
    return tuple(map(str, found)) if isinstance(found, list) else ()


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in _floats(row) if name != "step"}


def _floats(row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in row.items():
        if value is None:
            yield name, math.nan
        elif isinstance(value, int | float):
            yield name, float(value)


def _sample(row: Mapping[str, Any]) -> Sample:
    prompt, first, second = (str(row.get(name, "")) for name in ("prompt", "first", "second"))
    preference = row.get("preference")
    judged = isinstance(preference, int | float) and math.isfinite(preference)
    ends = (found if isinstance(found := row.get(f"{name}_ended"), bool) else None for name in ("first", "second"))
    return Sample(prompt, first, second, preference if judged else None, *ends)


def _figure(file: Path) -> bytes | None:
    try:
        return read_bytes(file, FIGURE_LIMIT)
    except InputError:
        return None
