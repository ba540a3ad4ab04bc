"""A matrix game, whose actions are the completions: preference.game=cyc, rps, dice or a .json file."""

from collections.abc import Sequence

import torch
from torch import Tensor

from alignrun.config import schema
from alignrun.games import Game
from alignrun.games.files import load_game
from alignrun.preferences.base import Preference, preference


@schema
class MatrixConfig:
    """The game."""

    name: str = "matrix"
    game: str = "cyc"
    """cyc, rps, dice, or a .json file with `preferences`, `reference` and `actions`."""


class MatrixPreference(Preference):
    """P(a ≻ b) from the game's table. Any other completion loses to every action and ties with its like."""

    by_pair = False

    def __init__(self, game: Game) -> None:
        self.game = game
        self._index = {action: index for index, action in enumerate(game.actions)}
        actions = len(game.actions)
        self._table = torch.full((actions + 1, actions + 1), 0.5)
        self._table[:actions, :actions] = game.preferences
        self._table[:actions, actions], self._table[actions, :actions] = 1.0, 0.0

    def __call__(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> Tensor:
        """[B] entries of the game's table."""
        rows, columns = ([self._index.get(text.strip(), len(self._index)) for text in side] for side in (first, second))
        return self._table[rows, columns]


@preference("matrix", MatrixConfig)
def build(config: MatrixConfig) -> Preference:
    """The preference that the configuration asks for."""
    return MatrixPreference(load_game(config.game))
