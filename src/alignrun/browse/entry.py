"""One run as others see it: its configuration, its last evaluation and its state. Nothing in its folder is trusted."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alignrun.errors import InputError
from alignrun.evaluation.results import Estimate
from alignrun.reports.quantities import estimate
from alignrun.reports.record import read_metrics, read_summary
from alignrun.run.directory import RunDirectory
from alignrun.run.state import State, read_failure, state_of
from alignrun.security.files import is_step, read_json, read_yaml
from alignrun.security.text import clean

EVALUATION = "eval/"


@dataclass(frozen=True, slots=True)
class RunEntry:
    """What is known of a run."""

    name: str
    path: Path
    state: State
    problem: str = ""
    """Why it has failed, or cannot be read; empty if all is well."""
    damaged: bool = False
    """Whether its folder cannot be read; what follows is then empty."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """Key → value of the stored configuration, keys dotted."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Of its last evaluation; NaN for a value that was not finite."""
    evaluated: int | None = None
    """The step of that evaluation."""
    done: int = 0
    """Steps so far."""
    steps: int = 0
    """Planned steps."""

    def setting(self, key: str) -> str:
        """A value of the configuration as text; empty if it has none."""
        return clean(self.config[key], 40) if key in self.config else ""

    def measured(self, name: str) -> Estimate | None:
        """A metric of the last evaluation with its interval."""
        if not math.isfinite(self.metrics.get(name, math.nan)):
            return None
        known = {key: value for key, value in self.metrics.items() if math.isfinite(value)}
        whole = {f"{name}_low", f"{name}_high"} <= known.keys()
        return estimate(name, known if whole else {name: known[name]})


def read_entry(path: Path, name: str) -> RunEntry:
    """Read a run; if its folder is damaged, the entry says why."""
    try:
        return open_entry(path, name)
    except InputError as error:
        reason = str(error).replace(f"{path.absolute()}/", "").replace(f"{path.absolute()} ", "")
        return RunEntry(name, path, State.failed, _job(path) or reason, damaged=True)


def open_entry(path: Path, name: str) -> RunEntry:
    """Read a run. Raises InputError if its folder is damaged, or not that of a run."""
    run = RunDirectory.open(path)
    stored = read_yaml(run.config_file)
    config = dict(dotted(stored))
    steps = config.get("train.steps")
    if not (isinstance(steps, int) and is_step(steps) and "algo.name" in config and "model.name" in config):
        raise InputError(f"{run.config_file} is not the configuration of a run")
    problems: list[str] = []
    state = state_of(run, steps)
    rows, summary = read_metrics(run, problems), read_summary(run, problems)
    if problems and state is not State.running:  # a running one may be writing its last line
        raise InputError("; ".join(dict.fromkeys(problems)))
    evaluations = [row for row in rows if any(key.startswith(EVALUATION) for key in row.values)]
    last = {key.removeprefix(EVALUATION): value for key, value in evaluations[-1].values.items()} if evaluations else {}
    return RunEntry(
        name=name,
        path=path,
        state=state,
        problem=read_failure(run) if state is State.failed else "",
        config=config,
        metrics=last if summary is None else summary,
        evaluated=evaluations[-1].step if evaluations else None,
        done=rows[-1].step if rows else 0,
        steps=steps,
    )


def dotted(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested mappings under dotted keys."""
    if isinstance(node, Mapping) and (node or not prefix):
        for key, value in node.items():
            yield from dotted(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, node


def _job(path: Path) -> str:
    """Why a run of a sweep never started; empty for other folders."""
    if (path / "config.yaml").exists():
        return ""
    try:
        return f"it never started: exit code {int(read_json(path / 'job.json')['exit_code'])} in its sweep"
    except (InputError, LookupError, TypeError, ValueError):
        return ""
