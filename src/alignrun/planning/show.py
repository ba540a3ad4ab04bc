"""`alignrun plan`: the predicted memory of a run here and on GPUs, and the batches that fit them."""

from collections.abc import Sequence
from dataclasses import replace

from rich.console import Console
from rich.table import Table

from alignrun.algorithms.base import discover
from alignrun.algorithms.common.workload import workload
from alignrun.config import AdapterKind, Config, Precision
from alignrun.errors import InputError
from alignrun.models.device import free_memory, resolve
from alignrun.models.sources import preview_prompt
from alignrun.planning.automatic import GIB, USABLE, Choice, choose, largest_batches
from alignrun.planning.gpus import GPU_SIZES
from alignrun.planning.judges import Judge
from alignrun.planning.plan import MemoryPlan, make_plan, planned_dtype, prompt_tokens, size_in_words
from alignrun.security.text import counted


def show_plan(config: Config, console: Console, sizes: Sequence[float] = GPU_SIZES, shards: int = 1) -> None:
    """Print the plan of a configuration here and on GPUs of the given sizes in GiB, and the batches that fit these.

    With `shards` it is the plan of one of that many processes that share the base and the batch.

    Raises:
        InputError: as `make_plan`, or the base cannot be sharded.
    """
    if shards > 1 and config.adapter.name is AdapterKind.qlora:
        raise InputError("config: plan.shards cannot split a quantised base: use adapter=lora or none, or leave it out")
    if config.train.epochs is not None:
        length = f"train.epochs={config.train.epochs:g}: `alignrun data` with the same keys counts its steps"
        console.print(length, highlight=False)
        # Memory does not depend on the number of steps; streams are declared for the first, a middle and the last one.
        config = replace(config, train=replace(config.train, steps=100))
    device = resolve(config.model, config.adapter, planning=True).device
    free = free_memory(device)
    here = choose(config, free, shards, shards)
    elsewhere = [choose(on_gpu(config), size * GIB, shards, shards) for size in sizes]
    plans = [make_plan(choice.config, shards) for choice in (here, *elsewhere)]
    console.print(f"{config.algo.name} on {config.model.name}: {size_in_words(plans[0].size, config)}", highlight=False)
    name = f"this {'CPU' if device.type == 'cpu' else 'GPU'}"
    heads = [name, *(f"{size:g} GB" for size in sizes)]
    limits = [None if free is None else USABLE * free, *(USABLE * size * GIB for size in sizes)]
    console.print(_phases(plans, heads, limits, [here, *elsewhere], shards), highlight=False)
    prompt = preview_prompt(config.model, "…")
    shown = "the tokenizer's own, not yet downloaded" if prompt is None else repr(prompt)
    console.print(f"prompt template: {shown}", highlight=False, markup=False)
    console.print(
        f"{_precision(here.config)} base here, {_precision(on_gpu(config))} on a GPU; prompts of "
        f"{prompt_tokens(config)} tokens, {_later(config)}{config.generation.max_new_tokens} new tokens, batches of "
        f"{config.train.batch_size}. A run plans with its longest prompt and its GPU's free memory, of which it fills "
        f"{USABLE:.0%}. The framework's own memory comes on top of that.",
        highlight=False,
    )
    for judge in plans[0].judges:
        if judge.unknown:
            text = f"{judge.place} is not counted: {judge.unknown}"
            console.print(text, highlight=False, markup=False)
    if questions := workload(config).questions:
        total = counted(questions * config.train.batch_size, "question")
        console.print(f"judging: {total} a step, {questions} for each prompt: pairs in both orders", highlight=False)
    for head, choice in zip(heads, (here, *elsewhere), strict=True):
        for line in choice.why:
            console.print(f"{head}: {line}", highlight=False, markup=False, soft_wrap=True)
    drawn = " / generation.batch_size" * discover()[config.algo.name].online
    console.print(f"largest train.micro_batch_size{drawn} (* with model.gradient_checkpointing=true)", highlight=False)
    console.print(_fits(config, sizes, shards), highlight=False)


