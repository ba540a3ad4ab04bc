"""`alignrun plan`: parameter counts and peak memory by phase, from the configuration alone.

The architecture is built on the meta device, so a model of any size is planned in seconds without its weights.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from alignrun.algorithms.base import discover
from alignrun.algorithms.common.feedback import FeedbackAlgorithm
from alignrun.algorithms.common.workload import Workload, workload
from alignrun.config import AdapterKind, Config, Precision
from alignrun.errors import AlignrunError, InputError, one_line
from alignrun.generation.streams import Source, decoding_rows
from alignrun.models.adapters import POLICY, add_adapter, lora_layers
from alignrun.models.decoding.cache import capacity
from alignrun.models.device import resolve
from alignrun.models.loading_errors import remedy
from alignrun.models.sources import planned_architecture, preview_prompt
from alignrun.objectives.likelihood import CHUNK_SIZE
from alignrun.planning.judges import FLOAT32, NF4_BYTES, Judge, judges
from alignrun.planning.trace import Kept, Pass, kept_in_cache, training_peak
from alignrun.security.text import counted
from alignrun.types import Role

ASSUMED_PROMPT_TOKENS = 256
"""Default if data.max_prompt_tokens is not set."""
GIB = 2**30
GPU_SIZES = (24, 48, 80)
"""GiB"""
USABLE = 0.9
"""Fraction of a GPU that a plan may fill; the rest is for the CUDA context, fragmentation and kernel workspaces."""
MOST_PROMPTS = 1024
"""Upper limit of the search for a batch size."""


@dataclass(frozen=True, slots=True)
class Size:
    """Parameter counts of the architecture and the adapter."""

    parameters: int
    """Parameters of the base."""
    trainable: int
    """Trained parameters of the policy, or of the feedback model without its head."""
    adapted_layers: int
    adapted_parameters: int
    """Parameters of the base's layers with an adapter, which are those that QLoRA quantises."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """The memory of a run, in bytes."""

    size: Size
    weights: int
    """The base."""
    adapters: int
    """Trained parameters besides the base, and their copies (with their moments if half-steps are undone); without
    adapters, the frozen models."""
    moments: int
    """AdamW's two moments of every trained parameter."""
    sampling: int
    """Key-value cache and the logits of a decoding step; the maximum over training and evaluation."""
    training: int
    """Activations and gradients of a micro-batch, and chunks of the logits."""

    judges: tuple[Judge, ...] = ()
    """The preference models."""

    @property
    def judging(self) -> int:
        """The weights of the preference models on the device of the policy."""
        return sum(judge.weights for judge in self.judges if not judge.device)

    @property
    def passing(self) -> int:
        """Activations of the largest pass of a preference model there; they are asked one after another."""
        return max((judge.passing for judge in self.judges if not judge.device), default=0)

    @property
    def peak(self) -> int:
        """Sampling, judging and training alternate, so the largest of them counts."""
        resident = self.weights + self.adapters + self.moments + self.judging
        return resident + max(self.sampling, self.training, self.passing)


def count_parameters(config: Config) -> Size:
    """Build the model on the meta device and count.

    Raises:
        InputError: the architecture is unknown, or the adapter does not fit it.
    """
    architecture = planned_architecture(config.model)
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(architecture, dtype=torch.bfloat16)
        parameters = sum(weight.numel() for weight in model.parameters())
        if config.adapter.name is not AdapterKind.none:
            add_adapter(model, POLICY, config.adapter)
    layers = lora_layers(model)
    return Size(
        parameters=parameters,
        trainable=sum(weight.numel() for weight in model.parameters() if weight.requires_grad),
        adapted_layers=len(layers),
        adapted_parameters=sum(layer.base_layer.weight.numel() for layer in layers),
    )


def make_plan(config: Config) -> MemoryPlan:
    """Predict the memory of a run.

    Raises:
        InputError: as `count_parameters`, or its passes cannot be traced.
    """
    size, dtype, work = count_parameters(config), planned_dtype(config), workload(config)
    weights, adapters, moments = _resident_bytes(config, size, work, dtype)
    return MemoryPlan(
        size=size,
        weights=weights,
        adapters=adapters,
        moments=moments,
        sampling=peak_sampling(config),
        training=_training_bytes(config, work, dtype, config.train.micro_batch_size or config.train.batch_size),
        judges=tuple(_judges(config)),
    )


