"""The pairs of a matrix game's actions, for preference models and offline algorithms."""

from itertools import combinations

from alignrun.config import DataConfig
from alignrun.data.sources.base import Split, source
from alignrun.errors import InputError
from alignrun.types import Example


@source("game", reads=("game",), shared=True)
def read(config: DataConfig) -> Split:
    """Every pair of actions once, the likelier winner first, with the probability that it wins.

    Raises InputError if no game is named, or the game is unknown.
    """
    from alignrun.games.files import PROMPT, load_game  # here, since it imports torch

    if config.game is None:
        raise InputError("config: data.game is missing: choose preference=matrix, or name a game, as in data.game=cyc")
    game = load_game(config.game)
    pairs = []
    for pair in combinations(range(len(game.actions)), 2):
        winner, loser = pair if game.preferences[pair] >= 0.5 else pair[::-1]
        chosen, rejected = game.actions[winner], game.actions[loser]
        origin = f"{config.game}[{chosen}, {rejected}]"
        pairs.append((origin, Example(PROMPT, origin, chosen, rejected, game.preferences[winner, loser].item())))
    return Split(pairs)