def _later(config: Config) -> str:
    """The later prompts of a conversation, in words."""
    added = workload(config).added_tokens
    return f"later ones of {prompt_tokens(config) + added}, " if added else ""


def on_gpu(config: Config) -> Config:
    """The run on a GPU, whether this machine has one or not: bfloat16 if the precision is auto."""
    dtype = config.model.dtype
    if dtype is Precision.auto and config.adapter.name is not AdapterKind.none:
        dtype = Precision.bfloat16
    return replace(config, model=replace(config.model, dtype=dtype, device="cuda"))


def _precision(config: Config) -> str:
    return str(planned_dtype(config)).removeprefix("torch.")


def _phases(
    plans: Sequence[MemoryPlan],
    heads: Sequence[str],
    limits: Sequence[float | None],
    choices: Sequence[Choice],
    shards: int,
) -> Table:
    """A row for each phase and each choice, a column for each device."""
    table = Table(box=None, pad_edge=False)
    table.add_column("GiB", no_wrap=True)
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    adapted = choices[0].config.adapter.name is not AdapterKind.none
    known = [(number, judge) for number, judge in enumerate(plans[0].judges) if not judge.unknown]
    rows = [
        ("base weights", [plan.weights for plan in plans]),
        ("adapters" if adapted else "frozen copies", [plan.adapters for plan in plans]),
        ("AdamW moments", [plan.moments for plan in plans]),
        *(
            (f"weights of {judge.place}{_where(judge)}", [plan.judges[number].weights for plan in plans])
            for number, judge in known
        ),
        ("sampling: cache and logits", [plan.sampling for plan in plans]),
        ("training: activations, gradients, logits", [plan.training for plan in plans]),
        *([("judging: activations", [plan.passing for plan in plans])] if any(plan.passing for plan in plans) else []),
        ("predicted peak", [plan.peak for plan in plans]),
    ]
    for label, sizes in rows:
        table.add_row(label, *(f"{size / GIB:,.2f}" for size in sizes))
    fits = [
        "" if limit is None else "yes" if plan.peak <= limit else "no"
        for plan, limit in zip(plans, limits, strict=True)
    ]
    table.add_row("fits", *fits)
    configs = [choice.config for choice in choices]
    batch = configs[0].train.batch_size
    table.add_row("train.micro_batch_size", *(str(config.train.micro or -(-batch // shards)) for config in configs))
    if discover()[configs[0].algo.name].online:
        table.add_row("generation.batch_size", *(str(config.generation.chunk or batch) for config in configs))
    table.add_row("model.gradient_checkpointing", *(str(config.model.checkpointing).lower() for config in configs))
    return table


def _where(judge: Judge) -> str:
    return f" (on {judge.device}, not in the peak)" if judge.device else " (on a base counted above)" * judge.shared


def _fits(config: Config, sizes: Sequence[float], shards: int) -> Table:
    """Rows for adapters, columns for GPUs."""
    full = config.adapter.name is AdapterKind.none
    online = discover()[config.algo.name].online
    table = Table(box=None, pad_edge=False)
    table.add_column("on one GPU of" if shards == 1 else f"on each of {shards} GPUs of", no_wrap=True)
    for size in sizes:
        table.add_column(f"{size:g} GB", justify="right", no_wrap=True)
    kinds = [AdapterKind.none] if full else [AdapterKind.lora, AdapterKind.qlora][: 1 if shards > 1 else 2]
    for kind, fits in largest_batches(on_gpu(config), kinds, sizes, shards).items():
        # `generation.batch_size` is that of the whole job.
        counts = [(fit.learned, fit.drawn * shards) if online else (fit.learned,) for fit in fits]
        shown = [
            " / ".join(map(str, pair)) + "*" * fit.recomputing if all(pair) else "does not fit"
            for pair, fit in zip(counts, fits, strict=True)
        ]
        table.add_row(kind.value, *shown)
    return table