def _judges(config: Config) -> list[Judge]:
    with _predictable(config, "the preference model"):
        longer = workload(config).added_tokens if discover()[config.algo.name].judged_whole else 0
        return judges(config, _prompt_tokens(config) + longer)


def _resident_bytes(config: Config, size: Size, work: Workload, dtype: torch.dtype) -> tuple[int, int, int]:
    """The base, the trained and copied parameters besides it, and the optimiser's moments."""
    width = torch.finfo(dtype).bits // 8
    if config.adapter.name is AdapterKind.none:
        # Every role but the policy is a separate model.
        weights = size.parameters * width
        return weights, (1 + work.copies + 3 * work.half_steps) * weights, 2 * weights
    quantised = size.adapted_parameters if config.adapter.name is AdapterKind.qlora else 0
    weights = int(quantised * NF4_BYTES + (size.parameters - quantised) * width)
    trained = size.trainable * (1 + work.value) * FLOAT32  # PEFT holds adapters in float32
    return weights, (1 + 3 * work.half_steps) * trained + work.copies * size.trainable * FLOAT32, 2 * trained


def planned_dtype(config: Config) -> torch.dtype:
    """The precision of the run, even if the planning machine lacks its GPU."""
    return resolve(config.model, config.adapter, planning=True).dtype


def _prompt_tokens(config: Config) -> int:
    return config.data.max_prompt_tokens or ASSUMED_PROMPT_TOKENS


def _later(config: Config) -> str:
    """The later prompts of a conversation, in words."""
    added = workload(config).added_tokens
    return f"later ones of {_prompt_tokens(config) + added}, " if added else ""


def peak_sampling(config: Config) -> int:
    """Bytes of the larger decoding loop, of training or of evaluation. Raises as `make_plan`."""
    work, dtype = workload(config), planned_dtype(config)
    return max(_drawing_bytes(config, work, dtype), _evaluation_bytes(config, work, dtype))


def _drawing_bytes(config: Config, work: Workload, dtype: torch.dtype) -> int:
    prompts = config.generation.batch_size or config.train.batch_size
    return sampling_bytes(config, work.drawn, prompts, dtype, work.added_tokens) if work.drawn else 0


def _evaluation_bytes(config: Config, work: Workload, dtype: torch.dtype) -> int:
    """The evaluation samples policy and reference in one loop; feedback models have none."""
    if issubclass(discover()[config.algo.name], FeedbackAlgorithm):
        return 0
    prompts = min(config.evaluation.batch_size, config.data.eval_size or MOST_PROMPTS)
    return sampling_bytes(config, (Role.policy, Role.reference), prompts, dtype)


def sampling_bytes(
    config: Config, sources: Sequence[Source], prompts: int, dtype: torch.dtype, added_tokens: int = 0
) -> int:
    """Memory of one decoding loop: the key-value cache, of prompts so many tokens longer, and the logits of a step."""
    architecture = planned_architecture(config.model)
    text = architecture.get_text_config()
    width = torch.finfo(dtype).bits // 8
    sequences = len(sources) * prompts
    rows = decoding_rows(sources) * prompts
    mixed = rows - sequences
    tokens = capacity(_prompt_tokens(config) + added_tokens, config.generation.max_new_tokens)
    kept = _kept(config, architecture)
    cache = rows * (tokens * kept.by_token + kept.state) * width
    # The model's logits are alive throughout. A mixture needs three more tensors for its log-probabilities, while those
    # of the last token are still alive; drawing needs no more than that.
    return int(cache + text.vocab_size * (rows * width + FLOAT32 * (2 * sequences + 3 * mixed)))


_known: dict[str, Kept] = {}


def _kept(config: Config, architecture: PreTrainedConfig) -> Kept:
    """`kept_in_cache`, cached per architecture."""
    key = architecture.to_json_string(use_diff=False)
    if key not in _known:
        with _predictable(config, "sampling"):
            _known[key] = kept_in_cache(architecture)
    return _known[key]


