"""`alignrun eval-preference`: ask a preference about labelled pairs, and say how good it is."""

import contextlib
import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from alignrun.assessment.overlap import trained_on
from alignrun.assessment.questions import PairQuestions, read_pairs
from alignrun.config import JudgedRows, PreferenceEvaluationConfig
from alignrun.errors import InputError, RunError, one_line
from alignrun.evaluation.calibration import Floats, reliability
from alignrun.evaluation.preference_quality import AssessedPairs, measure_quality
from alignrun.evaluation.rewardbench import section_scores
from alignrun.launch import compose
from alignrun.launch.checks import chosen_preference
from alignrun.launch.train import remove_empty_run
from alignrun.preferences.base import Preference, Reward, build_preference, preference_in_words
from alignrun.reports.preference_page import (
    PreferenceResult,
    accuracy_headline,
    category_rows,
    measure_rows,
    preference_page,
)
from alignrun.reports.text import clip
from alignrun.run.directory import RunDirectory, environment, write_text_atomic
from alignrun.run.fresh import fresh_directory
from alignrun.security.text import counted
from alignrun.types import Example

CHUNK = 128
"""Pairs judged in one call; progress is printed after each call."""
SHOWN = 24
"""Categories on the terminal; the report has all."""
RESULT_FILE, JUDGMENTS_FILE = "preference.json", "judgments.jsonl"


def evaluate(config: PreferenceEvaluationConfig, arguments: Sequence[str], console: Console) -> int:
    """Evaluate a preference; the exit code.

    Args:
        config: of the evaluation.
        arguments: of the command, for the report.
        console: receives progress messages and the table.

    Raises:
        AlignrunError: bad input, or a preference that fails.
    """

    def report(text: str) -> None:
        console.print(Text(text, style="dim"), soft_wrap=True)

    kind = chosen_preference(config.preference)
    kind.check(config.preference)
    run = RunDirectory.create(config.run.dir or fresh_directory(Path("runs") / "preferences"))
    with contextlib.closing(run):
        try:
            write_text_atomic(run.environment_file, json.dumps(environment(), indent=2))
            questions = read_pairs(config, kind, report)
            report(f"preference: {preference_in_words(config.preference)}")
            preference = build_preference(config.preference)
            preference.check(questions.examples)
            result, judged = _measure(config, preference, questions, arguments, report)
        except BaseException:
            remove_empty_run(run)
            raise
        _keep(run, result, judged, console)
    return 0


def _measure(
    config: PreferenceEvaluationConfig,
    preference: Preference,
    questions: PairQuestions,
    arguments: Sequence[str],
    report: Callable[[str], None],
) -> tuple[PreferenceResult, AssessedPairs]:
    try:
        probabilities, orders = judge(preference, questions.examples, report)
        known = np.flatnonzero(~np.isnan(probabilities)).tolist()
        if not known:
            raise RunError(f"preference={config.preference.name} could judge none of {len(probabilities):,} pairs")
        judged = AssessedPairs(
            [questions.examples[row] for row in known],
            probabilities[known],
            None if orders is None else orders[known],
            None if questions.categories is None else [questions.categories[row] for row in known],
        )
        # A reward is transitive, and its answers for further pairs would cost more passes.
        ask = None if isinstance(preference, Reward) else partial(_complete, preference, report=report)
        quality = measure_quality(judged, ask, config.triples, config.confidence, config.seed)
    except torch.OutOfMemoryError as error:
        raise RunError(f"out of memory ({one_line(error, 120)}): lower preference.batch_tokens") from error
    if quality is None:
        raise InputError(
            f"data: no preference in {counted(len(known), 'pair')}, all ties: nothing to be right about; check "
            "data.columns.label or data.columns.votes"
        )
    left_out = len(probabilities) - len(known)
    notes = [*questions.notes]
    for path in trained_on(config.preference, config.data) if config.rows is JudgedRows.all else ():
        notes.append(f"{path} was trained on rows of these data: rows=heldout leaves them out.")
    notes += [f"{name}: {value:g}" for name, value in preference.counts().items()]
    if left_out:
        notes.append(f"Left out: {counted(left_out, 'pair')} that could not be judged.")
    if isinstance(preference, Reward):
        notes.append("A reward is transitive: no triple is asked.")
    elif quality.intransitivity is None and config.triples:
        notes.append("No triple is asked: no prompt has three answers to compare.")
    path = config.data.path or ", ".join(filter(None, [config.data.game]))
    return PreferenceResult(
        preference=preference_in_words(config.preference),
        data=f"{config.data.name} ({path})" if path else config.data.name,
        quality=quality,
        category=questions.column if questions.categories is not None else None,
        sections=section_scores(quality.categories),
        left_out=left_out,
        notes=tuple(notes),
        confidence=config.confidence,
        command=shlex.join(["alignrun", "eval-preference", *arguments]),
        config=compose.dump(config),
        versions=environment()["versions"],
    ), judged


