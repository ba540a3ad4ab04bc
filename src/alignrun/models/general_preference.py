"""Published general preference models: a language model with two heads (arXiv 2410.02197).

Their format is that of github.com/general-preference/general-preference-model: a folder of a causal language model with
two tensors more, `value_head.weight` [2k, D] and, where R depends on the prompt, `prompt_head.weight` [k, D].
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.utils import cached_file

VALUE, PROMPT = "value_head.weight", "prompt_head.weight"
INDEX, WHOLE = "model.safetensors.index.json", "model.safetensors"


class GeneralPreferenceModel(nn.Module):
    """v(x, y) = Wh/‖Wh‖ at the last token, and λ(x) = softmax(Uh) at the last token of the prompt."""

    def __init__(self, base: PreTrainedModel, heads: dict[str, Tensor]) -> None:
        super().__init__()
        self.base, self.config = base, base.config
        self.value_head = nn.Parameter(heads[VALUE])
        self.prompt_head = nn.Parameter(heads[PROMPT]) if PROMPT in heads else None

    @property
    def base_model(self) -> PreTrainedModel:
        """The language model without the heads."""
        return self.base

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        device: torch.device = self.base.device
        return device

    @classmethod
    def from_pretrained(
        cls, place: str, *, output_loading_info: bool, **options: Any
    ) -> tuple["GeneralPreferenceModel", dict[str, Any]]:
        """Load from a folder or the hub, like transformers' models."""
        assert output_loading_info
        heads = _heads(place, {name: options[name] for name in ("revision", "local_files_only")})
        base, found = AutoModel.from_pretrained(place, output_loading_info=True, **options)
        missing = [*found["missing_keys"], *({VALUE} - set(heads))]
        if missing:
            heads |= {VALUE: torch.zeros(2, base.config.get_text_config().hidden_size)}
        return cls(base, {name: head.to(base.dtype) for name, head in heads.items()}), {"missing_keys": missing}

    @classmethod
    def empty(cls, architecture: PreTrainedConfig) -> "GeneralPreferenceModel":
        """Build with the smallest heads, since the architecture does not give their size."""
        size = architecture.get_text_config().hidden_size
        return cls(AutoModel.from_config(architecture), {VALUE: torch.zeros(2, size)})

    def forward(self, input_ids: Tensor, attention_mask: Tensor, prompt_lengths: Tensor) -> Tensor:
        """[N, 2k + k] v and λ of texts padded on the right, the first tokens of which are the prompt."""
        hidden = self.base(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
        rows = torch.arange(len(hidden), device=hidden.device)
        end, prompt = (hidden[rows, length - 1] for length in (attention_mask.sum(1), prompt_lengths))
        embeddings = nn.functional.normalize((end @ self.value_head.T).float(), dim=-1)
        if self.prompt_head is None:
            return torch.cat([embeddings, torch.ones_like(embeddings[:, ::2])], dim=1)
        return torch.cat([embeddings, torch.softmax((prompt @ self.prompt_head.T).float(), dim=-1)], dim=1)


def _heads(place: str, options: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors of the heads that the checkpoint has."""
    index = cached_file(place, INDEX, _raise_exceptions_for_missing_entries=False, **options)
    named = {VALUE: WHOLE, PROMPT: WHOLE}
    if index is not None:
        files = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"]
        named = {name: files[name] for name in named if name in files}
    heads = {}
    for name, file in named.items():
        with safe_open(str(cached_file(place, file, **options)), framework="pt") as tensors:
            if name in set(tensors.keys()):
                heads[name] = tensors.get_tensor(name)
    return heads
