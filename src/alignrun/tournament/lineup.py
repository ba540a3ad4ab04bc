"""The players of a tournament, and each player's reference, which its KL and win rate refer to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from alignrun.config import Config, ModelSource, TournamentConfig, require
from alignrun.errors import InputError
from alignrun.security.text import clean
from alignrun.tournament.choosing import find_chooser
from alignrun.tournament.players import Player, find_player
from alignrun.types import Role


@dataclass(frozen=True, slots=True)
class Field:
    """All players, after duplicates have been merged."""

    players: tuple[Player, ...]
    places: tuple[int, ...]
    """Their indices in the line-up."""
    references: tuple[int | None, ...]
    """The index of each player's reference, its own for a reference; None if unknown."""
    common: int | None
    """The index of the common reference, if there is one."""

    @property
    def reference(self) -> str | None:
        """The name of the common reference."""
        return None if self.common is None else self.players[self.common].name


@dataclass(frozen=True, slots=True)
class Lineup:
    """All players before anything is loaded; some may turn out to be the same policy."""

    players: tuple[Player, ...]
    listed: int
    """The number of players named by the user; the others are references, added automatically."""
    references: tuple[int | None, ...]
    """The index of each player's reference."""
    named: bool = False
    """Whether the user has named the common reference."""

    def order(self) -> list[int]:
        """The indices in the order of loading: a reference comes after all players that refer to it."""
        return sorted(range(len(self.players)), key=lambda place: place in self.references)

    def settle(self, same: Mapping[int, int]) -> Field:
        """The players without duplicates; `same` maps the index of a duplicate to that of the one kept.

        If all runs have one reference, models refer to it too.

        Raises:
            InputError: only one policy is left.
        """
        kept = [place for place in range(len(self.players)) if place not in same]
        if len(kept) < 2:
            raise InputError(
                f"runs: {self.players[kept[0]].name} is its own reference, weight for weight: name another"
            )
        new = {place: kept.index(same.get(place, place)) for place in range(len(self.players))}
        found = [self.references[place] for place in kept]
        references = [None if place is None else new[place] for place in found]
        distinct = {place for place in references if place is not None}
        common = distinct.copy().pop() if len(distinct) == 1 else None
        if common is not None:
            references = [common] * len(kept)
        own = [place if known is None and place in distinct else known for place, known in enumerate(references)]
        players = [self.players[place] for place in kept]
        for place in range(len(kept)):
            if kept[place] >= self.listed and not self.named:
                relating = [
                    one
                    for one, known in zip(players, own, strict=True)
                    if known == place and (one.trained_from or one.chooser)
                ]
                players[place] = _called(players[place], relating, players, alone=place == common)
        return Field(tuple(players), tuple(kept), tuple(own), common)


def line_up(config: TournamentConfig) -> Lineup:
    """The players, including the references of the runs.

    Raises:
        InputError: a run or model does not exist, or two have the same name.
    """
    agree = not config.names or len(config.names) == len(config.runs)
    found = ", ".join(clean(run, 60) for run in config.runs)
    require(agree, "names", f"must have as many entries as runs, or none: {len(config.names)} names for {found}")
    names: Sequence[str | None] = list(config.names) or [None] * len(config.runs)
    # The runs' own data and preferences are used unless the command line names others.
    asked = config.preference is None or config.hacking_gap
    sections = ["model", *["data"] * (config.data is None), *["preference"] * asked]
    players = [_find(config, source, name, sections) for source, name in zip(config.runs, names, strict=True)]
    if not config.names:  # two folders may have the same name
        short = [player.name for player in players]
        players = [
            replace(player, name=player.source) if short.count(player.name) > 1 else player for player in players
        ]
    taken = [player.name for player in players]
    for name in taken:
        if taken.count(name) > 1:
            raise InputError(f"config: runs names {name} twice: leave one out, or distinguish them with names='[…]'")
    listed = len(players)
    if config.reference_policy is not None:
        known = [[player.name for player in players], [player.source for player in players]]
        place = next((each.index(config.reference_policy) for each in known if config.reference_policy in each), listed)
        if place == listed:
            players.append(_named_reference(config.reference_policy, _free("reference", taken), sections))
        elif players[place].chooser is not None:
            raise InputError(
                f"reference_policy: {config.reference_policy} chooses among samples, and its probabilities are not "
                "known: name a policy that does not"
            )
        return Lineup(tuple(players), listed, (place,) * len(players), named=True)
    references: list[int | None] = []
    for player in players[:listed]:
        # A player that chooses among the samples of a model is compared with that model.
        origin = player.trained_from or (player.config if player.chooser else None)
        references.append(None if origin is None else _reference(player, origin, players))
    if len(players) == 1:
        raise InputError("config: runs holds one model and no run: name a second policy, or a reference_policy=MODEL")
    return Lineup(tuple(players), listed, (*references, *[None] * (len(players) - listed)))


def _find(config: TournamentConfig, source: str, name: str | None, sections: Sequence[str]) -> Player:
    """A player, with the key that names it in messages."""
    try:
        return find_chooser(config, source, name, sections)
    except InputError as error:
        raise InputError(f"runs: {error}") from None


def _named_reference(source: str, name: str, sections: Sequence[str]) -> Player:
    try:
        return find_player(source, name, sections)
    except InputError as error:
        raise InputError(f"reference_policy: {error}") from None


def _reference(player: Player, config: Config, players: list[Player]) -> int:
    """The index of a run's reference, which is appended to the players unless it is among them."""
    for place, other in enumerate(players):
        if other.role is Role.reference and other.chooser is None and same_reference(other.config, config):
            return place
    players.append(Player(f"reference of {player.name}", f"the reference of {player.source}", config, None))
    return len(players) - 1


def same_reference(one: Config, other: Config) -> bool:
    """Whether two configurations name the same reference. Others may still have the same weights."""
    seeds = (one.seed, other.seed) if one.model.source in (ModelSource.random, ModelSource.game) else (0, 0)
    return seeds[0] == seeds[1] and (one.model, one.adapter.name, one.reference) == (
        other.model,
        other.adapter.name,
        other.reference,
    )


def _called(player: Player, relating: Sequence[Player], others: Sequence[Player], *, alone: bool) -> Player:
    """An automatically added reference, with a name that does not depend on the order of the runs."""
    names, sources = (", ".join(sorted(getattr(one, key) for one in relating)) for key in ("name", "source"))
    name = "reference" if alone else f"reference of {names}"
    taken = [other.name for other in others if other is not player]
    return replace(player, name=_free(name, taken), source=f"the reference of {sources}")


def _free(name: str, taken: Sequence[str]) -> str:
    return name if name not in taken else f"{name} policy"
