"""A published general preference model, cycles included: preference.path=HUB_ID_OR_FOLDER.

In the format of github.com/general-preference/general-preference-model (arXiv 2410.02197), as
general-preference/GPM-Llama-3.1-8B: one forward pass per completion.

Tested only on random weights of the same architecture: the published ones were not available.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from alignrun.config import PublishedConfig, schema
from alignrun.models.backbone import Backbone
from alignrun.models.general_preference import GeneralPreferenceModel
from alignrun.models.published import Published, TokenRow, check_path
from alignrun.objectives.preference import skew_logits
from alignrun.preferences.base import Preference, preference
from alignrun.preferences.conversations import ConversationEncoder


@schema
class GeneralPreferenceConfig(PublishedConfig):
    """P = σ(Σ λ_i(x) (v_{2i} v'_{2i+1} − v_{2i+1} v'_{2i}) / temperature)."""

    name: str = "general_preference"
    temperature: float = 0.1
    """0.1 is what the published models were trained with."""


class GeneralPreference(Preference):
    """Embeds each completion, and compares the embeddings."""

    by_pair = False

    def __init__(self, published: Published, config: GeneralPreferenceConfig) -> None:
        self._published, self._temperature = published, config.temperature
        self._encoder = ConversationEncoder(published.tokenizer, config.name, opens=True)

    def __call__(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> Tensor:
        """[B] P(first ≻ second); ½ if one is too long and skipped."""
        rows = [
            self._published.fitting(self._row(*pair))
            for pair in zip([*prompts, *prompts], [*first, *second], strict=True)
        ]
        self._published.tally(rows)
        size = len(self._published.model.value_head)
        read = self._published.read(rows, self._forward, self._padding, size + size // 2)
        one, other = read[:, :size].unflatten(0, (2, -1))
        # The prompt is the same on both sides; only the padding around it differed.
        scales = read[:, size:].unflatten(0, (2, -1)).mean(0)
        return torch.sigmoid(skew_logits(one, other, scales) / self._temperature).nan_to_num(0.5)

    def counts(self) -> dict[str, float]:
        """The number of texts scored, and of those that were too long."""
        return self._published.counts()

    def _row(self, prompt: str, completion: str) -> TokenRow:
        """The conversation with EOS in place of its last token; the token types mark the prompt."""
        row = self._encoder.marked(prompt, completion)
        return TokenRow((*row.ids[:-1], int(self._published.tokenizer.eos_token_id)), row.types)

    def _padding(self, rows: Sequence[TokenRow]) -> int:
        return int(self._published.tokenizer.pad_token_id or 0)

    def _forward(self, batch: dict[str, Tensor]) -> Tensor:
        model: Any = self._published.model
        found: Tensor = model(batch["input_ids"], batch["attention_mask"], batch["token_type_ids"].sum(1))
        return found


@preference(
    "general_preference", GeneralPreferenceConfig, check=check_path, on_base=True, empty=GeneralPreferenceModel.empty
)
def build(config: GeneralPreferenceConfig, backbone: Backbone | None = None) -> Preference:
    """The preference that the configuration asks for."""
    return GeneralPreference(Published.load(config, GeneralPreferenceModel, backbone), config)
