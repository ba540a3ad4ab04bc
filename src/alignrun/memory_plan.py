"""`alignrun plan`: parameter counts and a first estimate of peak memory, from the configuration alone.

The architecture is built on the meta device, so that a model of any size is planned in seconds without its weights.
"""

from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from alignrun.algorithms.base import discover
from alignrun.algorithms.feedback import FeedbackAlgorithm
from alignrun.algorithms.pairs import PairsAlgorithm
from alignrun.config import AdapterKind, Config
from alignrun.models.adapters import POLICY, add_adapter, lora_layers
from alignrun.models.device import resolve_device, resolve_dtype
from alignrun.models.sources import planned_architecture, preview_prompt
from alignrun.objectives.likelihood import CHUNK_SIZE

ASSUMED_PROMPT_TOKENS = 256
"""Where data.max_prompt_tokens does not say."""
NF4_BYTES = 0.516
"""A 4-bit weight with its doubly quantised scale (arXiv 2305.14314 §3)."""
FLOAT32 = 4


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What a run holds in memory. Bytes, except where a name says otherwise."""

    parameters: int
    """Of the base, a count."""
    trainable: int
    """Trained parameters, a count."""
    adapted_layers: int
    """Layers with an adapter, a count."""
    prompt_tokens: int
    weights: int
    adapter: int
    """The trained parameters where they are apart from the base, and the frozen copy that replaces it as reference."""
    optimizer: int
    """Gradients and AdamW's two moments."""
    sampling: int
    """Key-value cache and the logits of one decoding step."""
    training: int
    """Activations kept for the backward pass of a micro-batch, and one chunk of the vocabulary head."""

    @property
    def peak(self) -> int:
        """Sampling and training follow one another, so the larger of the two counts."""
        return self.weights + self.adapter + self.optimizer + max(self.sampling, self.training)


def make_plan(config: Config) -> MemoryPlan:
    """Estimate the memory of a run.

    Raises:
        InputError: the architecture is unknown here, or the adapter does not fit it.
    """
    architecture = planned_architecture(config.model)
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(architecture, dtype=torch.bfloat16)
        parameters = sum(weight.numel() for weight in model.parameters())
        full = config.adapter.name is AdapterKind.none
        if not full:
            add_adapter(model, POLICY, config.adapter)
    trainable = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    layers = lora_layers(model)
    width = torch.finfo(_dtype(config)).bits // 8
    quantised = sum(layer.base_layer.weight.numel() for layer in layers)
    if config.adapter.name is AdapterKind.qlora:
        weights = int(quantised * NF4_BYTES + (parameters - quantised) * width)
    else:
        weights = parameters * width
    text = architecture.get_text_config()
    prompt = config.data.max_prompt_tokens or ASSUMED_PROMPT_TOKENS
    new = config.generation.max_new_tokens
    learned = new if discover()[config.algo.name].online else config.data.max_completion_tokens or new
    return MemoryPlan(
        parameters=parameters,
        trainable=trainable,
        adapted_layers=len(layers),
        prompt_tokens=prompt,
        weights=weights,
        adapter=parameters * width if full else trainable * FLOAT32,
        optimizer=trainable * (3 * width if full else 3 * FLOAT32),
        sampling=_sampling_bytes(config, text, prompt + new, width),
        training=_training_bytes(config, text, prompt + learned, width),
    )


def _dtype(config: Config) -> torch.dtype:
    """The precision of the run, also where its GPU is not in the machine that plans it."""
    wanted = config.model.device
    return resolve_dtype(
        config.model.dtype, torch.device(wanted) if wanted.startswith("cuda") else resolve_device(wanted)
    )


def _sampling_bytes(config: Config, text: PreTrainedConfig, tokens: int, width: int) -> int:
    kind = discover()[config.algo.name]
    if issubclass(kind, FeedbackAlgorithm):
        return 0
    if kind.online:
        prompts = (config.generation.batch_size or config.train.batch_size) * _completions(config)
        mix_beta = getattr(config.algo, "mix_beta", 0.0)
        model_rows = prompts * (1 + (mix_beta < 1) + (mix_beta > 0))
    else:  # nothing but the evaluation samples, from the policy and from the reference
        prompts = config.evaluation.batch_size
        model_rows = 2 * prompts
    sequences = 2 * prompts
    head_size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    cache = model_rows * tokens * text.num_hidden_layers * 2 * heads * head_size * width
    # The model's logits, their mixture in float32, and the float64 cumulative sum that is sampled from.
    logits = text.vocab_size * (model_rows * (width + FLOAT32) + sequences * (FLOAT32 + 2 * 8))
    return int(cache + logits)


def _training_bytes(config: Config, text: PreTrainedConfig, tokens: int, width: int) -> int:
    rows = (config.train.micro_batch_size or config.train.batch_size) * _completions(config)
    # Per token and layer: the inputs of norms, attention and projections, and the products inside the MLP.
    inside = (16 * text.hidden_size + 6 * text.intermediate_size) * width
    layers = text.num_hidden_layers
    kept = layers * text.hidden_size * width + inside if config.model.gradient_checkpointing else layers * inside
    head = min(CHUNK_SIZE, rows * config.generation.max_new_tokens) * text.vocab_size * (width + 3 * FLOAT32)
    return int(rows * tokens * kept + head)


def _completions(config: Config) -> int:
    """Completions of one prompt that are scored together."""
    if issubclass(discover()[config.algo.name], PairsAlgorithm | FeedbackAlgorithm):
        return 2
    return int(getattr(config.algo, "samples_per_prompt", 1))


def describe(plan: MemoryPlan, config: Config) -> str:
    """One line: what would be trained."""
    if config.adapter.name is AdapterKind.none:
        return f"{plan.parameters / 1e6:,.1f}M parameters, all of them trained"
    return (
        f"{plan.parameters / 1e6:,.1f}M parameters, {config.adapter.name.value} rank {config.adapter.rank} on "
        f"{plan.adapted_layers} layers: {plan.trainable / 1e6:,.1f}M trained"
    )


def show_plan(config: Config, console: Console) -> None:
    """Print the plan of a configuration.

    Raises:
        InputError: see `make_plan`.
    """
    plan = make_plan(config)
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    for name, size in (
        ("base weights", plan.weights),
        ("adapter" if config.adapter.name is not AdapterKind.none else "frozen reference copy", plan.adapter),
        ("gradients and AdamW moments", plan.optimizer),
        ("sampling: cache and logits", plan.sampling),
        ("training: activations and head", plan.training),
        ("predicted peak", plan.peak),
    ):
        table.add_row(name, f"{size / 2**30:,.2f} GiB")
    console.print(f"{config.algo.name} on {config.model.name}: {describe(plan, config)}", highlight=False)
    console.print(table, highlight=False)
    prompt = preview_prompt(config.model, "…")
    shown = "the tokenizer's own, not yet downloaded" if prompt is None else repr(prompt)
    console.print(f"prompt template: {shown}", highlight=False, markup=False)
    console.print(
        f"{str(_dtype(config)).removeprefix('torch.')} base, prompts of {plan.prompt_tokens} tokens, "
        f"{config.generation.max_new_tokens} new tokens, batches of {config.train.batch_size} in micro-batches of "
        f"{config.train.micro_batch_size or config.train.batch_size}. A first estimate: the framework's own memory "
        "comes on top.",
        highlight=False,
    )
