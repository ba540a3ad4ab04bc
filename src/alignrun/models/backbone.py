"""One base model, loaded once and shared by the adapters of all roles."""

import copy
import hashlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from itertools import chain, count
from pathlib import Path

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignrun import distributed
from alignrun.config import AdapterConfig, AdapterKind, Kernels, ModelConfig
from alignrun.distributed.parts import whole
from alignrun.errors import InputError
from alignrun.models import adapters, attention
from alignrun.models.capabilities import check_passes, check_rows
from alignrun.models.device import allow_tf32, lay_out_weights, resolve
from alignrun.models.kernels import fuse
from alignrun.models.saving import save_adapter_config, save_adapter_weights
from alignrun.models.sources import base_name, base_revision, load_model, unloaded_model
from alignrun.models.targets import ALL_LINEAR, skipped_layers
from alignrun.models.weights import unfit_weight


class Backbone:
    """A causal language model with its tokenizer. At most one adapter is trained, and it is the active one."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: ModelConfig) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.config = config
        self.base = base_name(config)
        """The name or path to load this model from; resolved early, since folders may move during a run."""
        self.revision = base_revision(config)
        """The hub's commit that the weights are of; None if they are not from the hub."""
        self.peft: PeftModel | None = None
        self.layers: list[LoraLayer] = []
        self.products = torch.float32
        """The precision of the low-rank products."""
        self.notes: list[str] = []
        """Messages for the user about this model."""
        self.outline: PreTrainedModel | None = None
        """Of a sharded model that is trained as a whole, a copy with its weights on the meta device."""

    @classmethod
    def load(
        cls, config: ModelConfig, adapter: AdapterConfig, tokenizer: PreTrainedTokenizerBase, seed: int
    ) -> "Backbone":
        """Load the base and move it to its device, with no adapter on it yet.

        Raises:
            InputError: the model or the device is not available, weights are not finite, or padding or caching changes
            the results.
        """
        check_split(adapter)
        attention.install()
        resolved = resolve(config, adapter)
        device, dtype = resolved.device, resolved.dtype
        allow_tf32(device, config.tf32)
        torch.manual_seed(seed)  # for random bases, then the adapter's random factor
        fingerprint = None
        if distributed.sharded():
            trained = adapter.name is AdapterKind.none
            model, fingerprint = _load_once(config, tokenizer, dtype, trained=trained)
        else:
            model = load_model(config, tokenizer, dtype, device, adapters.quantization(adapter, device, dtype))
            if adapter.name is not AdapterKind.qlora:  # a quantised base is already in place
                model.to(device)
            _check_weights(model, config)
            if adapter.name is AdapterKind.lora:  # a frozen base
                lay_out_weights(model)
        if config.kernels is Kernels.liger:
            fuse(model, device)
        if config.checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
            model.enable_input_require_grads()
        backbone = cls(model, tokenizer, config)
        backbone.products = adapters.products_dtype(adapter, dtype, device)
        if fingerprint is not None:
            backbone.fingerprint = fingerprint
        backbone.settle()
        if distributed.sharded():
            from alignrun.distributed.sharding import shard

            backbone.outline = shard(model, device)
        check_passes(model)
        return backbone

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        device: torch.device = self.model.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the base's weights that are not quantised."""
        dtype: torch.dtype = self.model.get_input_embeddings().weight.dtype
        return dtype

    def add(self, name: str, config: AdapterConfig) -> None:
        """Add a new trainable adapter. Raises like `adapters.add_adapter`."""
        if config.target_modules == [ALL_LINEAR] and (note := skipped_layers(self.model)):
            self.notes = [note]
        self.peft = adapters.add_adapter(self.peft or self.model, name, config)
        self.settle()
        check_rows(self.model, name)

    def read(self, name: str, folder: Path, *, trainable: bool, key: str) -> None:
        """Load an adapter from a folder. Raises like `adapters.read_adapter`."""
        self.peft = adapters.read_adapter(self.peft or self.model, name, folder, trainable=trainable, key=key)
        self.settle()
        check_rows(self.model, name)

    def copy(self, source: str, name: str) -> None:
        """Add a frozen copy of an adapter."""
        assert self.peft is not None
        adapters.copy_adapter(self.peft, source, name)
        self.settle()

    def frozen_copy(self) -> PreTrainedModel:
        """A frozen copy of a model without adapters, sharded if the model is."""
        if self.outline is None:
            return copy.deepcopy(self.model).requires_grad_(False)
        from alignrun.distributed.sharding import copy_sharded

        return copy_sharded(self.model, self.outline, self.device)

    def free_name(self, name: str) -> str:
        """The name, with a number if an adapter already has it."""
        taken = () if self.peft is None else self.peft.peft_config
        return next(free for free in chain([name], (f"{name}_{number}" for number in count(2))) if free not in taken)

    def settle(self) -> None:
        """Disable dropout and move adapters to the base's device."""
        for module in self.model.modules():  # sampling and scoring must use the same policy
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            for name, value in list(vars(module).items()):
                if name.endswith("dropout") and isinstance(value, float):
                    setattr(module, name, 0.0)
        self.layers = adapters.lora_layers(self.model)
        for layer in self.layers:
            for factors in (layer.lora_A, layer.lora_B):
                factors.to(self.device)
        adapters.compute_in(self.layers, self.products)
        adapters.apply_active(self.layers)
        # With dropout disabled, train mode only enables transformers' activation checkpointing.
        self.model.train(self.config.checkpointing)

    def trainable(self, adapter: str) -> dict[str, nn.Parameter]:
        """The weights of the adapter by name, in a fixed order; all weights of the model if it has no adapters."""
        weights = dict(self.model.named_parameters())
        if self.peft is None:
            return weights
        return {name: weight for name, weight in weights.items() if f".{adapter}." in name}

    @contextmanager
    def frozen(self, adapter: str | None) -> Iterator[None]:
        """Within the context, use the given adapter, or the bare base, without gradients."""
        with torch.no_grad(), adapters.one_adapter(self.layers, adapter):
            yield

    def using(self, adapter: str) -> AbstractContextManager[None]:
        """Within the context, use the given adapter with its gradient.

        Run the backward pass inside the context: with gradient checkpointing, recomputed layers must see the same
        adapter.
        """
        return adapters.one_adapter(self.layers, adapter)

    def save_adapter(self, name: str, folder: Path) -> None:
        """Write the weights of one adapter in PEFT's format. Raises RunError if they are not finite."""
        assert self.peft is not None
        save_adapter_weights(self.peft, name, folder)

    def describe_adapter(self, name: str, folder: Path) -> None:
        """Write the PEFT configuration of one adapter, with the name of the base."""
        assert self.peft is not None
        save_adapter_config(self.peft, name, folder, self.base, self.revision)

    @cached_property
    def fingerprint(self) -> str:
        """The `weights_digest` of the base, computed once: the base under adapters never changes."""
        return weights_digest(self.model)


