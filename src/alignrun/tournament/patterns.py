"""Wildcards among the runs of a tournament: `runs='runs/sweep/*'` is every run that can play."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from alignrun.algorithms.base import discover
from alignrun.algorithms.common.feedback import FeedbackAlgorithm
from alignrun.browse.find import natural
from alignrun.config import TournamentConfig
from alignrun.errors import InputError, one_line
from alignrun.launch import compose
from alignrun.launch.overrides import is_pattern
from alignrun.run.directory import RunDirectory
from alignrun.tournament.players import rule_of
from alignrun.training.checkpoint import latest_checkpoint


def expanded(config: TournamentConfig) -> tuple[TournamentConfig, tuple[str, ...]]:
    """The tournament with the runs that its patterns match, and a note for each run that is left out.

    A pattern matches folders with a config.yaml. A run that is also named explicitly takes part once. Raises InputError
    for a pattern that no run matches.
    """
    if not any(_is_pattern(source) for source in config.runs):
        return config, ()
    named = {_place(source) for source in config.runs if not _is_pattern(source)}
    runs: list[str] = []
    notes: list[str] = []
    for source in config.runs:
        if not _is_pattern(source):
            runs.append(source)
            continue
        rule, pattern = _parts(source)
        found = [path for path in _matches(pattern) if (path / "config.yaml").is_file()]
        if not found:
            raise InputError(f"runs: no run matches {source}: see `alignrun runs`")
        for path in found:
            if (rule, path.resolve()) in named:
                continue
            named.add((rule, path.resolve()))
            if problem := _problem(path):
                notes.append(f"{path} is left out: {problem}")
            else:
                runs.append(f"{rule}{path}")
    if not runs:
        raise InputError(f"runs: of what {', '.join(config.runs)} matches, none can play: {notes[0]}")
    return replace(config, runs=runs), tuple(notes)


def _is_pattern(source: str) -> bool:
    _, name = _parts(source)
    return is_pattern(name) and not Path(name).expanduser().exists()


def _parts(source: str) -> tuple[str, str]:
    """The rule before a name, with its colon, and the name."""
    rule = rule_of(source)
    return (f"{rule}:", source.removeprefix(f"{rule}:")) if rule else ("", source)


def _place(source: str) -> tuple[str, Path]:
    rule, name = _parts(source)
    return rule, Path(name).expanduser().resolve()


def _matches(pattern: str) -> Sequence[Path]:
    path = Path(pattern).expanduser()
    root = Path(path.anchor)
    try:
        return sorted(root.glob(str(path.relative_to(root))), key=lambda found: natural(str(found)))
    except (ValueError, NotImplementedError) as error:
        raise InputError(f"runs: {pattern} is not a pattern: {one_line(error, 100)}") from None


def _problem(path: Path) -> str:
    """Why a run cannot play; empty if it can. Damage found only on loading ends the tournament."""
    try:
        run = RunDirectory.open(path)
        algorithm = compose.load(run.config_file).algo.name
    except InputError as error:
        return one_line(error)
    if issubclass(discover()[algorithm], FeedbackAlgorithm):
        return "it is a feedback model"
    return "" if latest_checkpoint(run.checkpoints) else "it has no checkpoint"
