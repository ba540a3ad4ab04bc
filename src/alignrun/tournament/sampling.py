"""Every player's completions for the same prompts, one player loaded at a time."""

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from alignrun.config import TournamentConfig
from alignrun.data.columns import Wanted
from alignrun.data.encoding import Encoding
from alignrun.data.loading import load_examples
from alignrun.data.prompts import PromptSet
from alignrun.errors import InputError
from alignrun.evaluation.completions import CompletionCache, Drawn, content_key, draw, score
from alignrun.evaluation.tournament_results import Array, Sampled
from alignrun.evaluation.truncation import truncation
from alignrun.launch.build import distinct_prompts, make_encoding, skipping
from alignrun.models.policy import Policy
from alignrun.preferences.base import discover
from alignrun.tournament.lineup import Field, Lineup
from alignrun.tournament.players import Loader, Player
from alignrun.tournament.rules import Rules, played_on, training_preference
from alignrun.types import Example


@dataclass(frozen=True, slots=True)
class Questions:
    """The prompts that every player can read, in its own encoding."""

    texts: tuple[str, ...]
    encoded: tuple[PromptSet, ...]
    """One set for each player, all of the same prompts."""
    left_out: int
    """Prompts that are too long for one of them."""


def read_by_all(config: TournamentConfig, rules: Rules, players: Sequence[Player]) -> Questions:
    """Encode the held-out prompts for every player; prompts too long for one player are dropped for all.

    Raises:
        InputError: the data or a tokenizer is not available, or no prompt is left.
    """
    examples = distinct_prompts(load_examples(rules.data, _wanted(config, rules, players)).heldout)[: config.prompts]
    encodings = [skipping(make_encoding(played_on(player.config, rules))) for player in players]
    sets = [_encoded(examples, encoding, player) for encoding, player in zip(encodings, players, strict=True)]
    common = set.intersection(*(set(prompts.texts) for prompts in sets))
    kept = [example for example in examples if example.text in common]
    if not kept:
        raise InputError("data: no held-out prompt fits into the context of every policy: raise data.max_prompt_tokens")
    if len(kept) < len(examples):
        sets = [_encoded(kept, encoding, player) for encoding, player in zip(encodings, players, strict=True)]
    return Questions(tuple(sets[0].texts), tuple(sets), len(examples) - len(kept))


def _wanted(config: TournamentConfig, rules: Rules, players: Sequence[Player]) -> Wanted:
    """The columns of the rows that the judge and the training preferences read; None for all of them."""
    read = [discover()[rules.preference.name].columns(rules.preference)]
    for section in map(training_preference, players if config.hacking_gap else ()):
        with contextlib.suppress(InputError):  # one that fails says so when it is asked
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
    """Each place of the line-up with its policy, loaded, the key of its content, and whose place has the same.

    Raises:
        InputError: a model cannot be loaded, or two of those that were named are the same policy.
    """
    keys: dict[str, int] = {}
    for place in lineup.order():
        player = lineup.players[place]
        policy = loader.load(player)
        key = content_key(policy, player.role, questions.encoded[place], rules.drawing)
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
    """Draw the completions of all players, and score those in its own vocabulary with each player's reference.

    Where sampling is truncated there is nothing to score: see `truncation`.

    Args:
        lineup: who takes part.
        questions: what they are asked.
        rules: how completions are drawn.
        loader: loads one player after another; a reference is what it holds in the end.
        cache: keeps completions by content.
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
        """log π/μ of the completions at one place by the policy loaded, μ, which stands at another."""
        one = drawn[other]
        if truncated or vocabularies[other] != vocabularies[place]:
            ratios[other] = None
            return
        role, prompts = lineup.players[place].role, questions.encoded[place]
        scoring = partial(score, policy, role, prompts, one.tokens, rules.drawing)
        ratios[other] = np.asarray(one.log_probs) - cache.scores(_joined(keys[other], keys[place]), scoring)

    for place, policy, key, twin in introduce(lineup, questions, rules, loader):
        player, prompts = lineup.players[place], questions.encoded[place]
        keys[place], vocabularies[place] = key, policy.tokenizer.get_vocab()
        if twin is None:
            report(f"{player.name}: {rules.drawing.samples} x {len(prompts)} completions")
            stream = key or player.name
            drawn[place] = cache.drawn(key, partial(draw, policy, player.role, prompts, rules.drawing, stream))
        else:
            same[place] = twin
        for other, reference in enumerate(lineup.references):
            if reference == place and other not in (place, twin):
                relate(other, place, policy)
    field = lineup.settle(same)
    if field.common is not None:  # the policy that was loaded last
        for other in field.places:
            if other not in ratios and other != field.places[field.common]:
                relate(other, place, policy)
    sampled = []
    for place, (other, reference) in enumerate(zip(field.places, field.references, strict=True)):
        itself = np.zeros((len(drawn[other].texts), rules.drawing.samples))
        sampled.append(Sampled(drawn[other], itself if reference == place and not truncated else ratios.get(other)))
    return field, sampled


def _joined(key: str | None, other: str | None) -> str | None:
    """The key of one policy's completions scored by another."""
    return None if key is None or other is None else hashlib.sha256(f"{key} {other}".encode()).hexdigest()
