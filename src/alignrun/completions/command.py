"""Draw the completions of a policy for the prompts of a data set, label them if asked to, and write them."""

import contextlib
import hashlib
import json
import shlex
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.text import Text

from alignrun.completions.partial import Partial, refuse_existing
from alignrun.completions.rows import (
    COLUMNS,
    OutputRow,
    alpaca_row,
    arena_row,
    check_prompts,
    completion_rows,
    file_text,
    pair_row,
)
from alignrun.config import ComparedPairs, Config, DataConfig, Format, GenerateConfig, Rows
from alignrun.config.selection import check_unused
from alignrun.data.loading import load_examples, load_in_order, remarks
from alignrun.data.prompts import PromptSet
from alignrun.errors import InputError, RunError, one_line
from alignrun.evaluation.comparisons import compare
from alignrun.evaluation.completions import Drawing, content_key, draw
from alignrun.evaluation.selection import chosen
from alignrun.launch.build import distinct_prompts, make_encoding
from alignrun.launch.compose import plain
from alignrun.models.policy import Policy
from alignrun.preferences.base import Preference, build_preference, discover, preference_in_words
from alignrun.security.text import counted
from alignrun.tournament.choosing import candidates, find_chooser
from alignrun.tournament.journal import stamps
from alignrun.tournament.players import Loader, Player, reference_of, rule_of
from alignrun.types import Example

VERSION = 1
"""The version of an unfinished file; increment it when the same command gives other rows."""
SECONDS = 10.0
"""Between two lines of progress."""


@dataclass(frozen=True, slots=True)
class Written:
    """A file of completions."""

    path: Path
    rows: int
    prompts: int
    without_pair: int = 0
    """Prompts whose completions tie, are equal or blank (format=pairs)."""


def generate(source: str, reference: bool, config: GenerateConfig, console: Console) -> Written:
    """Write the completions of a policy to a new file.

    Args:
        source: a run, a checkpoint, a model of `alignrun ls model`, a model folder or a hub id.
        reference: whether to sample the run's reference.
        config: what is drawn, and where it is written.
        console: receives progress messages.

    Raises:
        InputError: the policy, the data or the preference is not available, or the file exists.
        RunError: out of memory, a preference that fails, or a file that cannot be written.
    """

    def report(text: str) -> None:
        console.print(Text(text, style="dim"), soft_wrap=True)

    assert config.out is not None
    out = Path(config.out).expanduser().absolute()
    refuse_existing(out)
    judged = config.format is Format.pairs or rule_of(source) is not None
    if config.preference is not None and not judged:
        raise InputError(f"config: preference labels pairs, and format={config.format.name} has none")
    asked = ["model", *["data"] * (config.data is None), *["preference"] * (judged and config.preference is None)]
    player = find_chooser(config, source, sections=asked)
    player = reference_of(player) if reference else player
    if not player.chooser:
        check_unused(config)
    data, preference = _brought(config, player)
    examples = _examples(config, data, preference, report)
    drawing = Drawing(
        samples=config.drawn,
        max_new_tokens=config.max_new_tokens or player.max_new_tokens,
        temperature=config.temperature or player.temperature,
        top_k=config.top_k,
        top_p=config.top_p,
        batch_size=config.batch_size,
        seed=config.seed,
    )
    drawing = candidates(drawing, player)
    generation = replace(player.config.generation, max_new_tokens=drawing.max_new_tokens)
    prompts = PromptSet.build(examples, make_encoding(replace(player.config, data=data, generation=generation)))
    if prompts.skipped + prompts.refused:
        report(f"data: skipped {counted(prompts.skipped + prompts.refused, 'prompt')}, too long or not readable")
    loader = Loader(config.device, config.dtype)
    try:
        policy = loader.load(player)
        judge = None
        if preference is not None:
            report(f"{'selector' if player.chooser else 'judge'}: {preference_in_words(preference)}")
            judge = build_preference(preference, loader.backbone)
            judge.check(prompts.examples)
        key = _key(policy, player, prompts, drawing, config, preference)
        with contextlib.closing(Partial(out, key)) as partial:
            writer = _Writer(config, player, policy, judge, prompts, drawing, key)
            _fill(partial, writer, report)
            rows = [row for batch in partial.batches for row in batch]
            kept = [row for row in rows if row is not None]
            if not kept:
                raise RunError(
                    f"none of {counted(len(prompts), 'prompt')} has two completions of which one is preferred: raise "
                    "samples or temperature"
                )
            partial.publish(file_text(kept, config.format))
    except torch.OutOfMemoryError as error:
        raise RunError(f"out of memory ({one_line(error, 120)}): lower batch_size (now {config.batch_size})") from error
    written = Written(out, len(kept), len(prompts), len(rows) - len(kept))
    for line in _summary(written, player, config, drawing):
        console.print(Text(line), soft_wrap=True)
    return written


def _brought(config: GenerateConfig, player: Player) -> tuple[DataConfig, Any]:
    """The data, and the section of the preference that labels or chooses. Raises InputError if they are not given."""
    run: Config | None = player.trained_from
    if config.data is None and run is None:
        raise InputError(f"config: data must be given, since {player.source} was not trained here: data=NAME")
    data = config.data if run is None or config.data is not None else run.data
    assert data is not None
    if config.format is not Format.pairs and player.chooser is None:
        return data, None
    if config.format is Format.pairs and player.chooser is not None:
        raise InputError(
            f"config: format=pairs takes the best and the worst of all samples, and {player.source} keeps one of "
            f"{player.chooser.candidates}: leave out the rule, or choose format=jsonl"
        )
    preference = config.preference if run is None or config.preference is not None else run.preference
    if preference is None or preference.name == "none":
        needs = "format=pairs needs something that labels them"
        if player.chooser is not None:
            needs = f"{player.source} needs something that chooses"
        raise InputError(f"config: {needs}: choose preference=NAME")
    discover()[preference.name].check(preference)
    return data, preference


