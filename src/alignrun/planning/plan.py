"""Parameter counts and peak memory by phase, from the configuration alone.

The architecture is built on the meta device, so a model of any size is planned in seconds without its weights.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from alignrun.algorithms.base import discover
from alignrun.algorithms.common.feedback import FeedbackAlgorithm
from alignrun.algorithms.common.workload import Workload, workload
from alignrun.config import AdapterKind, Config, Opponents, Precision
from alignrun.distributed.layers import decoder_layers
from alignrun.errors import AlignrunError, InputError, one_line
from alignrun.generation.streams import Source, decoding_rows
from alignrun.models.adapters import POLICY, add_adapter, lora_layers, products_dtype
from alignrun.models.decoding.cache import capacity
from alignrun.models.device import resolve
from alignrun.models.loading_errors import remedy
from alignrun.models.sources import planned_architecture
from alignrun.planning.judges import FLOAT32, NF4_BYTES, Judge, judges
from alignrun.planning.trace import Kept, Pass, kept_in_cache, training_peak
from alignrun.security.text import counted
from alignrun.types import Role

ASSUMED_PROMPT_TOKENS = 256
"""Default if data.max_prompt_tokens is not set."""
GIB = 2**30
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
    split: int
    """Parameters of the base's decoder layers, which processes can share."""
    largest: int
    """Parameters of the largest decoder layer."""


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
    """Key-value cache, logits of a decoding step and hidden states of drafts; the larger of training and evaluation."""
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
    def resident(self) -> int:
        """What stays in memory throughout."""
        return self.weights + self.adapters + self.moments + self.judging

    @property
    def peak(self) -> int:
        """Sampling, judging and training alternate, so the largest of them counts."""
        return self.resident + max(self.sampling, self.training, self.passing)


def count_parameters(config: Config) -> Size:
    """Build the model on the meta device and count.

    Raises:
        InputError: the architecture is unknown, or the adapter does not fit it.
    """
    architecture = planned_architecture(config.model)
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(architecture, dtype=torch.bfloat16)
        parameters = sum(weight.numel() for weight in model.parameters())
        decoder = [sum(weight.numel() for weight in layer.parameters()) for layer in decoder_layers(model)]
        if config.adapter.name is not AdapterKind.none:
            add_adapter(model, POLICY, config.adapter)
    layers = lora_layers(model)
    return Size(
        parameters=parameters,
        trainable=sum(weight.numel() for weight in model.parameters() if weight.requires_grad),
        adapted_layers=len(layers),
        adapted_parameters=sum(layer.base_layer.weight.numel() for layer in layers),
        split=sum(decoder),
        largest=max(decoder, default=0),
    )


