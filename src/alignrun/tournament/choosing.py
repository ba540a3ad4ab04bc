"""Players that choose among several completions of a model: best_of_nash:RUN, mirror:RUN, borda:RUN and the like."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from alignrun.config import GenerateConfig, Selection, TournamentConfig
from alignrun.evaluation.completions import Drawing
from alignrun.evaluation.selection import Chooser, chosen
from alignrun.evaluation.tournament_results import Sampled
from alignrun.preferences.base import Preference, preference_in_words
from alignrun.tournament.players import Player, find_player, rule_of


def find_chooser(
    config: TournamentConfig | GenerateConfig,
    source: str,
    name: str | None = None,
    sections: Sequence[str] = ("model",),
) -> Player:
    """`find_player`, for a name that may begin with a rule. Raises InputError as `find_player`."""
    rule = rule_of(source)
    if rule is None:
        return find_player(source, name, sections)
    player = find_player(source.removeprefix(f"{rule}:"), None, sections)
    chooser = Chooser(Selection(rule), config.candidates, config.mirror_steps, config.mirror_eta)
    return replace(player, name=name or f"{rule}:{player.name}", source=source, chooser=chooser)


def candidates(drawing: Drawing, player: Player) -> Drawing:
    """What a player draws: `candidates` completions for each one that it plays, as many at once as other players."""
    if player.chooser is None:
        return drawing
    size = player.chooser.candidates
    return replace(drawing, samples=drawing.samples * size, batch_size=max(1, drawing.batch_size // size))


def choose_all(
    players: Sequence[Player], sampled: Sequence[Sampled], prompts: Sequence[str], preference: Preference, seed: int
) -> tuple[list[Sampled], list[str]]:
    """What every player plays, and a note for each one that chooses."""
    played, notes = [], []
    for player, one in zip(players, sampled, strict=True):
        if player.chooser is None:
            played.append(one)
            continue
        drawn, divergence = chosen(
            one.drawn, player.chooser, preference, prompts, f"{seed} {player.chooser} {player.source}"
        )
        played.append(replace(one, drawn=drawn))
        notes.append(
            f"{player.name}: one of {player.chooser.candidates} completions; its KL to the model that draws them is at "
            f"most {divergence.mean():.2f} nats."
        )
    return played, notes


def selection_note(players: Sequence[Player], selector: Any, judge: Any) -> list[str]:
    """What chooses; a choice by the judge of the tournament looks better than it is to another."""
    names = ", ".join(player.name for player in players if player.chooser)
    if not names:
        return []
    by = f"{names}: chosen by {preference_in_words(judge if selector is None else selector)}"
    if selector is None or selector == judge:
        return [
            f"{by}, the judge of this tournament, which flatters them: choose another with preference@selector=NAME."
        ]
    return [f"{by}; the tournament is judged by {preference_in_words(judge)}."]