@contextmanager
def _predictable(config: Config, what: str) -> Iterator[None]:
    try:
        yield
    except AlignrunError:
        raise
    except Exception as error:  # a library's code for an architecture may raise anything
        advice = remedy(error, config.model)
        if not advice.startswith("set "):
            advice = "its memory is only known once it runs: start with a small train.batch_size"
        raise InputError(
            f"model={config.model.name}: a pass of {what} cannot be traced ({one_line(error, 160)}): {advice}"
        ) from error


def _training_bytes(config: Config, work: Workload, dtype: torch.dtype, prompts: int) -> int:
    kind = discover()[config.algo.name]
    new = config.generation.max_new_tokens
    # With later turns, all completions of a conversation are in memory at once, each with a prompt of its own; these
    # grow evenly from turn to turn.
    apart = work.later_turns > 0
    one_pass = Pass(
        prompts=prompts * work.learned * (1 + work.later_turns) if apart else prompts,
        completions=1 if apart else work.learned,
        prompt_tokens=_prompt_tokens(config) + work.added_tokens // 2,
        completion_tokens=new if kind.online else config.data.max_completion_tokens or new,
        checkpointing=config.model.gradient_checkpointing,
        accumulating=prompts < config.train.batch_size,
        vocabulary=not issubclass(kind, FeedbackAlgorithm),
    )
    architecture = planned_architecture(config.model)
    with _predictable(config, "training"):
        return training_peak(architecture, config.adapter, dtype, config.model.attention.value, one_pass)


@dataclass(frozen=True, slots=True)
class Fit:
    """How many prompts fit on a GPU; 0 if the weights or a single prompt do not fit."""

    learned: int
    """train.micro_batch_size"""
    drawn: int
    """generation.batch_size"""


