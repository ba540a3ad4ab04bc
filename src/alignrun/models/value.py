"""The value function on the base: its own LoRA adapter and a linear head, trained next to the policy.

Shape legend: B prompts, N = K·B completions, T tokens, D hidden size.
"""

from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from alignrun.config import AdapterConfig
from alignrun.models import adapters
from alignrun.models.backbone import Backbone
from alignrun.models.hidden import hidden_states
from alignrun.types import Completions, PromptBatch

HEAD = "value.head"


class Value:
    """V(x, y_<n) = wᵀh_n, with h_n the hidden state before token n under the value adapter; initially zero."""

    def __init__(self, backbone: Backbone, config: AdapterConfig) -> None:
        assert backbone.peft is not None
        self._backbone = backbone
        active = backbone.peft.active_adapter
        backbone.add(adapters.VALUE, config)
        backbone.peft.set_adapter(active)
        size = backbone.model.config.get_text_config().hidden_size
        self.weight = nn.Parameter(torch.zeros(size, device=backbone.device))
        for weight in backbone.trainable(adapters.VALUE).values():
            weight.requires_grad_(True)  # PEFT trains one adapter at a time

    def trainable(self) -> dict[str, nn.Parameter]:
        """The adapter's weights and the head by name, in a fixed order."""
        return self._backbone.trainable(adapters.VALUE) | {HEAD: self.weight}

    def active(self) -> AbstractContextManager[None]:
        """The context in which to call `values` and run its backward pass."""
        return self._backbone.using(adapters.VALUE)

    def values(self, prompts: PromptBatch, completions: Completions) -> Tensor:
        """[N, T] V before every token, float32, zero on padding; those of prompt b are rows b·K to b·K + K − 1."""
        tokens, mask = completions.tokens, completions.mask
        hidden = hidden_states(self._backbone.model, prompts, tokens[:, :-1], mask[:, :-1])
        values: Tensor = hidden.float() @ self.weight
        return values * mask
