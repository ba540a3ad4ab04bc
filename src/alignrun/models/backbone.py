"""One base model, loaded once, and the adapters of the roles that share it."""

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
from alignrun.config import AdapterConfig, AdapterKind, ModelConfig
from alignrun.errors import InputError
from alignrun.models import adapters
from alignrun.models.capabilities import check_passes, check_rows
from alignrun.models.device import lay_out_weights, resolve
from alignrun.models.saving import save_adapter_config, save_adapter_weights
from alignrun.models.sources import base_name, load_model
from alignrun.models.targets import ALL_LINEAR, left_out
from alignrun.models.weights import unfit_weight


class Backbone:
    """A causal language model with its tokenizer. At most one of its adapters is trained, and that one is active."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: ModelConfig) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.config = config
        self.base = base_name(config)
        """What others load this model by; found now, since folders may be moved while a run lasts."""
        self.peft: PeftModel | None = None
        self.layers: list[LoraLayer] = []
        self.notes: list[str] = []
        """What a user should know of what was done with this model."""

    @classmethod
    def load(
        cls, config: ModelConfig, adapter: AdapterConfig, tokenizer: PreTrainedTokenizerBase, seed: int
    ) -> "Backbone":
        """Load the base and move it to its device, with no adapter on it yet.

        Raises:
            InputError: the model or the device is not available, its weights are not finite, or padding and caching
                change what it computes.
        """
        check_split(adapter)
        resolved = resolve(config, adapter)
        device, dtype = resolved.device, resolved.dtype
        torch.manual_seed(seed)  # random bases, and after them the adapter's random factor
        model = load_model(config, tokenizer, dtype, device, adapters.quantization(adapter, device, dtype))
        if adapter.name is not AdapterKind.qlora and not distributed.sharded():  # a quantised base is already in place
            model.to(device)
        if not getattr(model, "is_quantized", False) and (unfit := unfit_weight(model.named_parameters())):
            raise InputError(f"model={config.name}: {unfit}: download or export the model again, or choose another one")
        if adapter.name is AdapterKind.lora and not distributed.sharded():  # a base that stays as it is
            lay_out_weights(model)
        if config.gradient_checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
            model.enable_input_require_grads()
        backbone = cls(model, tokenizer, config)
        if distributed.sharded():
            from alignrun.distributed.sharding import shard

            _ = backbone.fingerprint  # before the weights are split, which it needs whole
            shard(model.requires_grad_(False), device)
        backbone.settle()
        check_passes(model)
        return backbone

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = self.model.device
        return device

    def add(self, name: str, config: AdapterConfig) -> None:
        """Put a new adapter on the base, to be trained. Raises as `adapters.add_adapter`."""
        if config.target_modules == [ALL_LINEAR] and (note := left_out(self.model)):
            self.notes = [note]
        self.peft = adapters.add_adapter(self.peft or self.model, name, config)
        self.settle()
        check_rows(self.model, name)

    def read(self, name: str, folder: Path, *, trainable: bool, key: str) -> None:
        """Put an adapter from a folder on the base. Raises as `adapters.read_adapter`."""
        self.peft = adapters.read_adapter(self.peft or self.model, name, folder, trainable=trainable, key=key)
        self.settle()
        check_rows(self.model, name)

    def copy(self, source: str, name: str) -> None:
        """Put a frozen copy of an adapter on the base."""
        assert self.peft is not None
        adapters.copy_adapter(self.peft, source, name)
        self.settle()

    def free_name(self, name: str) -> str:
        """The name, numbered where an adapter has it already."""
        taken = () if self.peft is None else self.peft.peft_config
        return next(free for free in chain([name], (f"{name}_{number}" for number in count(2))) if free not in taken)

    def settle(self) -> None:
        """Dropout off, in adapters that have just come too, and every weight where the base is."""
        for module in self.model.modules():  # the sampled and the scored policy must be the same
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            for name, value in list(vars(module).items()):
                if name.endswith("dropout") and isinstance(value, float):
                    setattr(module, name, 0.0)
        self.layers = adapters.lora_layers(self.model)
        for layer in self.layers:
            for factors in (layer.lora_A, layer.lora_B):
                factors.to(self.device)
        adapters.apply_active(self.layers)
        # Dropout is off, so train mode changes one thing only: transformers checkpoints activations there alone.
        self.model.train(self.config.gradient_checkpointing)

    def trainable(self, adapter: str) -> dict[str, nn.Parameter]:
        """The weights of that adapter by name, in a fixed order; all of the model's where it has no adapters."""
        weights = dict(self.model.named_parameters())
        if self.peft is None:
            return weights
        return {name: weight for name, weight in weights.items() if f".{adapter}." in name}

    @contextmanager
    def frozen(self, adapter: str | None) -> Iterator[None]:
        """Within the context, the model is the base with that adapter, or the bare base, and has no gradient."""
        with torch.no_grad(), adapters.one_adapter(self.layers, adapter):
            yield

    def using(self, adapter: str) -> AbstractContextManager[None]:
        """Within the context, the model is the base with that adapter, with its gradient.

        A backward pass belongs inside: layers that compute their activations again must find the same adapter.
        """
        return adapters.one_adapter(self.layers, adapter)

    def save_adapter(self, name: str, folder: Path) -> None:
        """Write the weights of one adapter in PEFT's format. Raises RunError where they are not finite."""
        assert self.peft is not None
        save_adapter_weights(self.peft, name, folder)

    def describe_adapter(self, name: str, folder: Path) -> None:
        """Write PEFT's configuration of one adapter, with the name of the base."""
        assert self.peft is not None
        save_adapter_config(self.peft, name, folder, self.base, self.config.revision)

    @cached_property
    def fingerprint(self) -> str:
        """The digest of the base's weights, as `weights_digest`, taken once: with adapters on it, it never changes."""
        return weights_digest(self.model)


def check_split(adapter: AdapterConfig) -> None:
    """Refuse an adapter with whose base the launcher's splitting does not go. Raises InputError."""
    if distributed.sharded() and adapter.name is not AdapterKind.lora:
        raise InputError(
            f"config: --use_fsdp splits a frozen base, and not that of adapter={adapter.name.value}: "
            "use adapter=lora, or launch without it"
        )


def weights_digest(model: PreTrainedModel, *, rounded: bool = True) -> str:
    """A digest of a model's weights, adapters left out; names and paths say less than the content.

    Rounded to bfloat16 first, it is the same whether a base is held in float32 or bfloat16, and adapters belong to
    both; weights that have been trained differ by less than that. Empty where a model's bits are not those of the
    model that it stands for: quantised, or rounded to float16.
    """
    if getattr(model, "is_quantized", False) or model.dtype is torch.float16:
        return ""
    digest = hashlib.sha256()
    for name, weight in model.named_parameters():
        if ".lora_" in name:
            continue
        value = weight.detach()
        if value.is_floating_point():
            value = value.bfloat16().view(torch.int16) if rounded else value.float().view(torch.int32)
        # Row by row, since the hash of a row does not depend on the order of its elements; on the CPU, to be the
        # same wherever the base is.
        value = value.cpu()
        rows = torch.hash_tensor(value, dim=1) if value.dim() == 2 else value
        digest.update(f"{name.replace('.base_layer.', '.')} {tuple(value.shape)}".encode())
        digest.update(rows.contiguous().numpy().tobytes())
    return digest.hexdigest()
