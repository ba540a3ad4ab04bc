"""ArmoRM, 8B on Llama 3: 19 scores, and a mixture of them that depends on the prompt (arXiv 2406.12845).

In the format of RLHFlow/ArmoRM-Llama3-8B-v0.1.

Tested only on random weights of the same architecture: the published ones were not available.
"""

from collections.abc import Sequence
from dataclasses import field

import torch
from torch import Tensor

from alignrun.config import PublishedConfig, schema
from alignrun.errors import InputError
from alignrun.models.backbone import Backbone
from alignrun.models.gated_reward import GatedReward
from alignrun.models.published import Published, TokenRow, check_path
from alignrun.models.sources import vocabulary_size
from alignrun.preferences.base import Preference, Reward, preference
from alignrun.preferences.conversations import ConversationEncoder

SCORES = (
    *(f"helpsteer-{name}" for name in ("helpfulness", "correctness", "coherence", "complexity", "verbosity")),
    *("ultrafeedback-overall_score", "ultrafeedback-instruction_following", "ultrafeedback-truthfulness"),
    *("ultrafeedback-honesty", "ultrafeedback-helpfulness", "beavertails-is_safe", "prometheus-score"),
    *("argilla-overall_quality", "argilla-judge_lm", "code-complexity", "code-style", "code-explanation"),
    *("code-instruction-following", "code-readability"),
)
"""The model's scores, in the order of its card."""


@schema
class ArmoRMConfig(PublishedConfig):
    """P = σ((r − r') / temperature) with r the model's mixture of its scores, or a fixed one."""

    name: str = "armorm"
    path: str | None = "RLHFlow/ArmoRM-Llama3-8B-v0.1"
    """A hub id or a local folder with an ArmoRM."""
    labels: dict[str, float] = field(default_factory=dict)
    """Weights of scores by name, such as helpsteer-helpfulness: 1; empty for the model's own mixture."""


class ArmoRM(Reward):
    """σ(r(x, y) − r(x, y')) with r from a Llama with 19 scores."""

    def __init__(self, published: Published, config: ArmoRMConfig) -> None:
        super().__init__(config.temperature)
        self._published = published
        self._encoder = ConversationEncoder(published.tokenizer, config.name, vocabulary_size(published.model.config))
        found = published.model.regression_layer.out_features
        if found != len(SCORES):
            raise InputError(f"preference.path={config.path} has {found} scores, and an ArmoRM has {len(SCORES)}")
        for name in config.labels:
            if name not in SCORES:
                raise InputError(f"preference.labels: an ArmoRM has no score {name}: choose from {', '.join(SCORES)}")
        own = [config.labels.get(name, 0.0) for name in SCORES]
        self._weights = torch.tensor([0.0, *own] if config.labels else [1.0, *own])

    def rewards(self, prompts: Sequence[str], completions: Sequence[str]) -> Tensor:
        """[B] rewards; NaN for a text that is too long and skipped."""
        rows = [self._encoder.marked(*pair) for pair in zip(prompts, completions, strict=True)]
        fitting = [self._published.fitting(row) for row in rows]
        self._published.tally(fitting)
        return self._published.read(fitting, self._forward, self._padding, len(self._weights)) @ self._weights

    def counts(self) -> dict[str, float]:
        """The number of texts scored, and of those that were too long."""
        return self._published.counts()

    def _padding(self, rows: Sequence[TokenRow]) -> int:
        return int(self._published.tokenizer.pad_token_id or 0)

    def _forward(self, batch: dict[str, Tensor]) -> Tensor:
        lengths = batch["token_type_ids"].sum(1)
        found: Tensor = self._published.model(batch["input_ids"], batch["attention_mask"], lengths)
        return found


@preference("armorm", ArmoRMConfig, check=check_path, on_base=True, empty=GatedReward)
def build(config: ArmoRMConfig, backbone: Backbone | None = None) -> Preference:
    """The preference that the configuration asks for."""
    return ArmoRM(Published.load(config, GatedReward, backbone), config)
