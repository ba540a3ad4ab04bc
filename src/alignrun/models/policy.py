"""One frozen base, two roles: the policy that is trained and the reference it is compared with.

Shape legend: B prompts, P prompt tokens, T completion tokens.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from alignrun.config import AdapterConfig, AdapterKind, ModelConfig, Precision, ReferenceConfig, ReferenceKind
from alignrun.errors import InputError
from alignrun.models import adapters
from alignrun.models.decoder import CachedDecoder, PairedDecoder, RowDecoder, position_ids
from alignrun.models.device import copy_to, resolve_device, resolve_dtype
from alignrun.models.head import check_head, vocabulary_head
from alignrun.models.sources import load_model
from alignrun.objectives.likelihood import token_log_probs
from alignrun.types import Completions, PromptBatch


class Role(str, Enum):
    """Whose distribution is asked for."""

    policy = "policy"
    reference = "reference"


class Policy:
    """The policy π and the reference μ.

    With an adapter, both are one base: π with the trained adapter, μ with none (or a frozen one). Without an
    adapter all weights are trained, and μ is a frozen copy of what they were.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, peft: PeftModel | None, separate: bool
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.peft = peft
        self.head = vocabulary_head(model)
        check_head(model, self.head)
        self._reference_model = copy.deepcopy(model).requires_grad_(False) if separate else None
        self._reference_adapter = adapters.REFERENCE if peft and adapters.REFERENCE in peft.peft_config else None
        self._layers = adapters.lora_layers(model)

    @classmethod
    def load(
        cls,
        config: ModelConfig,
        adapter: AdapterConfig,
        reference: ReferenceConfig,
        tokenizer: PreTrainedTokenizerBase,
        seed: int,
    ) -> "Policy":
        """Load the base, put the adapters on it and move it to its device.

        Raises:
            InputError: the model, the adapter or the device is not to be had.
        """
        device = resolve_device(config.device)
        dtype = resolve_dtype(config.dtype, device)
        if adapter.name is AdapterKind.none and config.dtype is Precision.auto:
            dtype = torch.float32  # small updates of bfloat16 weights would be rounded away
        torch.manual_seed(seed)  # random bases and the adapter's random factor
        model = load_model(config, tokenizer, dtype, device, adapters.quantization(adapter, device, dtype))
        if config.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            model.enable_input_require_grads()
        peft = None
        if adapter.name is AdapterKind.none:
            if reference.name is ReferenceKind.adapter:
                raise InputError("reference=adapter needs adapter=lora or qlora: all weights are trained here")
        elif reference.name is ReferenceKind.adapter:
            peft = adapters.add_reference_adapter(model, adapter_folder(str(reference.path)))
        else:
            peft = adapters.add_policy_adapter(model, adapter)
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0  # the sampled and the scored policy must be the same
        if hasattr(model.config, "attention_dropout"):
            model.config.attention_dropout = 0.0
        if adapter.name is not AdapterKind.qlora:  # a quantised base is already in place
            model.to(device)
        # Dropout is off, so train mode changes one thing only: transformers checkpoints activations there alone.
        model.train(config.gradient_checkpointing)
        return cls(model, tokenizer, peft, separate=peft is None)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = self.model.device
        return device

    @property
    def stop_ids(self) -> list[int]:
        """The tokens that end a completion: the tokenizer's and the model's own."""
        own = self.model.generation_config.eos_token_id
        listed = own if isinstance(own, list) else [own]
        return sorted({token for token in [*listed, self.tokenizer.eos_token_id] if token is not None})

    def ends(self, completions: Completions) -> Tensor:
        """[B] bool: whether the completion reached a stop token rather than the length limit."""
        stop = torch.tensor(self.stop_ids, device=completions.tokens.device)
        return (torch.isin(completions.tokens, stop) & completions.mask).any(1)

    def trainable(self) -> dict[str, nn.Parameter]:
        """The trained parameters by name, in a fixed order."""
        return {name: weight for name, weight in self.model.named_parameters() if weight.requires_grad}

    def to_device(self, batch: PromptBatch) -> PromptBatch:
        """The batch on the model's device."""
        return PromptBatch(
            batch.texts, copy_to(batch.input_ids, self.device), copy_to(batch.attention_mask, self.device)
        )

    def decoder(self, prompts: PromptBatch, roles: Sequence[Role]) -> RowDecoder:
        """Rows for decoding: every prompt once for each role, the policy's block first."""
        names = [self._adapter(role) for role in roles]
        if self._reference_model is None:
            return CachedDecoder(self.model, prompts, names)
        parts = [CachedDecoder(self._module(role), prompts, [None]) for role in roles]
        return parts[0] if len(parts) == 1 else PairedDecoder(parts[0], parts[1], len(prompts))

    def log_probs(self, role: Role, prompts: PromptBatch, completions: Completions, temperature: float = 1.0) -> Tensor:
        """[N, T] log π(y_n | x, y_<n) of every completion token, zero on padding.

        The policy's carry a gradient where gradients are enabled; the reference's never do. Only the completions'
        positions reach the vocabulary head, and a prompt with several completions is read once for all of them.

        Args:
            role: whose log-probabilities.
            prompts: B prompts.
            completions: N = K·B completions; those of prompt b are rows b·K to b·K + K − 1.
            temperature: divides the logits.
        """
        module = self._module(role)
        # Checkpointed layers keep no cache, so there every completion comes with its prompt.
        shared = len(completions.tokens) > len(prompts) and not module.is_gradient_checkpointing
        with self._as(role):
            hidden = (_hidden_after_shared_prompts if shared else _hidden_in_rows)(module, prompts, completions)
            head = self.head if module is self.model else vocabulary_head(module)
            log_probs = token_log_probs(hidden, head, completions.tokens, temperature=temperature)
        return log_probs * completions.mask

    def save_adapter(self, folder: Path) -> None:
        """Write what was trained as a PEFT adapter, or the whole model where there is no adapter (safetensors)."""
        if self.peft is None:
            self.model.save_pretrained(folder)
        else:
            self.peft.save_pretrained(folder, selected_adapters=[adapters.POLICY])
            nested = folder / adapters.POLICY  # PEFT puts every adapter but `default` into a folder of its name
            for file in nested.iterdir():
                file.replace(folder / file.name)
            nested.rmdir()
        self.tokenizer.save_pretrained(folder)

    def save_merged(self, folder: Path) -> None:
        """Write base and adapter as one model (safetensors); the policy cannot be used afterwards."""
        merged = self.model if self.peft is None else self.peft.merge_and_unload(adapter_names=[adapters.POLICY])
        merged.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def _adapter(self, role: Role) -> str | None:
        if self.peft is None:
            return None
        return adapters.POLICY if role is Role.policy else self._reference_adapter

    def _module(self, role: Role) -> PreTrainedModel:
        if role is Role.reference and self._reference_model is not None:
            return self._reference_model
        return self.model

    @contextmanager
    def _as(self, role: Role) -> Iterator[None]:
        if role is Role.policy:
            yield
            return
        name = self._adapter(role)
        spans = [(name, slice(None))] if name else []
        with torch.no_grad(), adapters.adapters_on_rows(self._layers, spans):
            yield


