"""The pairs of a matrix game: what a preference model or an offline algorithm can learn it from."""

from itertools import combinations

from alignrun.config import DataConfig
from alignrun.errors import InputError
from alignrun.games.files import PROMPT, load_game
from alignrun.types import Example


def game_pairs(config: DataConfig) -> list[Example]:
    """Every two actions of the game once, the likelier winner first, with the probability that it wins.

    Raises InputError where no game is named, or there is none of that name.
    """
    if config.game is None:
        raise InputError("config: data.game is missing: choose preference=matrix, or name a game, as in data.game=cyc")
    game = load_game(config.game)
    examples = []
    for pair in combinations(range(len(game.actions)), 2):
        winner, loser = pair if game.preferences[pair] >= 0.5 else pair[::-1]
        chosen, rejected = game.actions[winner], game.actions[loser]
        label = game.preferences[winner, loser].item()
        examples.append(Example(PROMPT, f"{config.game}[{chosen}, {rejected}]", chosen, rejected, label))
    return examples
