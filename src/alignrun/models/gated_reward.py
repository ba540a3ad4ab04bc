"""ArmoRM's architecture: Llama with several scores and a gate that weights them by the prompt (arXiv 2406.12845)."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel, LlamaPreTrainedModel


class Gate(nn.Module):
    """softmax(MLP(h) / temperature) · scale: the weight of each score."""

    def __init__(self, config: LlamaConfig, scores: int) -> None:
        super().__init__()
        hidden, depth = getattr(config, "gating_hidden_dim", 1024), getattr(config, "gating_n_hidden", 3)
        sizes = [config.hidden_size, *[hidden] * depth, scores]
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(sizes))
        self.logit_scale = nn.Parameter(torch.ones(1))
        self.temperature = float(getattr(config, "gating_temperature", 10))

    def forward(self, hidden: Tensor) -> Tensor:
        """[N, K] weights from [N, D] the hidden state at the end of the prompt."""
        for layer in self.layers[:-1]:
            hidden = torch.relu(layer(hidden))
        return torch.softmax(self.layers[-1](hidden) / self.temperature, dim=1) * self.logit_scale


class GatedReward(LlamaPreTrainedModel):  # type: ignore[misc]
    """r(x, y) = g(x)ᵀMᵀs(x, y): scores s at the last token, weights g at the last token of the prompt.

    The names of its parts are those of the published weights, whose own code transformers 5 cannot import.
    """

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        scores = getattr(config, "num_objectives", 19)
        self.model = LlamaModel(config)
        self.regression_layer = nn.Linear(config.hidden_size, scores, bias=False)
        self.reward_transform_matrix = nn.Parameter(torch.eye(scores))
        self.gating = Gate(config, scores)
        self.post_init()

    def forward(self, input_ids: Tensor, attention_mask: Tensor, prompt_lengths: Tensor) -> Tensor:
        """[N, 1 + K] r and s of texts [N, S] padded on the right, the first tokens of which are the prompt."""
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
        rows = torch.arange(len(hidden), device=hidden.device)
        end, prompt = (hidden[rows, length - 1] for length in (attention_mask.sum(1), prompt_lengths))
        scores = self.regression_layer(end)
        gated = (self.gating(prompt) * (scores @ self.reward_transform_matrix)).sum(1, keepdim=True)
        return torch.cat([gated, scores], dim=1)
