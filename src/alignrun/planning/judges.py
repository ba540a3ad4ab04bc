"""The memory of preferences that are models on this machine: their weights, and a pass over what they read at once."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from alignrun.algorithms.base import discover as algorithms
from alignrun.algorithms.common.feedback import FeedbackAlgorithm
from alignrun.config import AdapterConfig, AdapterKind, Config, ModelSource, PublishedConfig, Quantize, ServedConfig
from alignrun.errors import InputError
from alignrun.models.cards import FILE, adapter_folder
from alignrun.models.device import find_dtype, resolve
from alignrun.models.published import source_of
from alignrun.models.sources import hub_options, planned_architecture, quiet_transformers
from alignrun.planning.architectures import ARCHITECTURES
from alignrun.planning.trace import SHALLOW, forward_peak, with_layers
from alignrun.preferences.base import discover
from alignrun.preferences.feedback_model import base_config, find_card, origin
from alignrun.preferences.members import named_errors

NF4_BYTES = 0.516
"""A 4-bit weight with its doubly quantised scale (arXiv 2305.14314 §3)."""
FLOAT32 = 4
HELD = {Quantize.int8: 1.0, Quantize.nf4: NF4_BYTES}


@dataclass(frozen=True, slots=True)
class Judge:
    """A preference model, in bytes."""

    place: str
    """`preference`, or the key of a panel's member."""
    weights: int
    """What it adds to memory, without a base that the policy or an earlier judge already holds."""
    passing: int
    """Activations of a pass over as many tokens as are read at once."""
    shared: bool = False
    """Whether the policy or an earlier judge already holds its base."""
    device: str = ""
    """Where it is, unless on the device of the policy."""
    unknown: str = ""
    """Why it could not be counted; empty if it was."""


def judges(config: Config, prompt_tokens: int) -> list[Judge]:
    """The preference models of a run, those of a panel's members one by one.

    Raises:
        InputError: a path that should be a run is not one.
    """
    if issubclass(algorithms()[config.algo.name], FeedbackAlgorithm):
        return []
    return list(_judges(config, config.preference, "preference", prompt_tokens, set()))


def _judges(config: Config, section: Any, place: str, prompt_tokens: int, held: set[Any]) -> Iterator[Judge]:
    for name, member in getattr(section, "members", {}).items():
        with named_errors(name):
            found = list(_judges(config, member, f"{place}.members.{name}", prompt_tokens, held))
        yield from found
    path, feedback = getattr(section, "path", None), discover()[section.name].feedback
    if path and (feedback or (adapter_folder(path) / FILE).is_file()):
        yield _of_run(config, section, place, feedback or "reward", prompt_tokens, held)
    elif isinstance(section, PublishedConfig):
        yield _published(config, section, place, prompt_tokens, held)
    elif isinstance(section, ServedConfig):
        yield Judge(place, 0, 0, unknown=f"{section.url} serves it")


def _published(config: Config, section: PublishedConfig, place: str, prompt_tokens: int, held: set[Any]) -> Judge:
    policy = resolve(config.model, config.adapter, planning=True).device
    device = policy if section.device == "auto" else torch.device(section.device)
    elsewhere = "" if (device.type, device.index or 0) == (policy.type, policy.index or 0) else str(device)
    architecture, empty = _architecture(section), discover()[section.name].empty
    if architecture is None or empty is None:
        return Judge(
            place, 0, 0, device=elsewhere, unknown=f"the configuration of {section.path} is not on this machine"
        )
    dtype = find_dtype(section.dtype, device)
    with torch.device("meta"):
        model = empty(architecture).to(dtype)
        shallow = empty(with_layers(architecture, SHALLOW)).to(dtype)
    key = (type(model), section.path, section.revision, dtype, section.quantize, device)
    shared = key in held
    weights = 0 if shared else held_bytes(model, dtype, HELD.get(section.quantize))
    held.add(key)
    both = 2 if "second" in getattr(section, "template", "") or section.name == "pairrm" else 1
    tokens = prompt_tokens + both * config.generation.max_new_tokens
    passing = forward_peak(shallow, max(1, section.batch_tokens // tokens), tokens)
    return Judge(place, weights, passing, shared, elsewhere)


def _architecture(section: PublishedConfig) -> PreTrainedConfig | None:
    """From a folder or the hub, or else that of a known model; None if there is neither."""
    try:
        with quiet_transformers():
            found: PreTrainedConfig = AutoConfig.from_pretrained(
                str(Path(str(section.path)).expanduser()), **hub_options(source_of(section))
            )
        return found
    except Exception:  # a hub out of reach, code that needs permission: whatever keeps it from being read
        known = ARCHITECTURES.get(str(section.path))
        return None if known is None else AutoConfig.for_model(**known)


def held_bytes(model: nn.Module, dtype: torch.dtype, linear: float | None = None) -> int:
    """Bytes of the weights; with `linear` bytes for each weight of a linear layer other than the head, if quantised."""
    width = torch.finfo(dtype).bits // 8
    total = sum(weight.numel() for weight in model.parameters())
    if linear is None:
        return total * width
    layers = [layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and "head" not in name]
    quantised = sum(layer.weight.numel() for layer in layers)
    return int(quantised * linear + (total - quantised) * width)


def _of_run(config: Config, section: Any, place: str, kind: str, prompt_tokens: int, held: set[Any]) -> Judge:
    """A run's feedback model: an adapter and a head, on the policy's base if it was trained on that."""
    folder, card = find_card(str(section.path), kind)
    base = base_config(card, str(section.path))
    made = base.source in (ModelSource.random, ModelSource.game)
    same = origin(base) == origin(config.model) and (not made or card.seed == config.seed)
    architecture = planned_architecture(base)
    placed, adapter = replace(base, device=config.model.device), AdapterConfig(name=AdapterKind(card.adapter))
    dtype = resolve(placed, adapter, planning=True).dtype
    with torch.device("meta"):
        shallow = AutoModelForCausalLM.from_config(with_layers(architecture, SHALLOW), dtype=dtype)
    weights = sum(_numbers(file) for file in folder.glob("*.safetensors")) * FLOAT32
    key = (repr(base), card.seed, card.adapter)
    shared = key in held or (same and config.adapter.name is not AdapterKind.none)
    if not shared:
        held.add(key)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(architecture, dtype=dtype)
        weights += held_bytes(model, dtype, NF4_BYTES if card.adapter == "qlora" else None)
    rows = getattr(section, "batch_size", 32)
    completions = 2 if card.kind == "preference" else 1
    tokens = prompt_tokens + completions * config.generation.max_new_tokens
    return Judge(place, weights, forward_peak(shallow, rows, tokens), shared)


def _numbers(file: Path) -> int:
    """How many numbers a file of weights holds. Raises InputError for one that is damaged."""
    try:
        with safe_open(str(file), framework="pt") as tensors:
            shapes = [tensors.get_slice(name).get_shape() for name in tensors.offset_keys()]
    except Exception as error:
        raise InputError(f"{file} cannot be read: export the run again") from error
    return sum(int(torch.Size(shape).numel()) for shape in shapes)
