"""`alignrun eval`: who is preferred, what is the equilibrium, and who is exploitable."""

import contextlib
import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.text import Text

from alignrun import compose
from alignrun.build import build_preference
from alignrun.config import Pairing, TournamentConfig
from alignrun.errors import RunError, one_line
from alignrun.evaluation.comparisons import against, compare
from alignrun.evaluation.completions import CompletionCache
from alignrun.evaluation.exact import GameEvaluator
from alignrun.evaluation.results import Comparison, TournamentResult
from alignrun.evaluation.settled import caution
from alignrun.evaluation.tournament import (
    Entry,
    Sampled,
    Settings,
    Standing,
    exact_standing,
    examples,
    sampled_standing,
)
from alignrun.evaluation.truncation import left_out
from alignrun.game_files import load_game
from alignrun.launch import remove_empty_run
from alignrun.models.sources import cache_folder
from alignrun.reports.panels import log_tournament
from alignrun.reports.tournament import tournament_page
from alignrun.run_directory import RunDirectory, environment, write_text_atomic
from alignrun.tournament.players import Loader, Player, line_up
from alignrun.tournament.rules import Rules, agree, describe, training_preference
from alignrun.tournament.sampling import Questions, ask, sample_all
from alignrun.tournament.scoreboard import show
from alignrun.tracking import start_tracking


def play(arguments: Sequence[str], console: Console) -> int:
    """Play the tournament that the overrides describe; the exit code.

    Raises:
        AlignrunError: bad input, or a preference that fails.
    """
    config = compose.compose_tournament(arguments)
    players, reference = line_up(config)
    rules = agree(config, players)
    run = RunDirectory.create(config.run.dir or _default_directory())
    with contextlib.closing(run):
        try:
            write_text_atomic(run.environment_file, json.dumps(environment(), indent=2))
            standing, played = _play(config, players, reference, rules, console)
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
            reference=players[reference].name,
            preference=describe(rules.preference),
            prompts=played.prompts,
            samples_per_prompt=0 if rules.exact else rules.drawing.samples,
            confidence=config.confidence,
            temperature=rules.drawing.temperature,
            kl_tau=rules.kl_tau,
            comparisons=played.comparisons,
            notes=(*rules.notes, *played.notes),
            command=command,
            config=compose.dump(config),
            versions=environment()["versions"],
        )
        _keep(config, run, result, played, console)
    return 0


@dataclass(frozen=True, slots=True)
class _Played:
    """What is told of a tournament beside its standing."""

    prompts: int
    comparisons: tuple[Comparison, ...] = ()
    notes: tuple[str, ...] = ()
    completions: tuple[dict[str, Any], ...] = ()
    """Rows of completions.jsonl."""


def _play(
    config: TournamentConfig, players: Sequence[Player], reference: int, rules: Rules, console: Console
) -> tuple[Standing, _Played]:
    def report(text: str) -> None:
        console.print(Text(text, style="dim"), soft_wrap=True)

    questions = ask(config, rules, players)
    settings = Settings(reference, rules.kl_tau, config.confidence, config.seed)
    loader = Loader(config.device, config.dtype)
    try:
        if rules.exact:
            return _exact(players, rules, questions, settings, loader)
        cache = CompletionCache(cache_folder() / "completions" if config.cache else None)
        sampled = sample_all(players, reference, questions, rules, loader, cache, report)
        return _judge(config, players, rules, questions, sampled, settings, loader, report)
    except torch.OutOfMemoryError as error:
        raise RunError(f"out of memory ({one_line(error, 120)}): lower batch_size (now {config.batch_size})") from error


def _exact(
    players: Sequence[Player], rules: Rules, questions: Questions, settings: Settings, loader: Loader
) -> tuple[Standing, _Played]:
    game = load_game(rules.preference.game)
    temperature = rules.drawing.temperature
    policies = []
    for player, prompts in zip(players, questions.encoded, strict=True):
        policies.append(GameEvaluator(loader.load(player), game, prompts, temperature).probabilities(player.role))
    entries = [Entry(player.name, player.source, player.step) for player in players]
    notes = (f"Exact: from the policies' probabilities of the actions of {rules.preference.game}, without sampling.",)
    return exact_standing(entries, policies, game, settings), _Played(len(questions.texts), notes=notes)


