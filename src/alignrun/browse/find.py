"""Find the runs below a folder without following links."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alignrun.errors import InputError
from alignrun.security.text import counted

DEPTH = 8
"""Levels of folders below the one that is named."""
FOLDERS = 20_000
"""Folders that are looked into."""
MARKS = ("metrics.jsonl", "environment.json", "checkpoints", "member.json", "job.json")
"""With a config.yaml, each of these shows that a folder is a run; the last two do so without one, in a sweep."""


@dataclass(slots=True)
class FoundRuns:
    """The folders of runs below a folder, in natural order."""

    folders: list[Path] = field(default_factory=list)
    links: int = 0
    """Links to folders, which are not followed."""
    left: int = 0
    """Folders that could not be read, or were too many or too deep to look into."""
    tournaments: int = 0
    evaluations: int = 0
    """Folders of `alignrun eval-preference`."""

    def notes(self) -> Iterator[str]:
        """What is not listed, in sentences."""
        if self.tournaments:
            yield f"{counted(self.tournaments, 'tournament')} not listed: the report.html of each shows it"
        if self.evaluations:
            yield f"{counted(self.evaluations, 'evaluated preference')} not listed: the report.html of each shows it"
        if self.links:
            yield f"{counted(self.links, 'link')} not followed: name the folder that a link leads to"
        if self.left:
            yield f"{counted(self.left, 'folder')} not read (not readable, too deep or too many): name one of them"


def find_runs(parent: Path) -> FoundRuns:
    """The runs at or below a folder. Raises InputError if it is not a folder."""
    if not parent.is_dir():
        problem = "is a file" if parent.exists() else "does not exist"
        raise InputError(f"alignrun runs: {parent} {problem}: name a folder that holds runs")
    found, waiting, seen = FoundRuns(), [(parent, 0)], 0
    while waiting:
        folder, depth = waiting.pop()
        seen += 1
        if seen > FOLDERS or depth > DEPTH:
            found.left += 1
            continue
        try:
            with os.scandir(folder) as listed:
                entries = list(listed)
        except OSError:
            found.left += 1
            continue
        names = {entry.name for entry in entries}
        if _holds("results.json", names):
            found.tournaments += 1
        elif _holds("preference.json", names):
            found.evaluations += 1
        elif _is_run(names):
            found.folders.append(folder)
        else:
            shown = [entry for entry in entries if not entry.name.startswith(".")]
            found.links += sum(entry.is_symlink() and entry.is_dir() for entry in shown)
            waiting += [(folder / entry.name, depth + 1) for entry in shown if entry.is_dir(follow_symlinks=False)]
    found.folders.sort(key=lambda path: natural(str(path)))
    return found


def _is_run(names: set[str]) -> bool:
    return bool(names & set(MARKS if "config.yaml" in names else MARKS[-2:]))


def _holds(results: str, names: set[str]) -> bool:
    """Whether a folder has these results, of `eval` or `eval-preference`, and nothing of a run."""
    return results in names and not names & {"metrics.jsonl", "checkpoints"}


def natural(text: str) -> list[Any]:
    """A sort key by which run-2 comes before run-10."""
    parts = re.split(r"(\d+)", text)
    return [(0, int(part), "") if part.isdecimal() and len(part) < 19 else (1, 0, part) for part in parts if part]
