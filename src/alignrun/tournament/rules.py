"""The rules of a tournament: from its configuration, or from the runs if they agree."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from alignrun.algorithms.base import discover
from alignrun.config import Config, DataConfig, ModelSource, TournamentConfig
from alignrun.config.selection import check_unused
from alignrun.errors import InputError
from alignrun.evaluation.completions import Drawing
from alignrun.evaluation.selection import enumerable
from alignrun.evaluation.truncation import truncation
from alignrun.games.files import load_game
from alignrun.preferences.matrix import MatrixConfig
from alignrun.tournament.players import Player

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules, the same for every player."""

    data: DataConfig
    preference: Any
    """The judge's section."""
    drawing: Drawing
    kl_tau: float | None
    exact: bool
    """Whether all play one matrix game, so that nothing needs to be sampled."""
    notes: tuple[str, ...]


def agree(config: TournamentConfig, players: Sequence[Player]) -> Rules:
    """The rules, from the configuration and the runs among the players.

    Raises:
        InputError: a setting is not given, and the runs do not agree on it.
    """
    runs = [player for player in players if player.checkpoint is not None]
    notes = []

    def shared(key: str, given: T | None, read: Callable[[Config], T | None], choose: str) -> T:
        found = [(player.name, read(player.config)) for player in runs]
        known = [(name, value) for name, value in found if value is not None]
        if given is not None:
            return given
        if not known:
            raise InputError(f"config: {key} must be given, since no run has it: {choose}")
        (first, value), *others = known
        for name, other in others:
            if other != value:
                raise InputError(f"config: the runs {first} and {name} differ in {key}: choose with {choose}")
        return value

    data = shared("data", config.data, lambda run: run.data, "data=NAME")
    preference = shared("preference", config.preference, _judging, "preference=NAME")
    if preference.name == "none":
        raise InputError("config: a tournament needs a judge: choose preference=NAME")
    if config.selector is not None:
        if config.selector.name == "none":
            raise InputError("config: preference@selector=none chooses nothing: leave it out, or choose another")
        if not any(player.chooser for player in players):
            raise InputError("config: selector: no player chooses: name one as in runs='[best_of_nash:RUN]'")
    if not any(player.chooser for player in players):
        check_unused(config)
    kl_tau = config.kl_tau
    if kl_tau is None:
        values = sorted({discover()[player.config.algo.name].tau(player.config) for player in runs} - {0.0})
        if len(values) == 1:
            kl_tau = values[0]
        else:
            why = f"the runs have different τ, {', '.join(map(str, values))}" if values else "no run has a τ"
            notes.append(f"No regularised game: {why}; choose one with kl_tau=.")
    games = [player.config.model.source is ModelSource.game for player in players]
    exact = config.exact and all(games) and isinstance(preference, MatrixConfig)
    if exact and (truncated := truncation(config.top_k, config.top_p)):
        exact = False
        notes.append(f"Sampled and not exact: {truncated} truncates the policies.")
    if exact and (reason := _too_many(config, preference, players)):
        exact = False
        notes.append(f"Sampled and not exact: {reason}.")
    drawing = Drawing(
        samples=config.samples_per_prompt,
        max_new_tokens=shared(
            "max_new_tokens", config.max_new_tokens, lambda run: run.generation.max_new_tokens, "max_new_tokens=N"
        ),
        temperature=shared("temperature", config.temperature, lambda run: run.evaluation.temperature, "temperature=T"),
        top_k=config.top_k,
        top_p=config.top_p,
        batch_size=config.batch_size,
        seed=config.seed,
    )
    return Rules(data, preference, drawing, kl_tau, exact, tuple(notes))


def _too_many(config: TournamentConfig, preference: MatrixConfig, players: Sequence[Player]) -> str:
    """Why what the players choose is not enumerated; empty if it is."""
    choosers = [player.chooser for player in players if player.chooser]
    if not choosers:
        return ""
    if config.selector not in (None, preference):
        return "the selector is not the game"
    actions = len(load_game(preference.game).actions)
    if not all(enumerable(actions, chooser.candidates) for chooser in choosers):
        return f"{config.candidates} candidates of {actions} actions are too many to enumerate"
    return ""


def _judging(run: Config) -> Any:
    return None if run.preference.name == "none" else run.preference


def training_preference(player: Player) -> Any:
    """The section of the preference that a run was trained with; None without a preference or training."""
    return None if player.checkpoint is None else _judging(player.config)


def played_on(config: Config, rules: Rules) -> Config:
    """A player's configuration with the prompts and the length of the tournament."""
    return replace(
        config,
        data=rules.data,
        generation=replace(config.generation, max_new_tokens=rules.drawing.max_new_tokens),
    )
