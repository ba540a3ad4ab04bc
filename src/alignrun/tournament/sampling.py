"""Every player's completions for the same prompts, one player loaded at a time."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from alignrun.algorithms.base import Encoding, prompt_set
from alignrun.build import distinct_prompts, make_encoding, skipping
from alignrun.config import TournamentConfig
from alignrun.data import PromptSet, load_examples
from alignrun.errors import InputError
from alignrun.evaluation.completions import CompletionCache, Drawn, content_key, draw, score
from alignrun.evaluation.tournament import Sampled
from alignrun.evaluation.truncation import truncation
from alignrun.tournament.players import Loader, Player
from alignrun.tournament.rules import Rules, played_on
from alignrun.types import Example


@dataclass(frozen=True, slots=True)
class Questions:
    """The prompts that every player can read, in its own encoding."""

    texts: tuple[str, ...]
    encoded: tuple[PromptSet, ...]
    """One set for each player, all of the same prompts."""
    left_out: int
    """Prompts that are too long for one of them."""


def ask(config: TournamentConfig, rules: Rules, players: Sequence[Player]) -> Questions:
    """Encode the held-out prompts for every player; what one cannot read, nobody is asked.

    Raises:
        InputError: the data or a tokenizer is not to be had, or no prompt is left.
    """
    examples = distinct_prompts(load_examples(rules.data).heldout)[: config.prompts]
    encodings = [skipping(make_encoding(played_on(player.config, rules))) for player in players]
    sets = [_encoded(examples, encoding, player) for encoding, player in zip(encodings, players, strict=True)]
    common = set.intersection(*(set(prompts.texts) for prompts in sets))
    kept = [example for example in examples if example.text in common]
    if not kept:
        raise InputError("data: no held-out prompt fits into the context of every policy: raise data.max_prompt_tokens")
    if len(kept) < len(examples):
        sets = [_encoded(kept, encoding, player) for encoding, player in zip(encodings, players, strict=True)]
    return Questions(sets[0].texts, tuple(sets), len(examples) - len(kept))


def _encoded(examples: Sequence[Example], encoding: Encoding, player: Player) -> PromptSet:
    try:
        return prompt_set(examples, encoding)
    except InputError as error:
        raise InputError(f"{player.name}: {error}") from None


def sample_all(
    players: Sequence[Player],
    reference: int,
    questions: Questions,
    rules: Rules,
    loader: Loader,
    cache: CompletionCache,
    report: Callable[[str], None],
) -> list[Sampled]:
    """Draw the completions of every player, and have the reference μ, loaded last, score those of its vocabulary.

    Where sampling is truncated there is nothing to score: see `truncation`.

    Args:
        players: who takes part.
        reference: the place of μ.
        questions: what they are asked.
        rules: how completions are drawn.
        loader: loads one player after another; μ is what it holds in the end.
        cache: keeps completions by content.
        report: told in a few words what is happening.

    Raises:
        InputError: a model is not to be had, or two players are the same policy.
    """
    drawn: dict[int, Drawn] = {}
    keys: dict[int, str | None] = {}
    vocabularies: dict[int, dict[str, int]] = {}
    for place in [*(place for place in range(len(players)) if place != reference), reference]:
        player, prompts = players[place], questions.encoded[place]
        report(f"{player.name}: {rules.drawing.samples} x {len(prompts)} completions")
        policy = loader.load(player)
        key = content_key(policy, player.role, prompts, rules.drawing)
        twins = [players[other].name for other, known in keys.items() if key is not None and known == key]
        if twins:
            raise InputError(
                f"runs: {twins[0]} and {player.name} are the same policy, weight for weight: leave one out"
            )
        keys[place], vocabularies[place] = key, policy.tokenizer.get_vocab()
        drawn[place] = cache.drawn(key, partial(draw, policy, player.role, prompts, rules.drawing, key or player.name))
    sampled = []
    for place in range(len(players)):
        one = drawn[place]
        if truncation(rules.drawing.top_k, rules.drawing.top_p):
            ratios = None
        elif place == reference:
            ratios = np.zeros((len(one.texts), rules.drawing.samples))
        elif vocabularies[place] != vocabularies[reference]:
            ratios = None
        else:
            scoring = partial(score, policy, player.role, questions.encoded[reference], one.tokens, rules.drawing)
            ratios = np.asarray(one.log_probs) - cache.scores(_joined(keys[place], keys[reference]), scoring)
        sampled.append(Sampled(one, ratios))
    return sampled


def _joined(key: str | None, other: str | None) -> str | None:
    """The key of one policy's completions scored by another."""
    return None if key is None or other is None else hashlib.sha256(f"{key} {other}".encode()).hexdigest()
