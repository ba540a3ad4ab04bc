"""A scalar or an embedding from the base: a LoRA adapter and a linear head on the last token.

Shape legend: B prompts, N = K·B continuations, S tokens, D hidden size, M size of an embedding.
"""

from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from alignrun.config import AdapterConfig
from alignrun.errors import InputError, one_line
from alignrun.models import adapters
from alignrun.models.backbone import Backbone
from alignrun.models.cards import AdapterCard, check_card, write_card, write_feedback_readme
from alignrun.models.hidden import hidden_states
from alignrun.models.saving import check_finite, save_tensors
from alignrun.models.weights import OTHER_WEIGHTS, unfit_weight
from alignrun.types import Completions, PromptBatch

HEAD_FILE = "head.safetensors"
HEAD = "head.weight"


class Scorer:
    """s(x, y) = wᵀh, where h is the base's hidden state at the last token of y with the feedback adapter.

    With a head of M rows it is the embedding v(x, y) = Wh/‖Wh‖ (arXiv 2410.02197).
    """

    def __init__(
        self, backbone: Backbone, card: AdapterCard, weight: nn.Parameter, adapter: str = adapters.FEEDBACK
    ) -> None:
        self._adapter = adapter
        self.backbone = backbone
        self.card = card
        self.weight = weight
        """[D] or [M, D] float32, the head; without a bias, which cancels in differences of scores."""

    @classmethod
    def create(cls, backbone: Backbone, adapter: AdapterConfig, card: AdapterCard, size: int | None = None) -> "Scorer":
        """A new scorer to train: its adapter is zero, and its head gives every completion 0.

        The head of an embedding of `size` is random, since a product of zero embeddings has no gradient.

        Raises:
            InputError: the adapter does not fit the base.
        """
        card = replace(card, base=backbone.fingerprint)
        backbone.add(adapters.FEEDBACK, adapter)
        hidden = backbone.model.config.get_text_config().hidden_size
        weight = torch.zeros(hidden) if size is None else torch.randn(size, hidden) / hidden**0.5
        return cls(backbone, card, nn.Parameter(weight.to(backbone.device)))

    @classmethod
    def read(cls, backbone: Backbone, folder: Path, card: AdapterCard, key: str) -> "Scorer":
        """A trained, frozen scorer from its folder.

        Raises:
            InputError: the folder is damaged, belongs to another base, or its weights are not finite real numbers.
        """
        check_card(backbone, folder, card.kind, key)
        try:
            weight = load_file(folder / HEAD_FILE)[HEAD]
        except (OSError, KeyError, SafetensorError) as error:
            raise InputError(f"{key}: {folder / HEAD_FILE} cannot be read ({one_line(error, 120)})") from None
        size = backbone.model.config.get_text_config().hidden_size
        rows = weight.shape[:-1]
        whole = len(rows) == 1 and rows[0] > 0 and rows[0] % 2 == 0 if card.kind == "embedding" else rows == ()
        if weight.shape[-1:] != (size,) or not whole:
            raise InputError(
                f"{key}: {folder / HEAD_FILE} holds a head of shape {list(weight.shape)}, and this base has hidden "
                f"states of size {size}: name a finished run"
            )
        if unfit := unfit_weight([(HEAD, weight)]):
            raise InputError(f"{key}: {folder / HEAD_FILE}: {unfit}: {OTHER_WEIGHTS}")
        adapter = backbone.free_name(adapters.FEEDBACK)  # several judges may share one base
        backbone.read(adapter, folder, trainable=False, key=key)
        return cls(backbone, card, nn.Parameter(weight.float().to(backbone.device), requires_grad=False), adapter)

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.backbone.device

    def trainable(self) -> dict[str, nn.Parameter]:
        """The trained parameters by name, in a fixed order."""
        return self.backbone.trainable(self._adapter) | {HEAD: self.weight}

    def scores(self, prompts: PromptBatch, completions: Completions) -> Tensor:
        """[N] s(x, y) or [N, M] v(x, y), float32; with a gradient while it is trained. Each prompt is read once.

        Args:
            prompts: B heads, padded on the left.
            completions: [N, S] continuations, padded on the right; those of prompt b are rows b·K to b·K + K − 1.
        """
        hidden = hidden_states(self.backbone.model, prompts, completions.tokens, completions.mask)
        last = completions.mask.sum(1)  # index 0 is the end of the prompt
        rows = torch.arange(len(last), device=last.device)
        states = hidden[rows, last].float()
        if self.weight.dim() == 1:
            scores: Tensor = states @ self.weight
            return scores
        return nn.functional.normalize(states @ self.weight.T, dim=-1)

    @torch.no_grad()
    def frozen_scores(self, prompts: PromptBatch, completions: Completions) -> Tensor:
        """[N] or [N, M] the same without a gradient, whichever adapter the base is trained with."""
        with self.backbone.frozen(self._adapter):
            return self.scores(prompts, completions)

    def describe(self, folder: Path) -> None:
        """Write everything but the weights: PEFT's configuration, the tokenizer, and a README for people."""
        self.backbone.describe_adapter(self._adapter, folder)
        self.backbone.tokenizer.save_pretrained(folder)
        write_feedback_readme(folder, self.backbone, self.card)

    def save_adapter(self, folder: Path) -> None:
        """Write the adapter in PEFT's format, the head, and the card."""
        check_finite([(HEAD, self.weight)])
        self.backbone.save_adapter(self._adapter, folder)
        save_tensors({HEAD: self.weight}, folder / HEAD_FILE)
        self.describe(folder)
        write_card(folder, self.card)