def _examples(
    config: GenerateConfig, data: DataConfig, preference: Any, report: Callable[[str], None]
) -> list[Example]:
    wanted: Collection[str] | None = COLUMNS.get(config.format, ())
    if preference is not None:
        wanted = discover()[preference.name].columns(preference)
    found: Sequence[Example]
    if config.rows in (None, Rows.all):
        ordered = load_in_order(data, wanted, apart=config.rows is Rows.all or config.format is not Format.pairs)
        found, lines = ordered.examples, remarks(ordered)
        if ordered.apart:
            report("data: its held-out rows are left out (rows=all takes them too)")
    else:
        loaded = load_examples(data, wanted)
        found, lines = (loaded.train if config.rows is Rows.train else loaded.heldout), remarks(loaded)
    for line in lines:
        report(line)
    examples = distinct_prompts(found) if config.format is Format.pairs else list(found)
    if len(examples) < len(found):
        report(f"data: {counted(len(found), 'row')} with {counted(len(examples), 'different prompt')}")
    examples = examples[: config.prompts]
    check_prompts(examples, config.format)
    return examples


def _key(
    policy: Policy, player: Player, prompts: PromptSet, drawing: Drawing, config: GenerateConfig, preference: Any
) -> str:
    """A digest of all that the rows depend on; the files of a judge count by size and time."""
    content = content_key(policy, player.role, prompts, drawing)
    if content is None:  # quantised weights have no digest: their place and time stand for them
        stamp = None if player.checkpoint is None else player.checkpoint.stat().st_mtime_ns
        content = json.dumps([player.source, str(player.checkpoint), stamp, repr(player.config.model)])
    section = None if preference is None else plain(preference)
    texts = [example.asked.identity for example in prompts.examples]
    parts = [VERSION, content, texts, asdict(drawing), config.format.name, _generator(config, player), section]
    parts += [] if player.chooser is None else [repr(player.chooser)]
    parts += stamps(section)
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _generator(config: GenerateConfig, player: Player) -> str:
    return config.generator or player.name


@dataclass(frozen=True, slots=True)
class _Writer:
    """Makes the rows of a batch; those of one batch do not depend on others."""

    config: GenerateConfig
    player: Player
    policy: Policy
    judge: Preference | None
    prompts: PromptSet
    drawing: Drawing
    key: str

    def rows(self, number: int, places: Sequence[int]) -> list[OutputRow | None]:
        """The rows for these prompts; None for a prompt without a pair."""
        batch = self.prompts.part(places)
        examples = batch.examples
        scored, stream = self.config.format is Format.jsonl, f"{self.key} {number}"
        drawn = draw(self.policy, self.player.role, batch, self.drawing, stream, scored=scored)
        if self.player.chooser is not None:
            assert self.judge is not None
            drawn, _ = chosen(drawn, self.player.chooser, self.judge, batch.texts, stream)
        generator = _generator(self.config, self.player)
        match self.config.format:
            case Format.jsonl:
                each = zip(examples, drawn.texts, drawn.log_probs, drawn.ends, strict=True)
                return [row for one in each for row in completion_rows(*one)]
            case Format.alpaca_eval:
                return [alpaca_row(one, texts[0], generator) for one, texts in zip(examples, drawn.texts, strict=True)]
            case Format.arena_hard:
                return [arena_row(one, texts[0], generator) for one, texts in zip(examples, drawn.texts, strict=True)]
        assert self.judge is not None
        tables = compare(self.judge, batch.texts, [drawn.texts], ComparedPairs.all)[:, 0, :, 0, :]
        return [pair_row(*one) for one in zip(examples, drawn.texts, tables, strict=True)]


def _fill(partial: Partial, writer: _Writer, report: Callable[[str], None]) -> None:
    """Add the batches that are missing."""
    batches = list(writer.prompts.all_rows(writer.drawing.batch_size))
    done = len(partial.batches)
    if done:
        report(f"{done} of {len(batches)} batches are known from {partial.path}")
    report(f"{writer.player.name}: {writer.drawing.samples} x {len(writer.prompts)} completions")
    said = time.monotonic()
    for number in range(done, len(batches)):
        partial.add(writer.rows(number, batches[number]))
        if time.monotonic() - said >= SECONDS and number + 1 < len(batches):
            said = time.monotonic()
            report(f"{sum(map(len, batches[: number + 1]))} of {counted(len(writer.prompts), 'prompt')}")


def _summary(written: Written, player: Player, config: GenerateConfig, drawing: Drawing) -> list[str]:
    lines = [f"{counted(written.rows, 'row')} of {counted(written.prompts, 'prompt')} written to {written.path}"]
    lines += [f"at temperature {drawing.temperature:g}, at most {counted(drawing.max_new_tokens, 'token')} each"]
    if written.without_pair:
        lines += [f"{counted(written.without_pair, 'prompt')} left out: their completions are equal, blank or tied"]
    if config.format is Format.pairs:
        model = player.config.model
        command = [
            "alignrun",
            "algo=dpo",
            f"model={model.name}",
            *([f"model.path={model.path}"] if model.name == "path" else []),
        ]
        command += ["data=jsonl", f"data.path={written.path}"]
        if player.checkpoint is not None:
            command += ["reference=adapter", f"reference.path={player.source}"]
        lines += [f"train on them with {shlex.join(command)}"]
    return lines