def judge(
    preference: Preference, examples: Sequence[Example], report: Callable[[str], None]
) -> tuple[Floats, Floats | None]:
    """[N] P(chosen ≻ rejected), NaN if the preference cannot judge, and [N, 2] the same in each order."""
    probabilities, orders = [], []
    for start in range(0, len(examples), CHUNK):
        part = examples[start : start + CHUNK]
        chosen, rejected = [str(one.chosen) for one in part], [str(one.rejected) for one in part]
        said = preference.judge([one.asked for one in part], chosen, rejected)
        probabilities.append(said.probabilities.double().numpy())
        if said.orders is not None:
            orders.append(said.orders.double().numpy())
        if len(examples) > CHUNK:
            report(f"judged {start + len(part):,} of {len(examples):,} pairs")
    if not probabilities:
        return np.zeros(0), None
    return np.concatenate(probabilities), np.concatenate(orders) if orders else None


def _complete(preference: Preference, examples: Sequence[Example], report: Callable[[str], None]) -> Floats:
    """[N] P(chosen ≻ rejected) of the pairs that complete triples."""
    report(f"{counted(len(examples), 'more pair')} to complete triples")
    return judge(preference, examples, report)[0]


def _keep(run: RunDirectory, result: PreferenceResult, judged: AssessedPairs, console: Console) -> None:
    """Save the numbers and the page, and print the table."""
    write_text_atomic(run.path / RESULT_FILE, json.dumps(asdict(result), indent=2, ensure_ascii=False))
    write_text_atomic(run.config_file, result.config)
    write_text_atomic(run.path / JUDGMENTS_FILE, "".join(f"{json.dumps(row)}\n" for row in _judgments(judged)))
    labels = [example.label for example in judged.examples]
    write_text_atomic(run.report_file, preference_page(result, reliability(judged.probabilities, labels)))
    console.print(_table(result), highlight=False)
    if result.quality.categories:
        console.print(_categories(result), highlight=False)
    for line in (*accuracy_headline(result), *result.notes):
        console.print(Text(line), soft_wrap=True)
    for name, where in (("report", run.report_file), ("results", run.path / RESULT_FILE)):
        console.print(Text(f"{name}  {where}"), soft_wrap=True)


def _judgments(judged: AssessedPairs) -> list[dict[str, object]]:
    """A row for each pair: what people and the preference say."""
    orders = [None] * len(judged.examples) if judged.orders is None else judged.orders.tolist()
    categories: Sequence[str | None] = judged.categories or [None] * len(judged.examples)
    return [
        {
            "origin": example.origin,
            "prompt": example.text,
            "chosen": example.chosen,
            "rejected": example.rejected,
            "label": example.label,
            "probability": probability,
            "in_each_order": order,
            "category": category,
        }
        for example, probability, order, category in zip(
            judged.examples, judged.probabilities.tolist(), orders, categories, strict=True
        )
    ]


def _table(result: PreferenceResult) -> Table:
    table = Table(
        title=Text(f"{clip(result.preference, 60)} on {clip(result.data, 60)}"),
        show_header=False,
        caption=f"[ ]: {result.confidence:.0%} interval over {counted(result.quality.prompts, 'prompt')}",
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("")
    table.add_column("", justify="right")
    table.add_column("")
    for name, found in measure_rows(result):
        table.add_row(Text(clip(name, 44)), found.value, found.interval)
    return table


def _categories(result: PreferenceResult) -> Table:
    found = category_rows(result.quality.categories)
    more = f"the {SHOWN} largest of {len(found)}: the report has all" if len(found) > SHOWN else None
    table = Table(
        title=Text(f"Accuracy by {result.category}"), caption=more, title_justify="left", caption_justify="left"
    )
    table.add_column("")
    table.add_column("pairs", justify="right")
    table.add_column("accuracy", justify="right")
    table.add_column("")
    for name, pairs, accuracy in found[:SHOWN]:
        table.add_row(Text(clip(name, 36)), pairs.value, accuracy.value, accuracy.interval)
    return table