def _check_weights(model: PreTrainedModel, config: ModelConfig) -> None:
    """Refuse weights that cannot be used. Raises InputError."""
    if not getattr(model, "is_quantized", False) and (unfit := unfit_weight(model.named_parameters())):
        raise InputError(f"model={config.name}: {unfit}: download or export the model again, or choose another one")


def _load_once(
    config: ModelConfig, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype, *, trained: bool
) -> tuple[PreTrainedModel, str]:
    """The base, to be sharded over the processes, and its fingerprint.

    The main process alone reads the weights; the others build the model without any and get their shards from it.

    Raises:
        InputError: as `load_model`, or its weights cannot be used.
    """
    read = "", torch.get_rng_state(), None
    with distributed.raise_together():
        if distributed.is_main():
            model = load_model(config, tokenizer, dtype).requires_grad_(trained)
            _check_weights(model, config)
            # The whole weights are here only now; and random adapters come next, equal on all processes.
            read = weights_digest(model), torch.get_rng_state(), model.generation_config
    fingerprint, state, sampling = distributed.broadcast(read)
    with distributed.raise_together():
        if not distributed.is_main():
            model = unloaded_model(config, tokenizer, dtype).requires_grad_(trained)
            model.generation_config = sampling
            torch.set_rng_state(state)
    return model, fingerprint


def check_split(adapter: AdapterConfig) -> None:
    """Refuse what cannot be sharded: a quantised base, or settings of the launcher. Raises InputError."""
    if not distributed.sharded():
        return
    if adapter.name is AdapterKind.qlora:
        raise InputError(
            "config: --use_fsdp does not shard the quantised base of adapter=qlora: use adapter=lora, or launch "
            "without it"
        )
    if adapter.name is AdapterKind.none:
        from alignrun.distributed.sharding import check_trained

        check_trained()


def weights_digest(model: PreTrainedModel, *, rounded: bool = True) -> str:
    """A content digest of a model's weights without adapters.

    With `rounded`, weights are rounded to bfloat16 first, so a base has the same digest in float32 and bfloat16; use
    false for trained weights, which may differ by less than that. Empty for quantised or float16 weights, whose bits
    are not those of the original model. Of a sharded model, all processes compute it together.
    """
    if getattr(model, "is_quantized", False) or model.dtype is torch.float16:
        return ""
    digest = hashlib.sha256()
    for name, weight in model.named_parameters():
        if ".lora_" in name:
            continue
        value = whole(weight.detach())
        if value.is_floating_point():
            value = value.bfloat16().view(torch.int16) if rounded else value.float().view(torch.int32)
        # Hash row by row, since the hash of a row ignores the order of its elements. Use the CPU, so that the digest
        # does not depend on the base's device.
        value = value.cpu()
        rows = torch.hash_tensor(value, dim=1) if value.dim() == 2 else value
        digest.update(f"{name.replace('.base_layer.', '.')} {tuple(value.shape)}".encode())
        digest.update(rows.contiguous().numpy().tobytes())
    return digest.hexdigest()
