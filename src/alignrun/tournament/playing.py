"""How a tournament is played: sampled and judged, or exactly on games."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from alignrun.config import ComparedPairs, TournamentConfig
from alignrun.errors import AlignrunError, RunError, one_line
from alignrun.evaluation.comparisons import compare, mean_win_rates
from alignrun.evaluation.completions import CompletionCache, Drawn
from alignrun.evaluation.exact import GameEvaluator
from alignrun.evaluation.results import Answers, Comparison, SeparatingPrompt
from alignrun.evaluation.selection import exact_choice
from alignrun.evaluation.settled import caution
from alignrun.evaluation.tournament_results import (
    Participant,
    Sampled,
    Settings,
    Standing,
    answers,
    exact_standing,
    examples,
    sampled_standing,
    separating,
)
from alignrun.evaluation.truncation import truncation_note
from alignrun.games.files import load_game
from alignrun.models.sources import cache_folder
from alignrun.preferences.base import Preference, build_preference, preference_in_words
from alignrun.security.text import counted
from alignrun.tournament.choosing import choose_all, selection_note
from alignrun.tournament.journal import Journal, Member, journal_file
from alignrun.tournament.lineup import Field, Lineup
from alignrun.tournament.players import Loader
from alignrun.tournament.rules import Rules, training_preference
from alignrun.tournament.sampling import Questions, introduce, read_by_all, sample_all

SEPARATING = 10
"""The number of prompts that the report lists as separating the policies."""


@dataclass(frozen=True, slots=True)
class Played:
    """Everything that a tournament's report needs besides its results."""

    prompts: int
    reference: str | None
    """The name of the common reference."""
    comparisons: tuple[Comparison, ...] = ()
    notes: tuple[str, ...] = ()
    completions: tuple[dict[str, Any], ...] = ()
    """Rows of completions.jsonl."""
    answers: tuple[Answers, ...] = ()
    """The completions by prompt, with their judgments."""
    separating: tuple[SeparatingPrompt, ...] = ()
    """The prompts that separate the policies most."""
    journals: tuple[Journal, ...] = ()
    """Journals of the comparisons, obsolete once the results are saved."""


def standing_of(
    config: TournamentConfig, lineup: Lineup, rules: Rules, report: Callable[[str], None]
) -> tuple[Standing, Played]:
    """Have every player of the line-up play all prompts, and measure where each of them stands.

    Raises:
        AlignrunError: a model or the data is not available, a failing preference, or out of memory.
    """
    questions = read_by_all(config, rules, lineup.players, report)
    loader = Loader(config.device, config.dtype)
    try:
        if rules.exact:
            return _exact(config, lineup, rules, questions, loader)
        cache = CompletionCache(cache_folder() / "completions" if config.cache else None)
        field, sampled = sample_all(lineup, questions, rules, loader, cache, report)
        return _judge(config, field, rules, questions, sampled, loader, report)
    except torch.OutOfMemoryError as error:
        raise RunError(f"out of memory ({one_line(error, 120)}): lower batch_size (now {config.batch_size})") from error


def _exact(
    config: TournamentConfig, lineup: Lineup, rules: Rules, questions: Questions, loader: Loader
) -> tuple[Standing, Played]:
    game, temperature = load_game(rules.preference.game), rules.drawing.temperature
    policies: dict[int, torch.Tensor] = {}
    same: dict[int, int] = {}
    for place, policy, _, twin in introduce(lineup, questions, rules, loader):
        if twin is None:
            evaluator = GameEvaluator(policy, game, questions.encoded[place], temperature)
            policies[place] = evaluator.probabilities(lineup.players[place].role)
            if (chooser := lineup.players[place].chooser) is not None:
                chosen = exact_choice(chooser, game.preferences.double().numpy(), policies[place].double().numpy())
                policies[place] = torch.as_tensor(chosen).to(policies[place])
        else:
            same[place] = twin
    field = lineup.settle(same)
    entries = [
        Participant(player.name, player.source, player.step, reference)
        for player, reference in zip(field.players, field.references, strict=True)
    ]
    note = f"Exact: from the policies' probabilities of the actions of {rules.preference.game}, without sampling."
    standing = exact_standing(
        entries, [policies[place] for place in field.places], game, _settings(config, field, rules)
    )
    notes = (note, *selection_note(field.players, config.selector, rules.preference), *_about(field), *questions.notes)
    return standing, Played(len(questions.texts), field.reference, notes=notes)


def _settings(config: TournamentConfig, field: Field, rules: Rules) -> Settings:
    return Settings(field.common, rules.kl_tau, config.confidence, config.seed)


def _about(field: Field) -> Iterator[str]:
    """What differs if the policies have no common reference."""
    if field.common is not None:
        return
    if any(reference is not None for reference in field.references):
        yield (
            "The policies have different references, which take part: KL, win rate and hacking gap refer to each "
            "policy's own. Elo is 0 on average, and there is no regularised game: choose one reference for all with "
            "reference_policy=."
        )
    unknown = [player.name for player, known in zip(field.players, field.references, strict=True) if known is None]
    if unknown:
        yield (
            f"No KL and no win rate against a reference of {', '.join(unknown)}: what they were trained from is not "
            "known; choose a reference with reference_policy=."
        )


