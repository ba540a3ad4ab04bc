"""PairRM, 0.4B: a DeBERTa encoder that compares two answers to a request (arXiv 2306.02561).

In the format of llm-blender/PairRM-hf, the version that transformers can load.

The published weights were out of reach when this was written; it is tested on random weights of the same architecture.
"""

from typing import Any

from torch import Tensor, nn
from transformers import DebertaV2Config, PreTrainedConfig

from alignrun.config import PublishedConfig, schema
from alignrun.data.control import TextEncoder
from alignrun.errors import InputError
from alignrun.models.backbone import Backbone
from alignrun.models.published import Published, TokenRow, check_path
from alignrun.preferences.base import Preference, always, preference
from alignrun.preferences.both_orders import BothOrders

MARKS = ("<|source|>", "<|candidate1|>", "<|candidate2|>")
CONTEXT = 2048
"""Trained with 1224 tokens of the request and 412 of each answer; longer texts are cut there."""


@schema
class PairRMConfig(PublishedConfig):
    """P = σ(½(z(x, y, y') − z(x, y', y)) / temperature)."""

    name: str = "pairrm"
    path: str | None = "llm-blender/PairRM-hf"
    """A hub id or a local folder with a PairRM in the format of transformers."""


class PairRM(BothOrders):
    """Each text is encoded separately after its mark, and the three are concatenated."""

    def __init__(self, published: Published, config: PairRMConfig) -> None:
        super().__init__(published, config.temperature)
        published.context = CONTEXT
        tokenizer: Any = published.tokenizer
        self._encoder = TextEncoder(tokenizer, "".join(MARKS))
        self._open, self._close = tokenizer.cls_token_id, tokenizer.sep_token_id
        names = ("source_prefix_id", "cand1_prefix_id", "cand2_prefix_id")
        marks = [tokenizer.convert_tokens_to_ids(mark) for mark in MARKS]
        if marks != [getattr(published.model.config, name, None) for name in names]:
            raise InputError(
                f"preference.path={config.path} has no marks {', '.join(MARKS)}: name a PairRM in transformers' format"
            )

    def encode(self, prompt: str, first: str, second: str) -> TokenRow:
        """[CLS] mark text [SEP] three times over: of the request, and of each answer."""
        ids: list[int] = []
        for mark, text in zip(MARKS, (str(prompt), first, second), strict=True):
            guard = self._encoder.guard([text])
            ids += [self._open, *self._encoder.encode(mark + guard.hide(text), guard), self._close]
        return TokenRow(tuple(ids))

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """[N, 1] z."""
        scores: Tensor = self._published.model(**batch)
        return scores.float()[:, None]


def _empty(architecture: PreTrainedConfig) -> nn.Module:
    from alignrun.models.pair_ranker import PairRanker

    assert isinstance(architecture, DebertaV2Config)
    return PairRanker(architecture)


@preference("pairrm", PairRMConfig, check=check_path, on_base=True, empty=_empty, by_pair=always)
def build(config: PairRMConfig, backbone: Backbone | None = None) -> Preference:
    """The preference that the configuration asks for."""
    from alignrun.models.pair_ranker import PairRanker  # here, since DeBERTa takes a while to import

    return PairRM(Published.load(config, PairRanker, backbone), config)
