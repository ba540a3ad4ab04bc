"""`alignrun data`: what a configuration would train on. It loads the tokenizer, and no weights."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rich.console import Console
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from alignrun.algorithms.base import discover
from alignrun.algorithms.common.feedback import FeedbackAlgorithm
from alignrun.config import BadRows, Config, DataConfig, TooLong
from alignrun.data.dataset import Dataset, Read
from alignrun.data.demonstrations import DemonstrationSet
from alignrun.data.drawn import MANY
from alignrun.data.loading import Loaded, load_examples
from alignrun.data.order import rows_at
from alignrun.data.pairs import PairSet, check_labels
from alignrun.data.prompts import PromptSet
from alignrun.errors import InputError
from alignrun.launch.build import make_encoding, settled
from alignrun.launch.histogram import described, histogram
from alignrun.preferences import base as preferences
from alignrun.security.text import counted, visible

LEARNED, MARKS = "bold green", ("⟦", "⟧")
"""The style of tokens that are learned, and what stands around them where there are no colours."""
LONGEST = 800
"""Characters of a stretch of text; the middle of a longer one is left out."""


def show_data(config: Config, examples: int, console: Console) -> None:
    """Print the rows, why some are left out, the lengths in tokens, and some of the first step's rows.

    Args:
        config: the configuration of the run.
        examples: how many rows to show.
        console: where they are printed.

    Raises:
        InputError: the data cannot be read, no row can be used, or the tokenizer cannot be loaded.
    """
    if examples < 0:
        raise InputError(f"alignrun data: --examples={examples} must not be negative")
    kind, judging = discover()[config.algo.name], preferences.discover()[config.preference.name]
    kind.check(config)
    # Rows that a run would refuse are counted, so that all problems show at once.
    lenient = replace(config.data, bad_rows=BadRows.skip, too_long=TooLong.skip)
    trains_policy = not issubclass(kind, FeedbackAlgorithm)  # which the preference evaluates, also offline
    loaded = load_examples(lenient, judging.columns(config.preference) if trains_policy else ())
    encoding = replace(make_encoding(config), data=lenient)
    step = -(-len(loaded.train) // MANY)
    train = kind.dataset(config.algo, loaded.train[::step] if step > 1 else loaded.train, encoding)
    heldout = kind.dataset(config.algo, loaded.heldout[:MANY], encoding)
    if isinstance(train, PairSet):
        check_labels(train.examples)
    for line in [*_counts(config, loaded, train, heldout, step), *_left_out(config.data, loaded, train, heldout)]:
        console.print(line, highlight=False, soft_wrap=True)
    for name, values in _lengths(train).items():
        console.print(f"\n{name}: {described(values)}", style="bold", highlight=False)
        console.print("\n".join(histogram(values)), highlight=False)
    _show_examples(train, min(examples, len(train)), encoding.tokenizer, console)


def _counts(config: Config, loaded: Loaded, train: Dataset[Any], heldout: Dataset[Any], step: int) -> list[str]:
    data, size = config.data, config.train.batch_size
    place = f" from {data.path}" if data.path else ""
    lines = [f"data={data.name}{place}, as algo={config.algo.name} on model={config.model.name} reads it"]
    if step > 1:
        looked_at = f"{len(train.examples) + train.skipped + train.refused:,} of {counted(len(loaded.train), 'row')}"
        lines.append(f"{looked_at} to train on are looked at, spread evenly; {len(loaded.heldout):,} are held out")
        rows = len(loaded.train)
    else:
        lines.append(f"{counted(len(train), 'row')} to train on, {len(heldout):,} held out")
        rows = len(train)
    config = settled(config, rows)
    steps, epochs = config.train.steps, config.train.steps * size / rows
    lines.append(f"{counted(steps, 'step')} of {counted(size, 'row')}: {epochs:.3g} epochs")
    notes = train.notes() if isinstance(train, DemonstrationSet) else []
    return [*lines, *loaded.notes, *notes]


def _left_out(data: DataConfig, loaded: Loaded, train: Dataset[Any], heldout: Dataset[Any]) -> list[str]:
    """Why rows are left out, and what a run does with them."""
    reasons: dict[str, int] = {}
    for skips in (loaded.skips, train.refusals, heldout.refusals):
        for reason, count in skips.by_reason().items():
            reasons[reason] = reasons.get(reason, 0) + count
    lines = [f"{counted(count, 'row')} left out: {reason}" for reason, count in reasons.items()]
    if reasons and data.bad_rows is BadRows.error:
        lines.append("a run stops at such rows: data.bad_rows=skip leaves them out")
    if long := train.skipped + heldout.skipped:
        limits = "data.max_prompt_tokens, data.max_completion_tokens or the context"
        lines.append(f"{counted(long, 'row')} left out: longer than {limits}")
        if data.too_long is TooLong.error:
            lines.append("a run stops at such rows: data.too_long=skip leaves them out")
    return lines


def _lengths(data: Dataset[Any]) -> Mapping[str, Sequence[int]]:
    rows = [data.lengths(row) for row in range(len(data))]
    return {name: [row[name] for row in rows] for name in rows[0]}


def _show_examples(data: Dataset[Any], count: int, tokenizer: PreTrainedTokenizerBase, console: Console) -> None:
    colours = console.color_system is not None and not console.no_color
    for number, row in enumerate(rows_at(0, count, len(data), data.seed)):
        if not number:
            console.print(f"\n{_legend(data, colours)}", style="dim", highlight=False)
        for read in data.shown(row):
            console.print(f"\n{data.examples[row].origin}, {read.name}", style="bold", highlight=False)
            console.print(_text(read, tokenizer, colours), soft_wrap=not console.is_terminal)


def _legend(data: Dataset[Any], colours: bool) -> str:
    if isinstance(data, PromptSet):
        return "the first prompts of the run; completions are sampled"
    if isinstance(data, PairSet) and data.encoded[0].plain is not None:
        return "the first rows of the run; the whole text is scored, and none of its tokens are learned"
    return f"the first rows of the run; learned tokens are {'green' if colours else 'between ' + ' and '.join(MARKS)}"


def _text(read: Read, tokenizer: PreTrainedTokenizerBase, colours: bool) -> Text:
    """The tokens as text, those that are learned marked."""
    shown, place = Text(), 0
    for start, end in (*read.learned, (len(read.ids), len(read.ids))):
        shown.append(_printable(_between(read.ids, place, start, tokenizer)))
        if learned := _between(read.ids, start, end, tokenizer):
            opening, closing = ("", "") if colours else MARKS
            shown.append(f"{opening}{_printable(learned)}{closing}", style=LEARNED if colours else "")
        place = end
    return shown


def _between(ids: Sequence[int], start: int, end: int, tokenizer: PreTrainedTokenizerBase) -> str:
    """The text of some tokens as it follows those before: by itself, its first space may be lost."""
    if start == end:
        return ""
    options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    stretches = (ids[:start], ids[:end], ids[start:end])
    before, whole, alone = (str(tokenizer.decode(list(stretch), **options)) for stretch in stretches)
    return whole.removeprefix(before) if whole.startswith(before) else alone


def _printable(text: str) -> str:
    text, half = visible(text), LONGEST // 2  # before rich, which would leave control characters out
    return text if len(text) <= LONGEST else f"{text[:half]} […{len(text) - LONGEST:,} characters…] {text[-half:]}"