def _judge(
    config: TournamentConfig,
    field: Field,
    rules: Rules,
    questions: Questions,
    sampled: Sequence[Sampled],
    loader: Loader,
    report: Callable[[str], None],
) -> tuple[Standing, Played]:
    players = field.players
    names = [player.name for player in players]
    journals: list[Journal] = []

    def asking(section: Any, content: Sequence[Drawn], built: Preference | None = None) -> Journal:
        """A judge whose answers are stored until the tournament ends."""
        preference = built or build_preference(section, loader.backbone)
        asked = [questions.texts, [[name, one.texts] for name, one in zip(names, content, strict=True)]]
        file = journal_file(cache_folder() / "comparisons", section, asked) if config.cache else None
        journals.append(Journal(preference, file))
        if journals[-1].found:
            report(f"{journals[-1].found} comparisons were stored by an earlier attempt (cache=false repeats them)")
        return journals[-1]

    @contextlib.contextmanager
    def resumable(journal: Journal) -> Iterator[None]:
        try:
            yield
        except AlignrunError:
            if journal.kept:
                report(f"{journal.kept} comparisons are stored: the same command continues from there")
            raise

    notes: list[str] = []
    judge: Preference | None = None
    if any(player.chooser for player in players):
        section = config.selector or rules.preference
        report(f"selector: {preference_in_words(section)}")
        selecting = asking(section, [one.drawn for one in sampled])
        with resumable(selecting):
            sampled, notes = choose_all(players, sampled, questions.texts, selecting, config.seed)
        judge = selecting.release()
        if section != rules.preference:
            judge = None  # two models may not fit in memory
        notes += selection_note(players, config.selector, rules.preference)
    drawn = [one.drawn for one in sampled]
    report(f"judge: {preference_in_words(rules.preference)}")
    preference = asking(rules.preference, drawn, judge)
    with resumable(preference):
        table, *votes = (
            compare(asked, questions.texts, [one.texts for one in drawn], config.pairing)
            for asked in (preference, *(Member(preference, place) for place in range(len(preference.members))))
        )
    notes += [f"{name}: {value:g}" for name, value in preference.counts().items()]
    notes += _about(field)
    if unsettled := caution(len(questions.texts)):
        count = counted(len(questions.texts), "prompt")
        notes.append(f"{count}: {unsettled}, and these results say nothing about other prompts.")
    unscored = [
        one
        for player, one, known in zip(players, sampled, field.references, strict=True)
        if known is not None and not player.chooser
    ]
    if truncated := truncation_note(rules.drawing.top_k, rules.drawing.top_p):
        notes.append(truncated)
    elif any(one.log_ratio is None for one in unscored):
        notes.append("No KL for a policy whose vocabulary differs from its reference's.")
    notes += questions.notes
    if config.pairing is ComparedPairs.matched or config.samples_per_prompt == 1:
        notes.append("No exploitability: it needs several samples of each policy, and pairing=all.")
    training: dict[int, NDArray[np.float64]] = {}
    for section, group in _trained_otherwise(config, field, rules):
        trained = ", ".join(names[place] for place in group)
        report(f"training preference of {trained}: {preference_in_words(section)}")
        try:
            trained_with = asking(section, drawn)
            for place in group:
                reference = field.references[place]
                assert reference is not None
                ours, theirs = drawn[place].texts, drawn[reference].texts
                training[place] = mean_win_rates(trained_with, questions.texts, ours, theirs, config.pairing)
        except (AlignrunError, torch.OutOfMemoryError) as error:
            left = ", ".join(names[place] for place in group if place not in training)
            notes.append(f"No hacking gap of {left}: the training preference failed ({one_line(error, 200)}).")
    entries = [
        Participant(
            name=player.name,
            source=player.source,
            step=player.step,
            reference=reference,
            training_preference=None
            if (section := training_preference(player)) is None
            else preference_in_words(section),
            training_rates=training.get(place),
        )
        for place, (player, reference) in enumerate(zip(players, field.references, strict=True))
    ]
    by_member = dict(zip(preference.members, votes, strict=True))
    standing = sampled_standing(entries, sampled, table, _settings(config, field, rules), by_member)
    if by_member and not standing.judges:
        notes.append("No abilities of the panel's members: it is not settled which policies they agree on.")
    best = max(range(len(players)), key=lambda place: standing.players[place].average.value)
    comparisons = examples(names, questions.texts, drawn, table, best, config.tracker.samples)
    completions = tuple(
        {"prompt": prompt, "player": name, "completion": text, "log_prob": log_prob, "ended": ended}
        for name, one in zip(names, drawn, strict=True)
        for prompt, *row in zip(questions.texts, one.texts, one.log_probs, one.ends, strict=True)
        for text, log_prob, ended in zip(*row, strict=True)
    )
    prompts = len(questions.texts)
    judged = tuple(answers(questions.texts, drawn, table))
    return standing, Played(
        prompts,
        field.reference,
        comparisons,
        tuple(notes),
        completions,
        judged,
        # One comparison of a pair decides nothing about a prompt.
        () if config.samples_per_prompt == 1 else separating(questions.texts, standing.separation, SEPARATING),
        tuple(journals),
    )


def _trained_otherwise(config: TournamentConfig, field: Field, rules: Rules) -> list[tuple[Any, list[int]]]:
    """Each preference other than the judge, with the indices of the players trained with it from a reference."""
    found: list[tuple[Any, list[int]]] = []
    for place, player in enumerate(field.players if config.hacking_gap else ()):
        section = training_preference(player)
        if section is None or section == rules.preference or field.references[place] in (None, place):
            continue
        known = next((group for other, group in found if other == section), None)
        if known is None:
            found.append((section, [place]))
        else:
            known.append(place)
    return found
