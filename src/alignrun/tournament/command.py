"""`alignrun eval`: which policy is preferred, the equilibrium, and how exploitable each policy is."""

import contextlib
import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.text import Text

from alignrun.config import TournamentConfig
from alignrun.evaluation.results import TournamentResult
from alignrun.launch import compose
from alignrun.launch.train import remove_empty_run
from alignrun.preferences.base import preference_in_words
from alignrun.reports.panels import log_tournament
from alignrun.reports.tournament_page import tournament_page
from alignrun.run.directory import RunDirectory, environment, write_text_atomic
from alignrun.run.fresh import fresh_directory
from alignrun.run.tracking import start_tracking
from alignrun.tournament.lineup import line_up
from alignrun.tournament.patterns import expanded
from alignrun.tournament.playing import Played, standing_of
from alignrun.tournament.rules import agree
from alignrun.tournament.scoreboard import show


def play(config: TournamentConfig, arguments: Sequence[str], console: Console) -> int:
    """Play a tournament; the exit code. Raises as `hold`."""
    hold(config, arguments, console)
    return 0


def hold(config: TournamentConfig, arguments: Sequence[str], console: Console) -> tuple[RunDirectory, TournamentResult]:
    """Play a tournament; its folder and its result.

    Args:
        config: the tournament.
        arguments: the command's arguments, for the report.
        console: receives progress messages.

    Raises:
        AlignrunError: bad input, or a failing preference.
    """

    def report(text: str) -> None:
        console.print(Text(text, style="dim"), soft_wrap=True)

    config, left = expanded(config)
    for note in left:
        report(note)
    lineup = line_up(config)
    rules = agree(config, lineup.players)
    run = RunDirectory.create(config.run.dir or fresh_directory(Path("runs") / "tournaments"))
    with contextlib.closing(run):
        try:
            write_text_atomic(run.environment_file, json.dumps(environment(), indent=2))
            standing, played = standing_of(config, lineup, rules, report)
        except BaseException:
            remove_empty_run(run)
            raise
        command = shlex.join(["alignrun", "eval", *arguments])
        result = TournamentResult(
            players=standing.players,
            matrix=standing.matrix,
            value=standing.value,
            misfit=standing.misfit,
            cycles=standing.cycles,
            reference=played.reference,
            preference=preference_in_words(rules.preference),
            prompts=played.prompts,
            samples_per_prompt=0 if rules.exact else rules.drawing.samples,
            confidence=config.confidence,
            temperature=rules.drawing.temperature,
            kl_tau=rules.kl_tau,
            comparisons=played.comparisons,
            notes=(*left, *rules.notes, *played.notes),
            command=command,
            config=compose.dump(config),
            versions=environment()["versions"],
            judges=standing.judges,
            separating=played.separating,
        )
        _keep(config, run, result, played, console)
        for journal in played.journals:
            journal.close()
    return run, result


def _keep(
    config: TournamentConfig, run: RunDirectory, result: TournamentResult, played: Played, console: Console
) -> None:
    """Save the results, the page and the completions, and log to wandb; irreplaceable files first."""
    write_text_atomic(run.path / "results.json", json.dumps(asdict(result), indent=2, ensure_ascii=False))
    write_text_atomic(run.config_file, result.config)
    rows = [json.dumps(row, ensure_ascii=False) + "\n" for row in played.completions]
    if rows:
        write_text_atomic(run.path / "completions.jsonl", "".join(rows))
    show(result, console)
    write_text_atomic(run.report_file, tournament_page(result, played.answers))
    tracking = start_tracking(
        config.tracker, run, compose.plain(config), resume_step=None, notify=lambda text: console.print(Text(text))
    )
    tracking.log_panels(lambda wandb_run: log_tournament(wandb_run, result))
    location = tracking.location
    tracking.finish({})
    for name, where in (("report", run.report_file), ("results", run.path / "results.json"), ("wandb", location)):
        if where:
            console.print(Text(f"{name}  {where}"), soft_wrap=True)
