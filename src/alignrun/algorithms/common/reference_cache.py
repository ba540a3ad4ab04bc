"""A content-addressed cache for log μ of a fixed set of pairs."""

import hashlib
import os
import tempfile
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from alignrun import distributed
from alignrun.algorithms.common.batches import in_pieces
from alignrun.algorithms.common.scoring import scoring, token_scores
from alignrun.data.pairs import PairSet
from alignrun.models.device import batch_to
from alignrun.models.policy import Policy
from alignrun.models.sources import cache_folder
from alignrun.run.directory import writing
from alignrun.types import PairBatch, Role

NAME = "log_probs"


def reference_log_probs(policy: Policy, pairs: PairSet, batch_size: int) -> Tensor:
    """[N, 2] float32 on the CPU: log μ of both completions of every pair, summed over tokens.

    The user's cache is keyed by a digest of the tokens and the weights, so a hit is valid for this run. Weights without
    a fingerprint (quantised ones) are scored anew by every run.

    Raises:
        RunError: the cache cannot be written.
    """
    if not policy.backbone.fingerprint:
        return _compute(policy, pairs, batch_size)
    path = cache_folder() / "reference" / f"{_digest(policy, pairs)}.safetensors"
    cached: Tensor | None = distributed.broadcast(_read(path, len(pairs)) if distributed.is_main() else None)
    if cached is not None:
        return cached
    values = _compute(policy, pairs, batch_size)
    with distributed.raise_together():
        if distributed.is_main():
            _write(path, values)
    return values


def _read(path: Path, pairs: int) -> Tensor | None:
    """The cached values; None if they are missing or damaged."""
    try:
        cached = load_file(path)[NAME]
    except (OSError, KeyError, SafetensorError):
        return None
    return cached if cached.shape == (pairs, 2) else None


def _write(path: Path, values: Tensor) -> None:
    with writing(path, instead="set ALIGNRUN_CACHE to a folder that you can write"):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".partial")
        os.close(handle)
        try:
            save_file({NAME: values}, temporary)
            Path(temporary).replace(path)  # another process may be writing the same
        finally:
            Path(temporary).unlink(missing_ok=True)


def _compute(policy: Policy, pairs: PairSet, batch_size: int) -> Tensor:
    values, memory = torch.zeros(len(pairs), 2), scoring(batch_size, "train.micro_batch_size")

    def score(part: PairBatch) -> Tensor:
        return token_scores(policy, [Role.reference], part.prompts, part.completions).squeeze(1).sum(2)

    batches = zip(pairs.all_rows(batch_size), pairs.all_batches(batch_size), strict=True)
    for (rows, batch), counts in distributed.round_robin(batches):
        log_probs = in_pieces(batch_to(batch, policy.device), score, memory)
        if counts:
            values[rows] = log_probs.float().cpu()
    return distributed.all_reduce_sum(values)


def _digest(policy: Policy, pairs: PairSet) -> str:
    digest = hashlib.sha256()
    digest.update(f"{policy.fingerprint(Role.reference)} {policy.model.dtype} {policy.device.type}".encode())
    for pair in pairs.encoded:
        digest.update(f"{pair.prompt}{pair.first}{pair.second}".encode())
    return digest.hexdigest()
