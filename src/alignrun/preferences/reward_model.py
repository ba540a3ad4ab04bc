"""A published reward model (a sequence classifier) or a run of algo=reward_model: preference.path=HUB_ID_OR_FOLDER."""

from collections.abc import Sequence
from dataclasses import field, fields

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from alignrun.config import PublishedConfig, schema
from alignrun.errors import InputError
from alignrun.models.backbone import Backbone
from alignrun.models.cards import FILE, adapter_folder
from alignrun.models.published import Published, TokenRow, check_path
from alignrun.models.sources import vocabulary_size
from alignrun.preferences.base import Preference, Reward, preference
from alignrun.preferences.bradley_terry import BradleyTerry
from alignrun.preferences.conversations import ConversationEncoder
from alignrun.preferences.feedback_model import find_card, load_feedback_model

TEXTS = 32
"""The batch size of a run of algo=reward_model."""


@schema
class RewardModelConfig(PublishedConfig):
    """P = σ((r − r') / temperature) with r the model's score; `path` may also be a run of algo=reward_model."""

    name: str = "reward_model"
    labels: dict[str, float] = field(default_factory=dict)
    """For a model with several scores: their weights, by the names in its configuration. r is the weighted sum."""


class PublishedReward(Reward):
    """σ(r(x, y) − r(x, y')) with r from a sequence classifier."""

    def __init__(self, published: Published, config: RewardModelConfig) -> None:
        super().__init__(config.temperature)
        self._published = published
        model = published.model
        self._encoder = ConversationEncoder(published.tokenizer, config.name, vocabulary_size(model.config))
        self._weights = label_weights(config, {int(k): str(v) for k, v in (model.config.id2label or {}).items()})
        self._pad = getattr(model.config.get_text_config(), "pad_token_id", None)

    def rewards(self, prompts: Sequence[str], completions: Sequence[str]) -> Tensor:
        """[B] scores; NaN for a text that is too long and skipped."""
        rows = [self._encoder.encode(*pair) for pair in zip(prompts, completions, strict=True)]
        fitting = [self._published.fitting(row) for row in rows]
        self._published.tally(fitting)
        return self._published.read(fitting, self._scores, self._padding, len(self._weights)) @ self._weights

    def counts(self) -> dict[str, float]:
        """The number of texts scored, and of those that were too long."""
        return self._published.counts()

    def _scores(self, batch: dict[str, Tensor]) -> Tensor:
        scores: Tensor = self._published.model(**batch).logits
        return scores

    def _padding(self, rows: Sequence[TokenRow]) -> int:
        """The padding token, by which decoders find the last token of every row."""
        text_config = self._published.model.config.get_text_config()
        if self._pad is None:
            last = {row.ids[-1] for row in rows}
            text_config.pad_token_id = next(token for token in range(len(last) + 1) if token not in last)
        return int(text_config.pad_token_id)


def label_weights(config: RewardModelConfig, names: dict[int, str]) -> Tensor:
    """[L] the weights of a model's scores. Raises InputError for an unknown name, or several scores without weights."""
    known = list(names.values())
    if not config.labels:
        if len(known) != 1:
            raise InputError(
                f"preference.path={config.path} has {len(known)} scores: weight them, as in "
                f"preference.labels='{{{known[0] if known else 'NAME'}: 1}}', of {', '.join(known)}"
            )
        return torch.ones(1)
    for name in config.labels:
        if name not in known:
            raise InputError(f"preference.labels: {config.path} has no score {name}: choose from {', '.join(known)}")
    return torch.tensor([config.labels.get(name, 0.0) for name in known])


def is_run(config: PublishedConfig) -> bool:
    """Whether the path is that of a run, or of a folder saved by one."""
    return (adapter_folder(str(config.path)) / FILE).is_file()


def check(config: RewardModelConfig) -> None:
    """Refuse invalid settings before a model is loaded. Raises InputError."""
    if not is_run(config):
        check_path(config)
        return
    find_card(str(config.path), "reward")
    plain = RewardModelConfig(name=config.name, path=config.path, temperature=config.temperature)
    if set_here := [each.name for each in fields(config) if getattr(config, each.name) != getattr(plain, each.name)]:
        raise InputError(f"preference.{set_here[0]} is for published models, and {config.path} is a run: leave it out")


@preference(
    "reward_model", RewardModelConfig, check=check, on_base=True, empty=AutoModelForSequenceClassification.from_config
)
def build(config: RewardModelConfig, backbone: Backbone | None = None) -> Preference:
    """The preference that the configuration asks for."""
    if is_run(config):
        return BradleyTerry(load_feedback_model(str(config.path), "reward", TEXTS, backbone), config.temperature)
    return PublishedReward(Published.load(config, AutoModelForSequenceClassification, backbone), config)