def make_plan(config: Config, shards: int = 1) -> MemoryPlan:
    """Predict the memory of a run, or of one of the processes that share its base and its batch.

    What is `auto` counts as on a CPU.

    Raises:
        InputError: as `count_parameters`, or its passes cannot be traced.
    """
    share = -(-config.train.batch_size // shards)
    return replace(
        resident_plan(config, shards),
        sampling=peak_sampling(config, shards),
        training=training_bytes(config, min(config.train.micro or share, share), shards=shards),
    )


def resident_plan(config: Config, shards: int = 1) -> MemoryPlan:
    """The plan of what stays in memory and of judging, without sampling and training.

    With `shards`, the base's decoder layers are split over that many processes. Each holds its part and two whole
    layers: the one that computes and the next one. Without adapters, all weights of all models are split, with the
    moments; those outside the layers are whole as well while a model is used.

    Raises as `make_plan`.
    """
    size, work, dtype = count_parameters(config), workload(config), planned_dtype(config)
    if shards > 1 and config.adapter.name is AdapterKind.none:
        weights, adapters, moments = _split_bytes(size, work, dtype, shards)
    else:
        weights, adapters, moments = _resident_bytes(config, size, work, dtype)
        if shards > 1:
            weights -= max(0, size.split - size.split // shards - 2 * size.largest) * _width(dtype)
    return MemoryPlan(size, weights, adapters, moments, 0, 0, tuple(_judges(config)))


def _width(dtype: torch.dtype) -> int:
    """Bytes of a number."""
    return torch.finfo(dtype).bits // 8


def _split_bytes(size: Size, work: Workload, dtype: torch.dtype, shards: int) -> tuple[int, int, int]:
    """As `_resident_bytes`, where all weights are trained and every process holds a part of each."""
    part, others = -(-size.parameters // shards), size.parameters - size.split
    used = min(size.parameters, part + others)
    weights = min(size.parameters, used + 2 * size.largest)
    copies = (1 + work.copies) * used + 3 * work.half_steps * part
    return weights * _width(dtype), copies * _width(dtype), 2 * part * _width(dtype)


def _judges(config: Config) -> list[Judge]:
    with _predictable(config, "the preference model"):
        longer = workload(config).added_tokens if discover()[config.algo.name].judged_whole else 0
        return judges(config, prompt_tokens(config) + longer)


def _resident_bytes(config: Config, size: Size, work: Workload, dtype: torch.dtype) -> tuple[int, int, int]:
    """The base, the trained and copied parameters besides it, and the optimiser's moments."""
    width = _width(dtype)
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


def prompt_tokens(config: Config) -> int:
    """The length of the prompts that are planned for."""
    return config.data.max_prompt_tokens or ASSUMED_PROMPT_TOKENS


def completion_tokens(config: Config) -> int:
    """The length of the completions that are learned from."""
    new = config.generation.max_new_tokens
    return new if discover()[config.algo.name].online else config.data.max_completion_tokens or new


def peak_sampling(config: Config, shards: int = 1) -> int:
    """Bytes of the larger decoding loop, of training or of evaluation, in one of that many processes.

    Raises as `make_plan`.
    """
    drawn = -(-(config.generation.chunk or config.train.batch_size) // shards)
    return max(drawing_bytes(config, drawn), evaluation_bytes(config, shards))


def drawing_bytes(config: Config, prompts: int) -> int:
    """Bytes of a decoding loop of training; 0 where nothing is sampled."""
    work, dtype = workload(config), planned_dtype(config)
    drawn = sampling_bytes(config, work.drawn, prompts, dtype, work.added_tokens) if work.drawn else 0
    return max(drawn, _continuing_bytes(config, work, prompts, dtype))


def _continuing_bytes(config: Config, work: Workload, prompts: int, dtype: torch.dtype) -> int:
    """Drafts that are continued: their rejected tokens stay in the cache, and the hidden states that verify them.

    `auto` drafts on a CPU alone.
    """
    on_cpu = resolve(config.model, config.adapter, planning=True).device.type == "cpu"
    drafting = config.generation.opponents is Opponents.drafted or on_cpu
    if not work.continued or not drafting:
        return 0
    new, text = config.generation.max_new_tokens, planned_architecture(config.model).get_text_config()
    hidden = len(work.continued) * prompts * new * text.hidden_size * torch.finfo(dtype).bits // 8
    return int(sampling_bytes(config, work.continued, prompts, dtype, new) + hidden)


def evaluation_bytes(config: Config, shards: int = 1) -> int:
    """Bytes of a decoding loop of the evaluation, in one of that many processes.

    The evaluation samples policy and reference in one loop; feedback models have none.
    """
    if issubclass(discover()[config.algo.name], FeedbackAlgorithm):
        return 0
    prompts = -(-min(config.evaluation.batch_size, config.data.eval_size or MOST_PROMPTS) // shards)
    return sampling_bytes(config, (Role.policy, Role.reference), prompts, planned_dtype(config))


def sampling_bytes(
    config: Config, sources: Sequence[Source], prompts: int, dtype: torch.dtype, added_tokens: int = 0
) -> int:
    """Memory of one decoding loop: the key-value cache, with room for `added_tokens` more, and the logits of a step."""
    architecture = planned_architecture(config.model)
    text = architecture.get_text_config()
    width = _width(dtype)
    sequences = len(sources) * prompts
    rows = decoding_rows(sources) * prompts
    mixed = rows - sequences
    tokens = capacity(prompt_tokens(config) + added_tokens, config.generation.max_new_tokens)
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


def training_bytes(config: Config, prompts: int, accumulating: bool | None = None, shards: int = 1) -> int:
    """Bytes of a training pass over this many prompts, besides what stays in memory.

    `accumulating`: whether gradients of earlier passes are there already; by default if the batch has more prompts.
    With `shards` and without adapters, gradients are split over that many processes: each holds its part of all, and
    those of two layers whole, of which one is being summed.

    Raises as `make_plan`.
    """
    split = shards > 1 and config.adapter.name is AdapterKind.none
    kind, work = discover()[config.algo.name], workload(config)
    # With later turns, all completions of a conversation are in memory at once, each with a prompt of its own; these
    # grow evenly from turn to turn.
    apart = work.later_turns > 0
    one_pass = Pass(
        prompts=prompts * work.learned * (1 + work.later_turns) if apart else prompts,
        completions=1 if apart else work.learned,
        prompt_tokens=prompt_tokens(config) + work.added_tokens // 2,
        completion_tokens=completion_tokens(config),
        checkpointing=config.model.checkpointing,
        accumulating=prompts < config.train.batch_size if accumulating is None else accumulating,
        vocabulary=not issubclass(kind, FeedbackAlgorithm),
        split=split,
    )
    # QLoRA differs in how the base is held, and not in a pass.
    trained = AdapterKind.none if config.adapter.name is AdapterKind.none else AdapterKind.lora
    resolved = resolve(config.model, config.adapter, planning=True)
    attention, dtype = config.model.attention.value, resolved.dtype
    products = Precision(str(products_dtype(config.adapter, dtype, resolved.device)).removeprefix("torch."))
    adapter = replace(config.adapter, name=trained, compute_dtype=products)
    architecture = planned_architecture(config.model)
    key = architecture.to_json_string(use_diff=False), repr(adapter), one_pass, attention, dtype
    if key not in _traced:
        with _predictable(config, "training"):
            _traced[key] = training_peak(architecture, adapter, dtype, attention, one_pass)
    if not split:
        return _traced[key]
    size = count_parameters(config)
    return _traced[key] + (-(-size.parameters // shards) + 2 * size.largest) * _width(dtype)


_traced: dict[tuple[object, ...], int] = {}


def size_in_words(size: Size, config: Config) -> str:
    """One line: the parameters, and which of them would be trained."""
    if config.adapter.name is AdapterKind.none:
        return f"{size.parameters / 1e6:,.1f}M parameters, all trained"
    return (
        f"{size.parameters / 1e6:,.1f}M parameters, {config.adapter.name.value} rank {config.adapter.rank} on "
        f"{counted(size.adapted_layers, 'layer')}: {size.trainable / 1e6:,.1f}M trained"
    )
