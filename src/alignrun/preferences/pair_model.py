"""A language model that reads both answers and names one: preference.path=HUB_ID_OR_FOLDER.

The preference is read from the probabilities of two tokens.
"""

from dataclasses import field
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from alignrun.config import PublishedConfig, require, schema
from alignrun.config.templates import split_template
from alignrun.data.control import UnreadableTextError
from alignrun.data.templates import write
from alignrun.errors import InputError, RunError
from alignrun.models.backbone import Backbone
from alignrun.models.head import vocabulary_head
from alignrun.models.published import Published, TokenRow, check_path
from alignrun.models.sources import vocabulary_size
from alignrun.preferences.base import Preference, always, preference
from alignrun.preferences.both_orders import BothOrders
from alignrun.preferences.conversations import ConversationEncoder
from alignrun.types import as_prompt

FIELDS = ("context", "first", "second")


@schema
class PairAnswersConfig:
    """How the model names an answer: one token each."""

    first: str = "A"
    """The token for {first}."""
    second: str = "B"
    """The token for {second}."""


@schema
class PairModelConfig(PublishedConfig):
    """P = p(first) / (p(first) + p(second)) of the next token, the mean of both orders."""

    name: str = "pair_model"
    template: str = (
        "Which response to the request is better? Answer with A or B.\n\n"
        "[Request]\n{context}\n\n[Response A]\n{first}\n\n[Response B]\n{second}"
    )
    """With {context}, {first} and {second} in this order, as one user turn where the tokenizer has a chat template."""
    context_template: str | None = None
    """A Jinja template that writes the conversation into {context}; without one, it is as readers see it."""
    answers: PairAnswersConfig = field(default_factory=PairAnswersConfig)
    generation_prompt: bool = True
    """Whether the model answers as the assistant, or right where the user's turn ends."""
    bos: bool = True
    """Whether the text starts with BOS, if the tokenizer has one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        split_template(self.template, FIELDS, "preference.template")
        require(self.answers.first != self.answers.second, "preference.answers", "must be different tokens")


class PairModel(BothOrders):
    """Reads the next token after the template."""

    def __init__(self, published: Published, config: PairModelConfig) -> None:
        super().__init__(published, config.temperature)
        self._config, tokenizer = config, published.tokenizer
        self._answers = [
            answer_token(tokenizer, name, word)
            for name, word in (("first", config.answers.first), ("second", config.answers.second))
        ]
        self._encoder = ConversationEncoder(tokenizer, config.name, vocabulary_size(published.model.config))
        self._pieces = split_template(config.template, FIELDS, "preference.template")
        self._head = vocabulary_head(published.model)

    def encode(self, prompt: str, first: str, second: str) -> TokenRow:
        """The filled template."""
        context, config = str(prompt), self._config
        if config.context_template is not None:
            try:
                turns = as_prompt(prompt).turns
                context = write(self._published.tokenizer, turns, answer=False, template=config.context_template)
            except UnreadableTextError as error:
                raise RunError(f"preference.context_template: {error}") from error
        before, *after = self._pieces
        text = before + "".join(map(str.__add__, (context, first, second), after))
        ids = self._encoder.turns([{"role": "user", "content": text}], answer=config.generation_prompt)
        unopened = not config.bos and ids[:1] == [self._published.tokenizer.bos_token_id]
        return TokenRow(tuple(ids[1:] if unopened else ids))

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """[N, 1] log p(first) − log p(second) after the last token."""
        model: Any = self._published.model
        hidden = model.base_model(**batch, use_cache=False).last_hidden_state
        last = batch["attention_mask"].sum(1) - 1
        logits = self._head(hidden[torch.arange(len(last), device=last.device), last]).float()
        first, second = self._answers
        return (logits[:, first] - logits[:, second])[:, None]

    def symmetric(self, logits: Tensor) -> Tensor:
        """[B] ½(p(x, y, y') + 1 − p(x, y', y)), as RLHFlow average."""
        forward, backward = torch.sigmoid(logits).unbind(1)
        return 0.5 + (forward - backward) / 2


def answer_token(tokenizer: Any, name: str, word: str) -> int:
    """The token of an answer. Raises InputError if it is several tokens."""
    ids = tokenizer(word, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise InputError(
            f"preference.answers.{name}={word!r} is {len(ids)} tokens for this tokenizer: name an answer of one token"
        )
    return int(ids[0])


@preference(
    "pair_model",
    PairModelConfig,
    check=check_path,
    on_base=True,
    empty=AutoModelForCausalLM.from_config,
    by_pair=always,
)
def build(config: PairModelConfig, backbone: Backbone | None = None) -> Preference:
    """The preference that the configuration asks for."""
    return PairModel(Published.load(config, AutoModelForCausalLM, backbone), config)