def largest_batches(
    config: Config, kinds: Sequence[AdapterKind], sizes: Sequence[float]
) -> dict[AdapterKind, list[Fit]]:
    """The largest batches that keep the run's memory below `USABLE` of GPUs of these sizes.

    Args:
        config: the run; its own adapter is ignored.
        kinds: adapter kinds that differ only in the base's storage, so that one traced pass serves all.
        sizes: GiB.
    """
    work, dtype = workload(config), planned_dtype(config)
    variants = {kind: replace(config, adapter=replace(config.adapter, name=kind)) for kind in kinds}
    traced = variants[kinds[0]]
    # From here on the chunks of the logits have their full size, and every further prompt costs the same.
    new = config.generation.max_new_tokens
    enough = min(MOST_PROMPTS - 1, -(-CHUNK_SIZE // (work.learned * (1 + work.later_turns) * new)))
    few, more = (_training_bytes(traced, work, dtype, prompts) for prompts in (enough, enough + 1))
    each = max(1, more - few)
    drawn = max(1, sampling_bytes(config, work.drawn, 1, dtype, work.added_tokens))
    size = count_parameters(traced)
    judging = MemoryPlan(size, 0, 0, 0, 0, 0, tuple(_judges(config)))
    fits = {}
    for kind, variant in variants.items():
        resident = sum(_resident_bytes(variant, size, work, dtype)) + judging.judging
        rooms = [USABLE * gpu * GIB - resident for gpu in sizes]
        # Below `enough` this overestimates, by the missing part of a chunk.
        counts = [(enough + int((room - few) // each), int(room // drawn)) for room in rooms]
        fits[kind] = [
            Fit(*(max(0, min(MOST_PROMPTS, count)) if room >= judging.passing else 0 for count in pair))
            for pair, room in zip(counts, rooms, strict=True)
        ]
    return fits


def gpu_sizes(settings: Sequence[str]) -> Sequence[float]:
    """The sizes of `plan.gpu=24GB`, in GiB; by default the usual ones.

    Raises:
        InputError: another setting, or not a valid size.
    """
    if not settings:
        return GPU_SIZES
    sizes = []
    for setting in settings:
        key, _, value = setting.partition("=")
        if key != "plan.gpu":
            raise InputError(f"config: {key} is unknown: alignrun plan takes plan.gpu=24GB and the run's settings")
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:gi?b?)?", value.strip().lower())
        if not found or float(found[1]) == 0:
            raise InputError(f"config: plan.gpu={value} is not a memory size: write for example plan.gpu=24GB")
        sizes.append(float(found[1]))
    return sizes


def size_in_words(size: Size, config: Config) -> str:
    """One line: the parameters, and which of them would be trained."""
    if config.adapter.name is AdapterKind.none:
        return f"{size.parameters / 1e6:,.1f}M parameters, all trained"
    return (
        f"{size.parameters / 1e6:,.1f}M parameters, {config.adapter.name.value} rank {config.adapter.rank} on "
        f"{counted(size.adapted_layers, 'layer')}: {size.trainable / 1e6:,.1f}M trained"
    )


def show_plan(config: Config, console: Console, sizes: Sequence[float] = GPU_SIZES) -> None:
    """Print the plan of a configuration, and the batches that fit on GPUs of the given sizes in GiB.

    Raises:
        InputError: as `make_plan`.
    """
    if config.train.epochs is not None:
        length = f"train.epochs={config.train.epochs:g}: `alignrun data` with the same keys counts its steps"
        console.print(length, highlight=False)
        # Memory depends on no number of steps; streams are declared for a first, a middle and a last one.
        config = replace(config, train=replace(config.train, steps=100))
    plan = make_plan(config)
    console.print(f"{config.algo.name} on {config.model.name}: {size_in_words(plan.size, config)}", highlight=False)
    console.print(_phases(plan, config), highlight=False)
    prompt = preview_prompt(config.model, "…")
    shown = "the tokenizer's own, not yet downloaded" if prompt is None else repr(prompt)
    console.print(f"prompt template: {shown}", highlight=False, markup=False)
    console.print(
        f"{str(planned_dtype(config)).removeprefix('torch.')} base, prompts of {_prompt_tokens(config)} tokens, "
        f"{_later(config)}"
        f"{config.generation.max_new_tokens} new tokens, batches of {config.train.batch_size} in micro-batches of "
        f"{config.train.micro_batch_size or config.train.batch_size}. The framework's own memory comes on top.",
        highlight=False,
    )
    for judge in plan.judges:
        if judge.unknown:
            text = f"{judge.place} is not counted: {judge.unknown}"
            console.print(text, highlight=False, markup=False)
    if questions := workload(config).questions:
        total = counted(questions * config.train.batch_size, "question")
        console.print(f"judging: {total} a step, {questions} for each prompt: pairs in both orders", highlight=False)
    drawn = " / generation.batch_size" * discover()[config.algo.name].online
    console.print(f"largest train.micro_batch_size{drawn}", highlight=False)
    console.print(_fits(config, sizes), highlight=False)


def _phases(plan: MemoryPlan, config: Config) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    adapted = config.adapter.name is not AdapterKind.none
    for name, size in (
        ("base weights", plan.weights),
        ("adapters" if adapted else "frozen copies", plan.adapters),
        ("AdamW moments", plan.moments),
        *((f"weights of {judge.place}{_where(judge)}", judge.weights) for judge in plan.judges if not judge.unknown),
        ("sampling: cache and logits", plan.sampling),
        ("training: activations, gradients, logits", plan.training),
        *([("judging: activations", plan.passing)] if plan.passing else []),
        ("predicted peak", plan.peak),
    ):
        table.add_row(name, f"{size / GIB:,.2f} GiB")
    return table


def _where(judge: Judge) -> str:
    return f" (on {judge.device}, not in the peak)" if judge.device else " (on a base counted above)" * judge.shared


def _fits(config: Config, sizes: Sequence[float]) -> Table:
    """Rows for adapters, columns for GPUs; bfloat16 if the precision is auto."""
    dtype = Precision.bfloat16 if config.model.dtype is Precision.auto else config.model.dtype
    model = replace(config.model, dtype=dtype, device="cuda")
    full = config.adapter.name is AdapterKind.none
    online = discover()[config.algo.name].online
    table = Table(box=None, pad_edge=False)
    table.add_column("on one GPU of", no_wrap=True)
    for size in sizes:
        table.add_column(f"{size:g} GB", justify="right", no_wrap=True)
    kinds = [AdapterKind.none] if full else [AdapterKind.lora, AdapterKind.qlora]
    for kind, fits in largest_batches(replace(config, model=model), kinds, sizes).items():
        counts = [(fit.learned, fit.drawn) if online else (fit.learned,) for fit in fits]
        shown = [" / ".join(map(str, pair)) if all(pair) else "does not fit" for pair in counts]
        table.add_row(kind.value, *shown)
    return table
