"""A tournament's findings, in sentences."""

from collections.abc import Iterator

from alignrun.evaluation.results import Estimate, PlayerResult, TournamentResult
from alignrun.evaluation.settled import caution, verdict
from alignrun.reports.text import EXACT, and_list, clip, number, percent, rate, shown

NAME = 32
"""The maximum length of a name in a sentence."""
NEGLIGIBLE = 0.005
"""Shares of the equilibrium below this are not named."""


def headline(result: TournamentResult) -> Iterator[str]:
    """Which policy is preferred, whether to all others, the equilibrium, and how exploitable the best policy is."""
    best = favourite(result)
    if len(result.players) > 1:
        yield _ahead(result, best)
        yield _against_everyone(result, best)
    yield _equilibrium(result)
    if best.exploitability is not None:
        yield _exploitable(best)


def favourite(result: TournamentResult) -> PlayerResult:
    """The player that beats the others most often."""
    return max(result.players, key=lambda player: player.average.value)


def certainty(result: TournamentResult) -> str:
    """How certain the page's statements about pairs are."""
    return "exactly" if result.samples_per_prompt == 0 else f"at {result.confidence:.0%} confidence"


def _ahead(result: TournamentResult, best: PlayerResult) -> str:
    """Which policy wins most often, and whether the intervals settle it."""
    wins = f"{share_in_words(best.average)} of the time"
    others = [player for player in result.players if player is not best]
    level = [_name(best)] + [_name(one) for one in others if best.average.value - one.average.value <= EXACT]
    if len(level) > 1:
        return f"{_few(level)} win equally often: each beats the others {wins}."
    if caution(_prompts(result)):
        return f"{_name(best)} wins most often in this sample: it beats the others {wins}."
    if len(others) == 1 and not verdict(best.average):
        return f"{_name(best)} is indistinguishable from {_name(others[0])}: it is preferred {wins}."
    if _beats_all(result, best) or all(one.average.high < best.average.low for one in others):
        return f"{_name(best)} is the most preferred: it beats the others {wins}."
    if not verdict(best.average):
        return f"No policy is distinguishable from the others: {_name(best)} beats them most often, {wins}."
    return f"{_name(best)} beats the others most often, {wins}, but the intervals do not show that it is ahead."


def _beats_all(result: TournamentResult, player: PlayerResult) -> bool:
    row = result.players.index(player)
    return all(verdict(entry) > 0 for column, entry in enumerate(result.matrix[row]) if column != row)


def _prompts(result: TournamentResult) -> int | None:
    """The number of prompts behind a policy's numbers; None if they are exact."""
    return result.prompts if result.samples_per_prompt else None


def _against_everyone(result: TournamentResult, best: PlayerResult) -> str:
    """Whether a policy is preferred to all others: a Condorcet winner."""
    if unsettled := caution(_prompts(result)):
        return f"No policy is preferred to every other {certainty(result)}: {unsettled}."
    names = [_name(player) for player in result.players]
    for player in result.players:
        if _beats_all(result, player):
            subject = "It" if player is best else _name(player)
            return f"{subject} is preferred to every other policy, {certainty(result)}."
    row = result.players.index(best)
    others = [column for column in range(len(names)) if column != row]
    open_against = [names[column] for column in others if verdict(result.matrix[row][column]) <= 0]
    beaten = f"{len(others) - len(open_against)} of {len(others)}"
    return (
        f"No policy is preferred to every other {certainty(result)}: "
        f"{_name(best)} is to {beaten}, and not to {_few(open_against)}."
    )


def _equilibrium(result: TournamentResult) -> str:
    played = sorted(
        (player for player in result.players if player.share.value >= NEGLIGIBLE),
        key=lambda player: -player.share.value,
    )
    if not played:
        return "The equilibrium of the win matrix is not known."
    if len(played) == 1:
        only = played[0].share
        sure = "" if not only.high - only.low > EXACT else f" (a share of {percent(only.low)} to {percent(only.high)})"
        return f"The equilibrium of the win matrix plays {_name(played[0])} alone{sure}."
    return f"The equilibrium of the win matrix mixes {_few([f'{_name(p)} {share_in_words(p.share)}' for p in played])}."


def _exploitable(best: PlayerResult) -> str:
    bound = best.exploitability
    assert bound is not None
    wins = share_in_words(Estimate(0.5 + bound.gain.value, 0.5 + bound.gain.low, 0.5 + bound.gain.high))
    if bound.proposals == 0:
        return f"A best response to {_name(best)} beats it {wins} of the time."
    beats = f"The best of {bound.proposals} responses to {_name(best)} beats it {wins} of the time"
    if verdict(bound.gain, 0.0) > 0:
        return f"{beats}: it is at least that exploitable."
    return f"{beats}, which does not show that it is exploitable."


def ratings_in_words(result: TournamentResult) -> str:
    """What ratings cannot express: the misfit and the cycles."""
    misfit = (
        f"The largest difference between a probability in the matrix and what the Elo ratings predict is "
        f"{rate(result.misfit)}."
    )
    if not result.cycles:
        return f"{misfit} No three policies form a cycle {certainty(result)}."
    circles = [" ≻ ".join(clip(name, NAME) for name in (*cycle, cycle[0])) for cycle in result.cycles]
    return f"{misfit} Cyclic {certainty(result)}, which no rating can express: {_few(circles)}."


def abilities_in_words(result: TournamentResult) -> Iterator[str]:
    """The abilities of a panel's members."""
    if result.judges:
        found = [f"{clip(one.name, NAME)} {shown(one.ability, number)}" for one in result.judges]
        yield f"The abilities of the panel's members, 1 on average: {and_list(found)}."


def _name(player: PlayerResult) -> str:
    return clip(player.name, NAME)


def share_in_words(measured: Estimate) -> str:
    """A probability in a sentence, with its interval if it has one."""
    exact = not measured.high - measured.low > EXACT
    interval = "" if exact else f" ({percent(measured.low)} to {percent(measured.high)})"
    return f"{percent(measured.value)}{interval}"


def _few(items: list[str], limit: int = 3) -> str:
    rest = len(items) - limit
    return and_list(items) if rest <= 0 else and_list([*items[:limit], f"{rest} more"])
