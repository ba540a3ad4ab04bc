"""Models that read two answers at once, asked in both orders: antisymmetric by construction."""

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from alignrun.models.published import Published, TokenRow
from alignrun.objectives.preference import antisymmetric_logits
from alignrun.preferences.base import Judgment, Preference


class BothOrders(Preference):
    """A published model's log-odds z(x, y, y') and z(x, y', y), combined by `symmetric`."""

    def __init__(self, published: Published, temperature: float) -> None:
        self._published, self._temperature = published, temperature

    @abstractmethod
    def encode(self, prompt: str, first: str, second: str) -> TokenRow:
        """The tokens of a question. Raises RunError for texts that the model cannot read."""

    @abstractmethod
    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """[N, 1] z of padded questions: the log-odds that the first answer is better."""

    def padding(self, rows: Sequence[TokenRow]) -> int:
        """The padding token."""
        return int(self._published.tokenizer.pad_token_id or 0)

    def __call__(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> Tensor:
        """[B] P(first ≻ second); ½ for equal answers, and if one order is too long and skipped."""
        return self.judge(prompts, first, second).probabilities.nan_to_num(0.5)

    def judge(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> Judgment:
        """Both orders separately, and combined."""
        rows: list[TokenRow | None] = []
        for prompt, one, other in zip(prompts, first, second, strict=True):
            pair = [self._published.fitting(self.encode(prompt, *texts)) for texts in ((one, other), (other, one))]
            rows += pair if None not in pair else [None, None]
        self._published.tally(rows[::2])
        scores = self._published.read(rows, self.forward, self.padding, 1).reshape(-1, 2)
        logits = scores / self._temperature
        return Judgment.in_both_orders(self.symmetric(logits), torch.sigmoid(logits))

    def symmetric(self, logits: Tensor) -> Tensor:
        """[B] σ(½(z(x, y, y') − z(x, y', y))) of both orders [B, 2]."""
        return torch.sigmoid(antisymmetric_logits(logits))

    def counts(self) -> dict[str, float]:
        """The number of pairs judged, and of those that were too long."""
        return self._published.counts()
