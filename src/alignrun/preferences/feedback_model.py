"""A trained reward or preference model, loaded from its run, that scores texts."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from enum import Enum
from itertools import islice
from pathlib import Path

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor

from alignrun import distributed
from alignrun.config import AdapterConfig, AdapterKind, ModelConfig
from alignrun.config.literal import literal
from alignrun.data.feedback_encoding import PreferenceEncoder, RewardEncoder
from alignrun.data.padding import collate, padding_id
from alignrun.errors import InputError, RunError, one_line
from alignrun.models.backbone import Backbone
from alignrun.models.cards import AdapterCard, adapter_folder, read_card
from alignrun.models.device import batch_to
from alignrun.models.scorer import Scorer
from alignrun.models.sharing import load_once
from alignrun.models.sources import context_length, load_tokenizer, vocabulary_size
from alignrun.preferences.base import preference_using
from alignrun.run.trust import check_own

KEY = "preference.path"
Question = tuple[tuple[int, ...], tuple[int, ...]]
"""The head and the tail of what the model reads, as token ids."""


class TextScorer:
    """Scores texts in batches; each head is read once for all of its tails, and no question twice in a call."""

    def __init__(self, scorer: Scorer, encoder: RewardEncoder | PreferenceEncoder, batch_size: int) -> None:
        self._scorer, self._encoder, self._batch_size = scorer, encoder, batch_size
        self.card = scorer.card
        self._pad_id = padding_id(scorer.backbone.tokenizer)
        self._context = context_length(scorer.backbone.model.config)

    def __call__(self, texts: Sequence[str], completions: Sequence[tuple[str, ...]]) -> Tensor:
        """[N] scores or [N, M] embeddings, float32 on the CPU, of N prompts with the encoder's tails.

        Raises:
            RunError: a text is longer than the model reads.
        """
        questions: list[Question] = []
        for text, pair in zip(texts, completions, strict=True):
            head, (tail,) = self._encoder.encode(text, [pair])
            if len(head) + len(tail) > self._context:
                raise RunError(
                    f"the feedback model reads {self._context} tokens, and a prompt with its completions has "
                    f"{len(head) + len(tail)}: lower generation.max_new_tokens or data.max_prompt_tokens"
                )
            questions.append((tuple(head), tuple(tail)))
        places: dict[Question, int] = {}
        shape = (len(set(questions)), *self._scorer.weight.shape[:-1])
        scores = torch.zeros(shape, dtype=torch.float64)
        batches = list(self._batches(questions))
        for heads, tails in batches:
            for question in _asked(heads, tails):
                places[question] = len(places)
        for (heads, tails), counts in distributed.round_robin(batches):
            prompts, batch = collate(heads, tails, [""] * len(heads), self._pad_id)
            flat = batch.flat()
            device = self._scorer.device
            scored = self._scorer.frozen_scores(batch_to(prompts, device), batch_to(flat, device))
            if counts:
                scores[[places[question] for question in _asked(heads, tails)]] = scored.double().cpu()
        return distributed.all_reduce_sum(scores)[[places[question] for question in questions]].float()

    def _batches(
        self, questions: Sequence[Question]
    ) -> Iterator[tuple[list[tuple[int, ...]], list[list[tuple[int, ...]]]]]:
        """Heads with equally many tails each, at most `batch_size` tails together, of similar length."""
        by_head: dict[tuple[int, ...], list[tuple[int, ...]]] = defaultdict(list)
        for head, tail in dict.fromkeys(questions):
            by_head[head].append(tail)
        by_count: dict[int, list[tuple[tuple[int, ...], list[tuple[int, ...]]]]] = defaultdict(list)
        for head, tails in by_head.items():
            tails.sort(key=len)
            for start in range(0, len(tails), self._batch_size):
                part = tails[start : start + self._batch_size]
                by_count[len(part)].append((head, part))
        for count, groups in by_count.items():
            groups.sort(key=lambda group: len(group[0]) + len(group[1][-1]))
            rest = iter(groups)
            while chunk := list(islice(rest, max(1, self._batch_size // count))):
                yield [head for head, _ in chunk], [part for _, part in chunk]


def _asked(heads: Sequence[tuple[int, ...]], tails: Sequence[Sequence[tuple[int, ...]]]) -> list[Question]:
    return [(head, tail) for head, group in zip(heads, tails, strict=True) for tail in group]


def load_feedback_model(path: str, kind: str, batch_size: int, backbone: Backbone | None) -> TextScorer:
    """The feedback model of a run: one more adapter where `backbone` is the base that it was trained on, else on a
    base of its own, with its own tokenizer; without `backbone` on `model.device=auto`.

    Raises:
        InputError: the path holds no feedback model of this kind, or its base is not available.
    """
    folder, card = find_card(path, kind)
    config = base_config(card, path)
    # The folder may be untrusted: the user must allow a model or code from elsewhere.
    here = None if backbone is None else backbone.config
    if here is None or origin(config) != origin(here) or config.trust_remote_code > here.trust_remote_code:
        values = {name: value.name if isinstance(value, Enum) else value for name, value in asdict(config).items()}
        check_own({"model": values}, card.signature, f"{KEY}: {folder}", ("model",))
    shared = backbone is not None and backbone.peft is not None and _is_base(backbone, card, config)
    # Its own prompt format, even where the policy's was changed by configuration.
    tokenizer = load_tokenizer(config)
    if backbone is None or not shared:
        config = replace(config, device="auto" if here is None else here.device, gradient_checkpointing=False)
        adapter = AdapterConfig(name=AdapterKind(card.adapter))
        # Of several feedback models on a base of their own, each has its own adapter on one copy of it.
        key = (repr(config), card.base, adapter.name, card.seed)
        backbone = load_once(key, lambda: Backbone.load(config, adapter, tokenizer, card.seed))
    scorer = Scorer.read(backbone, folder, card, KEY)
    encoder = (PreferenceEncoder if card.kind == "preference" else RewardEncoder)(
        tokenizer, card.template, vocabulary_size(backbone.model.config)
    )
    return TextScorer(scorer, encoder, batch_size)


def _is_base(backbone: Backbone, card: AdapterCard, config: ModelConfig) -> bool:
    """Whether a feedback model was trained on a base."""
    if card.base and backbone.fingerprint:
        return bool(card.base == backbone.fingerprint)
    return origin(config) == origin(backbone.config)


def origin(config: ModelConfig) -> tuple[object, ...]:
    """The source of weights without a fingerprint."""
    return (config.source, config.path, config.revision, config.package, config.package_file, config.fallback)


def find_card(path: str, kind: str) -> tuple[Path, AdapterCard]:
    """The folder of a feedback model and its card, without loading anything.

    Raises:
        InputError: the path holds no feedback model of this kind.
    """
    folder = adapter_folder(path)
    card = read_card(folder, KEY)
    wanted = {"reward": "algo=reward_model", "preference": "algo=preference_model"}
    found = "preference" if card is not None and card.kind == "embedding" else "" if card is None else card.kind
    if card is None or found not in wanted:
        what = "does not exist" if not folder.exists() else f"holds no {kind} model"
        raise InputError(f"{KEY}: {folder} {what}: name a finished run of {wanted[kind]}")
    if found != kind:
        raise InputError(f"{KEY}: {folder} holds a {found} model: use preference={preference_using(found)} with it")
    return folder, card


def base_config(card: AdapterCard, path: str) -> ModelConfig:
    """The base that the card names. Raises InputError for one that this version cannot read."""
    try:
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(ModelConfig), literal(card.model)))
    except (OmegaConfBaseException, ValueError, TypeError) as error:
        raise InputError(
            f"{KEY}: {path} does not say its base in a way this version reads ({one_line(error)})"
        ) from None
    assert isinstance(config, ModelConfig)
    return config
