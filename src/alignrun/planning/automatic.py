"""What `auto` stands for: the largest batches that fit a GPU, and recomputed activations only where they must be."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any

from alignrun.algorithms.base import discover
from alignrun.algorithms.common.workload import workload
from alignrun.config import AUTO, AdapterKind, Config
from alignrun.errors import InputError
from alignrun.models.decoding.replay import why_not_recorded
from alignrun.models.sources import planned_architecture
from alignrun.objectives.likelihood import CHUNK_SIZE
from alignrun.planning.plan import MOST_PROMPTS, completion_tokens, drawing_bytes, resident_plan, training_bytes
from alignrun.security.text import counted

GIB = 2**30
USABLE = 0.9
"""Fraction of a GPU that a plan may fill; the rest is for the CUDA context, fragmentation and kernel workspaces."""
MICRO, CHUNK = "train.micro_batch_size", "generation.batch_size"
CHECKPOINTING, GRAPHS = "model.gradient_checkpointing", "model.cuda_graphs"
KEYS = (MICRO, CHUNK, CHECKPOINTING, GRAPHS)
"""What `choose` sets where it is `auto`."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A configuration in which nothing is `auto` that a plan can choose."""

    config: Config
    why: tuple[str, ...]
    """One line for each value that was chosen: `key=value: reason`."""


