"""Every player's completions for the same prompts, one player loaded at a time."""

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from alignrun.config import TournamentConfig
from alignrun.data.columns import Wanted
from alignrun.data.encoding import Encoding
from alignrun.data.loading import load_examples, remarks, unusable
from alignrun.data.prompts import PromptSet
from alignrun.errors import InputError
from alignrun.evaluation.completions import CompletionCache, Drawn, content_key, draw, score
from alignrun.evaluation.tournament_results import Array, Sampled
from alignrun.evaluation.truncation import truncation
from alignrun.launch.build import distinct_prompts, make_encoding, skipping
from alignrun.models.policy import Policy
from alignrun.preferences.base import discover
from alignrun.security.text import counted
from alignrun.tournament.choosing import candidates
from alignrun.tournament.lineup import Field, Lineup
from alignrun.tournament.players import Loader, Player
from alignrun.tournament.rules import Rules, played_on, training_preference
from alignrun.types import Example


@dataclass(frozen=True, slots=True)
class Questions:
    """The prompts that fit every player, in each player's encoding."""

    texts: tuple[str, ...]
    encoded: tuple[PromptSet, ...]
    """One set of the same prompts per player."""
    notes: tuple[str, ...]
    """What was left out, for the report."""


def read_by_all(
    config: TournamentConfig, rules: Rules, players: Sequence[Player], report: Callable[[str], None]
) -> Questions:
    """Encode the held-out prompts for every player; drop prompts that are too long for any of them.

    Raises:
        InputError: the data or a tokenizer is not available, or no prompt is left.
    """
    loaded = load_examples(rules.data, _wanted(config, rules, players))
    if config.data is not None:  # of the runs' own data, training has said it
        for line in remarks(replace(loaded, split=())):  # nobody trains on the other rows here
            report(line)
    examples = distinct_prompts(loaded.heldout)[: config.prompts]
    encodings = [skipping(make_encoding(played_on(player.config, rules))) for player in players]
    sets = [_encoded(examples, encoding, player) for encoding, player in zip(encodings, players, strict=True)]
    common = set.intersection(*(set(prompts.texts) for prompts in sets))
    kept = [example for example in examples if example.text in common]
    if not kept:
        raise InputError("data: no held-out prompt fits into the context of every policy: raise data.max_prompt_tokens")
    if len(kept) < len(examples):
        sets = [_encoded(kept, encoding, player) for encoding, player in zip(encodings, players, strict=True)]
    notes = [*unusable(loaded)]
    if unread := len(examples) - len(kept):
        notes.append(f"Left out, as one of the policies cannot read all of it: {counted(unread, 'prompt')}.")
    return Questions(tuple(sets[0].texts), tuple(sets), tuple(notes))


def _wanted(config: TournamentConfig, rules: Rules, players: Sequence[Player]) -> Wanted:
    """The columns that the judge, the selector and the training preferences read; None for all."""
    judges = [rules.preference, *([config.selector] if config.selector else [])]
    read = [discover()[section.name].columns(section) for section in judges]
    for section in map(training_preference, players if config.hacking_gap else ()):
        with contextlib.suppress(InputError):  # a failing one is reported when it is used
            read += [] if section is None else [discover()[section.name].columns(section)]
    return None if None in read else {name for names in read for name in names or ()}


def _encoded(examples: Sequence[Example], encoding: Encoding, player: Player) -> PromptSet:
    try:
        return PromptSet.build(examples, encoding)
    except InputError as error:
        raise InputError(f"{player.name}: {error}") from None


def introduce(
    lineup: Lineup, questions: Questions, rules: Rules, loader: Loader
) -> Iterator[tuple[int, Policy, str | None, int | None]]:
    """Yield each index of the line-up, its loaded policy, its content key, and the index of an equal policy.

    Raises:
        InputError: a model cannot be loaded, or two of those that were named are the same policy.
    """
    keys: dict[str, int] = {}
    for place in lineup.order():
        player = lineup.players[place]
        policy = loader.load(player)
        key = content_key(policy, player.role, questions.encoded[place], candidates(rules.drawing, player))
        if player.chooser is not None and key is not None:
            # Its candidates are its own: what it plays must be independent of other players' completions.
            key = hashlib.sha256(f"{key} {player.chooser}".encode()).hexdigest()
        twin = None if key is None else keys.setdefault(key, place)
        if twin is not None and twin != place and place < lineup.listed:
            raise InputError(
                f"runs: {lineup.players[twin].name} and {player.name} are the same policy, weight for weight: leave "
                "one out"
            )
        yield place, policy, key, None if twin == place else twin


def sample_all(
    lineup: Lineup,
    questions: Questions,
    rules: Rules,
    loader: Loader,
    cache: CompletionCache,
    report: Callable[[str], None],
) -> tuple[Field, list[Sampled]]:
    """Sample every player's completions, and score them with its reference if that has the same vocabulary.

    If sampling is truncated, nothing is scored: see `truncation`. A player that chooses has all of its candidates, and
    no scores: the probabilities of what it chooses are not known.

    Args:
        lineup: the players.
        questions: the prompts.
        rules: how completions are sampled.
        loader: loads the players in sequence; afterwards it holds a reference.
        cache: stores completions by content.
        report: receives short progress messages.

    Raises:
        InputError: a model is not available, or two players are the same policy.
    """
    drawn: dict[int, Drawn] = {}
    keys: dict[int, str | None] = {}
    vocabularies: dict[int, dict[str, int]] = {}
    ratios: dict[int, Array | None] = {}
    same: dict[int, int] = {}
    truncated = truncation(rules.drawing.top_k, rules.drawing.top_p)

    def relate(other: int, place: int, policy: Policy) -> None:
        """log π/μ of the completions of one player, where μ is the loaded policy, another player."""
        one = drawn[other]
        if truncated or lineup.players[other].chooser or vocabularies[other] != vocabularies[place]:
            ratios[other] = None
            return
        role, prompts = lineup.players[place].role, questions.encoded[place]
        scoring = partial(score, policy, role, prompts, one.tokens, rules.drawing)
        ratios[other] = np.asarray(one.log_probs) - cache.scores(_joined(keys[other], keys[place]), scoring)

    for place, policy, key, twin in introduce(lineup, questions, rules, loader):
        player, prompts = lineup.players[place], questions.encoded[place]
        keys[place], vocabularies[place] = key, policy.tokenizer.get_vocab()
        if twin is None:
            drawing = candidates(rules.drawing, player)
            report(f"{player.name}: {drawing.samples} x {len(prompts)} completions")
            stream = key or player.name
            drawn[place] = cache.drawn(key, partial(draw, policy, player.role, prompts, drawing, stream))
        else:
            same[place] = twin
        for other, reference in enumerate(lineup.references):
            if reference == place and other not in (place, twin):
                relate(other, place, policy)
    field = lineup.settle(same)
    if field.common is not None:  # the last loaded policy
        for other in field.places:
            if other not in ratios and other != field.places[field.common]:
                relate(other, place, policy)
    sampled = []
    for place, (other, reference) in enumerate(zip(field.places, field.references, strict=True)):
        itself = np.zeros((len(drawn[other].texts), rules.drawing.samples))
        sampled.append(Sampled(drawn[other], itself if reference == place and not truncated else ratios.get(other)))
    return field, sampled


def _joined(key: str | None, other: str | None) -> str | None:
    """The cache key of one policy's completions scored by another."""
    return None if key is None or other is None else hashlib.sha256(f"{key} {other}".encode()).hexdigest()
