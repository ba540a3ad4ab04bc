"""Load a matrix game by name or from a JSON file."""

import json
from pathlib import Path

import torch

from alignrun.errors import InputError, one_line
from alignrun.games import GAMES, Game

PROMPT = "play"
"""The one prompt of a game."""
RESERVED = (PROMPT, "<eos>", "<pad>")
"""Tokens of the game's model that cannot be actions."""


def load_game(name: str) -> Game:
    """A built-in game, or `{"preferences": [[…]], "reference": […], "actions": […]}` from a .json file.

    Raises:
        InputError: no such game exists, or the file does not define one.
    """
    if name.lower() in GAMES:
        return GAMES[name.lower()]
    path = Path(name)
    if path.suffix != ".json":
        raise InputError(f"preference.game={name}: choose {', '.join(sorted(GAMES))} or name a .json file")
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        preferences = torch.tensor(stored["preferences"], dtype=torch.float64)
        reference = torch.tensor(stored["reference"], dtype=torch.float64)
        actions = tuple(str(action) for action in stored["actions"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"preference.game={name} cannot be read ({type(error).__name__}: {one_line(error, 100)}): it must hold "
            "preferences (a square table), reference (a distribution) and actions (names)"
        ) from None
    game = Game(preferences, reference, actions)
    unfit = [name for name in actions if not name or len(name.split()) != 1 or name in RESERVED]
    if unfit or len(set(actions)) < len(actions):
        raise InputError(
            f"preference.game={name}: actions must be different single words other than {', '.join(RESERVED)}, "
            f"not {', '.join(map(repr, unfit or actions))}"
        )
    return game
