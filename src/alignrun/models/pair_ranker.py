"""PairRM's architecture: DeBERTa over a request and two answers, each after a mark (arXiv 2306.02561)."""

import torch
from torch import Tensor, nn
from transformers import DebertaV2Config, DebertaV2Model, DebertaV2PreTrainedModel


class PairRanker(DebertaV2PreTrainedModel):  # type: ignore[misc]
    """s(a) = head([h(request mark), h(mark of a)]); z = s(first) − s(second), the mean over the head's tasks.

    The names of its parts are those of the published weights.
    """

    def __init__(self, config: DebertaV2Config) -> None:
        super().__init__(config)
        size = config.hidden_size
        self.pretrained_model = DebertaV2Model(config)
        self.head_layer = nn.Sequential(
            nn.Identity(),
            nn.Linear(2 * size, size),
            nn.Tanh(),
            nn.Identity(),
            nn.Linear(size, getattr(config, "n_tasks", 1)),
        )
        self.post_init()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """[N] z of N questions [N, S], each with the three marks once."""
        hidden = self.pretrained_model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        rows = torch.arange(len(hidden), device=hidden.device)
        marks = (self.config.source_prefix_id, self.config.cand1_prefix_id, self.config.cand2_prefix_id)
        request, first, second = (hidden[rows, (input_ids == mark).int().argmax(1)] for mark in marks)
        one, other = (self.head_layer(torch.cat([request, answer], dim=-1)) for answer in (first, second))
        difference: Tensor = (one - other).mean(-1)
        return difference
