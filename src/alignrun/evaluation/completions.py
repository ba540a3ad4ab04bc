"""Each policy's completions in a tournament: sampled once, scored under its weights, cached by content."""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alignrun.algorithms.common.batches import in_pieces
from alignrun.algorithms.common.rollout import Pace, decode_texts, sample_streams, sampling_of
from alignrun.algorithms.common.scoring import Answered, scoring, token_scores
from alignrun.data.completions import opened
from alignrun.data.prompts import PromptSet
from alignrun.errors import RunError
from alignrun.models.device import batch_to
from alignrun.models.policy import Policy
from alignrun.run.directory import write_text_atomic
from alignrun.types import Completions, PromptBatch, Role

FORMAT = 2
"""The cache version; increment it when the same inputs give other completions."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """K completions of one policy for each of X prompts."""

    texts: list[list[str]]
    tokens: list[list[list[int]]]
    """Their token ids, including the end of the turn."""
    log_probs: list[list[float]]
    """[X, K] log π(y | x) at the sampling temperature, under the full distribution; empty if they were not scored."""
    ends: list[list[bool]]
    """[X, K] whether the completion ended before the length limit."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """The sampling settings."""

    samples: int
    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    batch_size: int
    seed: int


def content_key(policy: Policy, role: Role, prompts: PromptSet, drawing: Drawing) -> str | None:
    """A digest of everything that the completions depend on; None if the weights have no fingerprint."""
    fingerprint = policy.fingerprint(role)
    if not fingerprint:
        return None
    where = [str(policy.model.dtype), policy.device.type, policy.stop_ids]
    tokenizer = policy.tokenizer
    read = [sorted(tokenizer.get_vocab().items()), sorted(tokenizer.all_special_ids), opened(tokenizer)]
    parts = [FORMAT, fingerprint, where, read, list(prompts.encoded), asdict(drawing)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def draw(
    policy: Policy, role: Role, prompts: PromptSet, drawing: Drawing, stream: str, *, scored: bool = True
) -> Drawn:
    """Sample K completions of every prompt, encoding each prompt once, and score them unless `scored` is false.

    `stream` selects the random numbers. Two policies must not share them, since P(y ≻ y') is averaged over independent
    y and y'.
    """
    seed = int(hashlib.sha256(f"{drawing.seed} {stream}".encode()).hexdigest()[:15], 16)
    generator = torch.Generator(device=policy.device).manual_seed(seed)
    sampling = sampling_of(policy, drawing.max_new_tokens, drawing.temperature, drawing.top_k, drawing.top_p)
    drawn, pace = Drawn([], [], [], []), Pace()
    for batch in prompts.all_batches(drawing.batch_size):
        moved = batch_to(batch, policy.device)
        streams = sample_streams(policy, moved, [role] * drawing.samples, sampling, generator, pace=pace)
        texts = [decode_texts(policy, stream) for stream in streams]
        ends = [policy.ends(stream).tolist() for stream in streams]
        ids = [[row[mask].tolist() for row, mask in zip(one.tokens, one.mask, strict=True)] for one in streams]
        for field, columns in ((drawn.texts, texts), (drawn.tokens, ids), (drawn.ends, ends)):
            field.extend(map(list, zip(*columns, strict=True)))
    if scored:
        drawn.log_probs.extend(score(policy, role, prompts, drawn.tokens, drawing).tolist())
    return drawn


def score(
    policy: Policy, role: Role, prompts: PromptSet, tokens: Sequence[Sequence[Sequence[int]]], drawing: Drawing
) -> NDArray[np.float64]:
    """[X, K] log π(y | x) of completions given as token ids of the policy's vocabulary."""
    pad_id = policy.tokenizer.pad_token_id
    rows, memory = [], scoring(drawing.batch_size, "batch_size")

    def sums(part: Answered) -> Tensor:
        return token_scores(policy, [role], part.prompts, part.completions, drawing.temperature).double().sum((1, 3))

    for batch, group in _grouped(prompts, tokens, drawing.batch_size):
        flat = [torch.tensor(ids) for completions in group for ids in completions]
        lengths = torch.tensor([len(ids) for ids in flat])
        padded = torch.nn.utils.rnn.pad_sequence(flat, batch_first=True, padding_value=pad_id)
        mask = torch.arange(padded.shape[1]) < lengths[:, None]
        answers = Completions(*(side.unflatten(0, (len(group), -1)) for side in (padded, mask)))
        rows.append(in_pieces(batch_to(Answered(batch, answers), policy.device), sums, memory).cpu())
    scores: NDArray[np.float64] = torch.cat(rows).numpy()
    return scores


def _grouped(
    prompts: PromptSet, tokens: Sequence[Sequence[Sequence[int]]], size: int
) -> Iterator[tuple[PromptBatch, Sequence[Sequence[Sequence[int]]]]]:
    start = 0
    for batch in prompts.all_batches(size):
        yield batch, tokens[start : start + len(batch)]
        start += len(batch)


class CompletionCache:
    """A folder of JSON files named by content; without a folder nothing is stored. A damaged file is regenerated."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self.found = 0
        """The number of cache hits."""

    def drawn(self, key: str | None, make: Callable[[], Drawn]) -> Drawn:
        """The completions stored under a key; generated and stored if there are none."""
        with contextlib.suppress(TypeError):
            if (stored := self._read(key)) is not None:
                found = Drawn(**stored)
                self.found += 1
                return found
        made = make()
        self._write(key, asdict(made))
        return made

    def scores(self, key: str | None, make: Callable[[], NDArray[np.float64]]) -> NDArray[np.float64]:
        """The scores stored under a key; computed and stored if there are none."""
        with contextlib.suppress(ValueError, TypeError):
            if (stored := self._read(key)) is not None:
                return np.asarray(stored, dtype=np.float64)
        made = make()
        self._write(key, made.tolist())
        return made

    def _path(self, key: str | None) -> Path | None:
        return None if self._folder is None or key is None else self._folder / f"{key}.json"

    def _read(self, key: str | None) -> Any:
        if (path := self._path(key)) is not None:
            with contextlib.suppress(OSError, ValueError):
                return json.loads(path.read_text(encoding="utf-8"))
        return None

    def _write(self, key: str | None, content: Any) -> None:
        if (path := self._path(key)) is not None:
            with contextlib.suppress(OSError, RunError):  # a cache that cannot be written only costs time
                path.parent.mkdir(parents=True, exist_ok=True)
                write_text_atomic(path, json.dumps(content, ensure_ascii=False))