def _hidden_in_rows(module: PreTrainedModel, prompts: PromptBatch, completions: Completions) -> Tensor:
    """[N, T, D] the hidden state before each completion token, from rows of prompt and completion."""
    copies = len(completions.tokens) // len(prompts)
    prompt_mask = prompts.attention_mask.repeat_interleave(copies, 0)
    ids = torch.cat([prompts.input_ids.repeat_interleave(copies, 0), completions.tokens], dim=1)
    mask = torch.cat([prompt_mask, completions.mask.to(prompt_mask)], dim=1)
    output = module.base_model(input_ids=ids, attention_mask=mask, position_ids=position_ids(mask), use_cache=False)
    hidden: Tensor = output.last_hidden_state[:, prompts.input_ids.shape[1] - 1 : -1]
    return hidden


def _hidden_after_shared_prompts(module: PreTrainedModel, prompts: PromptBatch, completions: Completions) -> Tensor:
    """The same, with each prompt's keys and values computed once and repeated for its completions.

    Gradients flow through the repetition, so that those of the prompt are the sum over its completions.
    """
    copies = len(completions.tokens) // len(prompts)
    cache = DynamicCache(config=module.config)
    prompt_mask = prompts.attention_mask
    output = module.base_model(
        input_ids=prompts.input_ids,
        attention_mask=prompt_mask,
        position_ids=position_ids(prompt_mask),
        cache=cache,
        use_cache=True,
    )
    first: Tensor = output.last_hidden_state[:, -1:].repeat_interleave(copies, 0)
    if completions.tokens.shape[1] == 1:
        return first
    cache.batch_repeat_interleave(copies)
    inputs, inputs_mask = completions.tokens[:, :-1], completions.mask[:, :-1].to(prompt_mask)
    lengths = prompt_mask.sum(1, keepdim=True).repeat_interleave(copies, 0)
    output = module.base_model(
        input_ids=inputs,
        attention_mask=torch.cat([prompt_mask.repeat_interleave(copies, 0), inputs_mask], dim=1),
        position_ids=lengths + torch.arange(inputs.shape[1], device=inputs.device),
        cache=cache,
        use_cache=True,
    )
    following: Tensor = output.last_hidden_state
    return torch.cat([first, following], dim=1)


def adapter_folder(path: str) -> Path:
    """The adapter inside a run directory, or the folder itself."""
    folder = Path(path).expanduser()
    inside = folder / "adapter"
    return inside if inside.is_dir() else folder