def choose(config: Config, memory: float | None, processes: int = 1, shards: int = 1) -> Choice:
    """Replace `auto` in `generation.batch_size`, `train.micro_batch_size` and `model.gradient_checkpointing`.

    On a GPU they are the most prompts that fit, spread evenly over as many passes, and no checkpointing if the smallest
    pass fits without it. On a CPU they are the whole batch and no checkpointing. `model.cuda_graphs` becomes false for
    a model whose steps cannot be recorded.

    Args:
        config: the run.
        memory: the free bytes of the GPU; None for a CPU.
        processes: that share the batch.
        shards: processes that share the base.

    Raises:
        InputError: as `make_plan`.
    """
    if memory is None:
        return Choice(with_choices(config, {MICRO: None, CHUNK: None, CHECKPOINTING: False}), ())
    share = -(-config.train.batch_size // processes)
    why = []
    if config.model.cuda_graphs == AUTO:
        architecture, attention = planned_architecture(config.model), config.model.attention.value
        new = config.generation.max_new_tokens
        if graphs := why_not_recorded(architecture, attention, new + 1):
            config = replace(config, model=replace(config.model, cuda_graphs=False))
            why.append(f"model.cuda_graphs=false: {graphs}")
        elif some := why_not_recorded(architecture, attention, new + (config.data.max_prompt_tokens or new)):
            why.append(f"model.cuda_graphs=auto: not for batches of which {some}")
    if AUTO not in (config.generation.batch_size, config.train.micro_batch_size, config.model.gradient_checkpointing):
        return Choice(config, tuple(why))
    room = USABLE * memory - resident_plan(config, shards).resident
    recomputing = config.model.gradient_checkpointing
    if recomputing == AUTO:
        least = min(config.train.micro or 1, share)
        needed = training_bytes(_recomputing(config, False), least, shards=shards)
        recomputing = needed > room and _can_recompute(config, least)
        why.append(
            f"model.gradient_checkpointing={str(recomputing).lower()}: {_needed(needed, room)} for "
            f"{counted(least, 'prompt')} without it"
        )
    config = _recomputing(config, recomputing)
    micro, chunk = config.train.micro_batch_size, config.generation.batch_size
    if micro == AUTO:
        micro = evenly(share, learned_that_fit(config, room, share, shards))
        reason = _reason(micro, share, lambda rows: learning_bytes(config, rows, shards), room, 1)
        why.append(f"train.micro_batch_size={micro}: {reason}")
    if chunk == AUTO and discover()[config.algo.name].online:
        each = evenly(share, drawn_that_fit(config, room, share))
        chunk = min(each * processes, config.train.batch_size)
        reason = _reason(each, share, lambda rows: drawing_bytes(config, rows), room, processes)
        why.append(f"generation.batch_size={chunk}: {reason}")
    chosen = {MICRO: micro, CHUNK: None if chunk == AUTO else chunk, CHECKPOINTING: recomputing}
    return Choice(with_choices(config, chosen), tuple(why))


def choices(config: Config, chosen: Config) -> dict[str, Any]:
    """Key → what was chosen where `config` says `auto`. Checkpoints record it: a resumed run keeps its choices.

    Empty if nothing was limited, as on a CPU, so that a GPU on which the run is resumed has its own.
    """
    found = {key: _get(chosen, key) for key in KEYS if _get(config, key) == AUTO != _get(chosen, key)}
    return found if any(found.values()) else {}


def with_choices(config: Config, chosen: Mapping[str, Any]) -> Config:
    """The configuration with these values where it says `auto`. Raises InputError for a value that is not valid."""
    for key in KEYS:
        if key in chosen and _get(config, key) == AUTO:
            section, _, name = key.partition(".")
            values = replace(getattr(config, section), **{name: chosen[key]})
            config = replace(config, **{section: values})
    return config


def _get(config: Config, key: str) -> Any:
    return attrgetter(key)(config)


def learned_that_fit(config: Config, room: float, most: int, shards: int = 1) -> int:
    """The most prompts up to `most` whose training pass fits into `room` bytes; 0 if not even one does."""
    return _most(lambda rows: learning_bytes(config, rows, shards) <= room, most)


def learning_bytes(config: Config, rows: int, shards: int = 1) -> int:
    """Bytes of a training pass over this many prompts; extrapolated from fewer if there are many."""
    # From here on the chunks of the logits have their full size, and every further prompt costs the same.
    work = workload(config)
    enough = max(1, -(-CHUNK_SIZE // (work.learned * (1 + work.later_turns) * completion_tokens(config))))
    if rows <= enough:
        return training_bytes(config, rows, shards=shards)
    few, more = (training_bytes(config, count, accumulating=True, shards=shards) for count in (enough, enough + 1))
    return few + (rows - enough) * (more - few)


def drawn_that_fit(config: Config, room: float, most: int) -> int:
    """The most prompts up to `most` whose decoding loop fits into `room` bytes; 0 if not even one does."""
    return _most(lambda rows: drawing_bytes(config, rows) <= room, most)


def evenly(rows: int, most: int) -> int:
    """The size of the pieces when `rows` are spread evenly over the fewest pieces of at most `most` rows."""
    return -(-rows // -(-rows // max(1, most)))


@dataclass(frozen=True, slots=True)
class Fit:
    """How many prompts fit on a GPU; 0 if the weights or a single prompt do not fit."""

    learned: int
    """train.micro_batch_size"""
    drawn: int
    """generation.batch_size"""
    recomputing: bool = False
    """Whether only with gradient checkpointing."""


def largest_batches(
    config: Config, kinds: Sequence[AdapterKind], sizes: Sequence[float], shards: int = 1
) -> dict[AdapterKind, list[Fit]]:
    """The largest batches, also beyond the run's, that keep its memory below `USABLE` of GPUs of these sizes.

    Args:
        config: the run; its own adapter and batches are ignored.
        kinds: adapter kinds.
        sizes: GiB.
        shards: processes that share the base.
    """
    fits = {}
    for kind in kinds:
        variant = replace(config, adapter=replace(config.adapter, name=kind))
        plan = resident_plan(variant, shards)
        rooms = [USABLE * size * GIB - plan.resident for size in sizes]
        fits[kind] = [_fit(variant, room if room >= plan.passing else 0, shards) for room in rooms]
    return fits


def _fit(config: Config, room: float, shards: int) -> Fit:
    drawn = drawn_that_fit(config, room, MOST_PROMPTS)
    recomputing = config.model.gradient_checkpointing
    for tried in (False, True) if recomputing == AUTO else (recomputing,):
        learned = learned_that_fit(_recomputing(config, tried), room, MOST_PROMPTS, shards) if room > 0 else 0
        if learned:
            return Fit(learned, drawn, tried)
    return Fit(0, 0 if room <= 0 else drawn)


def _most(fits: Callable[[int], bool], most: int) -> int:
    """The largest number up to `most` that fits, where all smaller ones fit too; 0 if none does."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _reason(rows: int, share: int, bytes_of: Callable[[int], int], room: float, times: int) -> str:
    """The memory that pieces of this many rows need, and that larger ones, in one pass fewer, would.

    The setting that is explained is `times` the rows of a process.
    """
    said = _needed(bytes_of(rows), room)
    if rows == share:
        return f"{said}, the whole batch"
    more = evenly(share, -(-share // (-(-share // rows) - 1)))
    return f"{said}; {more * times} would take {bytes_of(more) / GIB:.1f}"


def _needed(needed: int, room: float) -> str:
    fits = "of" if needed <= room else "do not fit into"
    return f"{needed / GIB:.1f} GiB {fits} the {max(0, room) / GIB:.1f} that are free"


def _can_recompute(config: Config, rows: int) -> bool:
    """Whether a model's layers can recompute their activations, which some families cannot."""
    with suppress(InputError):
        return training_bytes(_recomputing(config, True), rows) > 0
    return False


def _recomputing(config: Config, recomputing: bool) -> Config:
    return replace(config, model=replace(config.model, gradient_checkpointing=recomputing))