def _judge(
    config: TournamentConfig,
    players: Sequence[Player],
    rules: Rules,
    questions: Questions,
    sampled: Sequence[Sampled],
    settings: Settings,
    loader: Loader,
    report: Callable[[str], None],
) -> tuple[Standing, _Played]:
    drawn = [one.drawn for one in sampled]
    names = [player.name for player in players]
    report(f"judge: {describe(rules.preference)}")
    preference = build_preference(rules.preference, loader.backbone)
    table = compare(preference, questions.texts, [one.texts for one in drawn], config.pairing)
    notes = [f"{name}: {value:g}" for name, value in preference.counts().items()]
    if unsettled := caution(len(questions.texts)):
        count = "One prompt" if len(questions.texts) == 1 else f"{len(questions.texts)} prompts"
        notes.append(f"{count}: {unsettled}, and nothing here says how the policies compare on others.")
    if truncated := left_out(rules.drawing.top_k, rules.drawing.top_p):
        notes.append(truncated)
    elif any(one.log_ratio is None for one in sampled):
        notes.append("No KL where a policy and the reference have different vocabularies.")
    if questions.left_out:
        notes.append(f"{questions.left_out} prompts are too long for one of the policies and were left out.")
    if config.pairing is Pairing.matched or config.samples_per_prompt == 1:
        notes.append("No exploitability: it needs several samples of each policy, and pairing=all.")
    sections = [training_preference(player) for player in players]
    training: dict[int, NDArray[np.float64]] = {}
    for place, section in enumerate(sections):
        if not config.hacking_gap or section is None or section == rules.preference or place in training:
            continue
        report(f"training preference of {names[place]}: {describe(section)}")
        trained_with = build_preference(section, loader.backbone)
        theirs = drawn[settings.reference].texts
        for other, same in enumerate(sections):
            if same == section and other != settings.reference:
                training[other] = against(trained_with, questions.texts, drawn[other].texts, theirs, config.pairing)
    entries = [
        Entry(
            name=player.name,
            source=player.source,
            step=player.step,
            training_preference=None if section is None else describe(section),
            training_rates=training.get(place),
        )
        for place, (player, section) in enumerate(zip(players, sections, strict=True))
    ]
    standing = sampled_standing(entries, sampled, table, settings)
    best = max(range(len(players)), key=lambda place: standing.players[place].average.value)
    comparisons = examples(names, questions.texts, drawn, table, best, config.tracker.samples)
    completions = tuple(
        {"prompt": prompt, "player": name, "completion": text, "log_prob": log_prob, "ended": ended}
        for name, one in zip(names, drawn, strict=True)
        for prompt, *row in zip(questions.texts, one.texts, one.log_probs, one.ends, strict=True)
        for text, log_prob, ended in zip(*row, strict=True)
    )
    return standing, _Played(len(questions.texts), comparisons, tuple(notes), completions)


def _keep(
    config: TournamentConfig, run: RunDirectory, result: TournamentResult, played: _Played, console: Console
) -> None:
    """Write the results, the page and the completions, and tell wandb; first of all what cannot be had again."""
    write_text_atomic(run.path / "results.json", json.dumps(asdict(result), indent=2, ensure_ascii=False))
    write_text_atomic(run.config_file, result.config)
    rows = [json.dumps(row, ensure_ascii=False) + "\n" for row in played.completions]
    if rows:
        write_text_atomic(run.path / "completions.jsonl", "".join(rows))
    show(result, console)
    write_text_atomic(run.report_file, tournament_page(result))
    tracking = start_tracking(
        config.tracker, run, compose.plain(config), resume_step=None, notify=lambda text: console.print(Text(text))
    )
    tracking.log_panels(lambda wandb_run: log_tournament(wandb_run, result))
    location = tracking.location
    tracking.finish({})
    for name, where in (("report", run.report_file), ("results", run.path / "results.json"), ("wandb", location)):
        if where:
            console.print(Text(f"{name}  {where}"), soft_wrap=True)


def _default_directory() -> Path:
    """runs/tournaments/DATE_TIME, numbered where that is taken."""
    stem = f"{datetime.now():%Y-%m-%d_%H-%M-%S}"
    names = (stem if number == 1 else f"{stem}_{number}" for number in range(1, 1000))
    return next(path for name in names if not (path := Path("runs") / "tournaments" / name).exists())
