"""Checkpoints: a folder of safetensors, JSON and digests that is complete or does not exist.

A checkpoint is written to a temporary folder next to its final place and renamed, so a kill at any moment leaves only
complete ones. Nothing is pickled: loading a checkpoint cannot run code.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from alignrun.config import Precision
from alignrun.distributed.parts import local, part_of
from alignrun.errors import InputError, one_line
from alignrun.models.weights import unfit_weight
from alignrun.run.directory import writing
from alignrun.security.files import is_step, open_regular, parse_json, read_bytes
from alignrun.security.text import counted

FORMAT = 1
MANIFEST = "manifest.json"
STATE = "state.json"
FOLDER_NAME = re.compile(r"step-(\d+)(?:\.old)?")
TEMPORARY_NAME = re.compile(r"step-.*\.tmp-(\d{1,9})")
FILE_NAME = re.compile(r"state\.json|[\w-]+\.safetensors", re.ASCII)


TensorGroups = Mapping[str, Mapping[str, Tensor]]
"""File stem → name → tensor."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint, loaded."""

    path: Path
    step: int
    tensors: dict[str, dict[str, Tensor]]
    """One dictionary per NAME.safetensors, on the CPU."""
    state: dict[str, Any]
    """As read from JSON: tuples have become lists, and keys strings."""


def examples_of(checkpoint: Checkpoint, batch_size: int) -> int:
    """The examples that the steps of a checkpoint have taken; one that does not record it took whole batches.

    Raises InputError if the recorded value is not a number of examples.
    """
    found = checkpoint.state.get("examples", checkpoint.step * batch_size)
    if not is_step(found):
        raise InputError(f"{checkpoint.path}: its state does not say how far it is: resume from another with --step")
    return int(found)


def recorded_dtype(checkpoint: Checkpoint) -> Precision | None:
    """The precision of the base that the steps of a checkpoint were taken with; None if it does not record it.

    Raises InputError if the recorded value is none.
    """
    found = checkpoint.state.get("dtype")
    if found is None:
        return None
    if not isinstance(found, str) or found not in Precision.__members__ or found == Precision.auto.value:
        raise InputError(
            f"{checkpoint.path}: its state does not say in which precision the base was: name one with model.dtype=…, "
            "or resume from another with --step"
        )
    return Precision(found)


def save_checkpoint(directory: Path, step: int, tensors: TensorGroups, state: Mapping[str, Any], keep: int) -> Path:
    """Write `directory`/step-N, then delete all but the newest `keep` (at least 1); returns the new folder.

    Checkpoints of later steps are deleted too: resuming from an older one has abandoned them.
    Raises RunError if it cannot be written; the older checkpoints are then unchanged.
    """
    final = directory / f"step-{step}"
    temporary = _temporary(final)
    with writing(final):
        try:
            directory.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            _write_files(temporary, step, tensors, state)
            _publish(temporary, final)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        _prune(directory, step, keep)
    return final


def list_checkpoints(directory: Path) -> list[tuple[int, Path]]:
    """Complete checkpoints in a checkpoints/ folder as (step, path), oldest first; empty if the folder is missing."""
    if not directory.is_dir():
        return []
    # `step-N.old` counts only while `step-N` is missing: a kill came between the two renames of `_publish`.
    found = {}
    for path in sorted(directory.iterdir(), key=lambda path: path.name, reverse=True):
        name = FOLDER_NAME.fullmatch(path.name)
        if name and path.is_dir():
            found[int(name[1])] = path
    return sorted(found.items())


def latest_checkpoint(directory: Path) -> Path | None:
    """The newest checkpoint in a checkpoints/ folder, or None."""
    found = list_checkpoints(directory)
    return found[-1][1] if found else None


def discard_later(directory: Path, step: int) -> None:
    """Delete the checkpoints of later steps, newest first: the run has abandoned them."""
    for later, path in reversed(list_checkpoints(directory)):
        if later > step:
            _discard(path)


class Damaged(InputError):
    """A checkpoint differs from what was written."""


def read_checkpoint(directory: Path, step: int | None, report: Callable[[str], None]) -> Checkpoint | None:
    """Read the checkpoint of `step` in a checkpoints/ folder, or the newest intact one; None if there is none yet.

    Raises InputError if there is none of that step, and as `load_checkpoint` or `load_newest`.
    """
    if step is None:
        return load_newest(directory, report)
    found = dict(list_checkpoints(directory))
    if step not in found:
        raise InputError(
            f"{directory.absolute().parent} has no checkpoint of step {step}: choose from {sorted(found) or 'none'}"
        )
    return load_checkpoint(found[step])


def load_newest(directory: Path, report: Callable[[str], None]) -> Checkpoint | None:
    """Load the newest intact checkpoint in a checkpoints/ folder; None if there is none yet.

    `report` gets a line for each damaged one that is skipped. Raises InputError if all are damaged, or if one cannot be
    read for another reason, which may be temporary.
    """
    found = list_checkpoints(directory)
    for _, path in reversed(found):
        try:
            return _read(path)
        except Damaged as error:
            report(f"checkpoint {path}: {error}; skipped")
        except InputError as error:
            raise InputError(f"checkpoint {path}: {error}; fix that, or name another with --step") from error
    if found:
        raise InputError(f"every checkpoint in {directory} is damaged: start again")
    return None


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint after verifying every file against its digest.

    Raises InputError if a file is missing, added, truncated or changed.
    """
    try:
        return _read(path)
    except InputError as error:
        problem = str(error)
    run = path.absolute().parent.parent
    older = list(takewhile(lambda found: found[1] != path, list_checkpoints(path.parent)))
    fix = f"resume from step {older[-1][0]}: `alignrun resume {run} --step {older[-1][0]}`" if older else "start again"
    raise InputError(f"checkpoint {path}: {problem}; {fix}")


def restore_weights(live: Mapping[str, Tensor], checkpoint: Checkpoint, group: str = "weights") -> None:
    """Copy the tensors of a saved group, which may be empty, into live ones of the same names: all of them or none.

    Raises:
        InputError: names, shapes or dtypes differ, or weights are not finite.
    """
    saved = checkpoint.tensors.get(group, {})
    wrong = sorted(set(live) ^ set(saved)) or [
        name for name, tensor in live.items() if tensor.shape != saved[name].shape
    ]
    if wrong:
        raise InputError(
            f"{checkpoint.path} does not fit this model ({counted(len(wrong), 'difference')}, as {wrong[0]}): "
            "resume with the model, adapter and algorithm of the run's own config.yaml"
        )
    kinds = [name for name, tensor in live.items() if tensor.is_floating_point() != saved[name].is_floating_point()]
    if kinds:
        raise InputError(
            f"{checkpoint.path}: {kinds[0]} holds {saved[kinds[0]].dtype} where the model has {live[kinds[0]].dtype}: "
            "it is not a checkpoint of this run"
        )
    check_group_finite(checkpoint, group)
    with torch.no_grad():
        for name, tensor in live.items():
            local(tensor).copy_(local(part_of(saved[name], tensor)))


def check_group_finite(checkpoint: Checkpoint, group: str) -> None:
    """Refuse a group with values that are not finite. Raises InputError."""
    saved = checkpoint.tensors.get(group, {})
    if unfit := unfit_weight((name, tensor) for name, tensor in saved.items() if tensor.is_floating_point()):
        raise InputError(f"{checkpoint.path}: {unfit}: name an earlier checkpoint with --step, or start again")


def _read(path: Path) -> Checkpoint:
    """Raises InputError that says only what is wrong: the caller adds the place and the fix."""
    try:
        step, names = _verify(path)
        tensors = {Path(name).stem: load_file(path / name) for name in names if name != STATE}
        state = parse_json(read_bytes(path / STATE))
    except (OSError, SafetensorError, ValueError) as error:
        raise InputError(f"cannot be read: {one_line(error)}") from error
    if not isinstance(state, dict):
        raise Damaged(f"{STATE} is not a mapping")
    return Checkpoint(path, step, tensors, state)


def _verify(path: Path) -> tuple[int, list[str]]:
    """Check every file against the manifest, and the manifest against its own digest; returns the step and file names.

    Raises InputError, as `_read`.
    """
    if not path.is_dir():
        raise Damaged("does not exist")
    manifest = path / MANIFEST
    if not manifest.is_file():
        raise Damaged(f"{MANIFEST} is missing")
    try:
        text = read_bytes(manifest).decode()
        found = parse_json(text)
        form, step, files = found["format"], int(found["step"]), dict(found["files"])
    except (InputError, ValueError, TypeError, LookupError, OverflowError):
        raise Damaged(f"{MANIFEST} was changed or truncated") from None
    if form != FORMAT:
        raise InputError(f"{MANIFEST} has format {form}, and this version reads format {FORMAT}")
    if text != _manifest_text(step, files):
        raise Damaged(f"{MANIFEST} was changed or truncated")
    if strange := [name for name in files if not FILE_NAME.fullmatch(name)]:
        raise Damaged(f"{MANIFEST} names {strange[0]!r}, which is not a file of a checkpoint")
    present = {entry.name for entry in path.iterdir()} - {MANIFEST}
    if extra := sorted(present - files.keys()):
        raise Damaged(f"{extra[0]} does not belong to it")
    if missing := sorted({STATE, *files} - present):
        raise Damaged(f"{missing[0]} is missing")
    if changed := [name for name, wanted in files.items() if _fingerprint(path / name) != wanted]:
        raise Damaged(f"{changed[0]} was changed or truncated")
    return step, list(files)


def _write_files(folder: Path, step: int, tensors: TensorGroups, state: Mapping[str, Any]) -> None:
    (folder / STATE).write_text(json.dumps(state) + "\n", encoding="utf-8")
    for name, group in tensors.items():
        path = folder / f"{name}.safetensors"
        if not FILE_NAME.fullmatch(f"{name}.safetensors"):
            raise ValueError(f"{name!r} cannot be the name of a file in a checkpoint")
        save_file(_separate(group), path)
        shutil.copymode(folder / STATE, path)  # safetensors makes its files readable by the owner only
    files = {path.name: _fingerprint(path) for path in sorted(folder.iterdir())}
    (folder / MANIFEST).write_text(_manifest_text(step, files), encoding="utf-8")
    for path in (*folder.iterdir(), folder):
        _sync(path)


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU, contiguous, each with its own storage, as safetensors requires."""
    seen: set[int] = set()
    separate = {}
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        if value.untyped_storage().data_ptr() in seen:
            value = value.clone()
        seen.add(value.untyped_storage().data_ptr())
        separate[name] = value
    return separate


def _manifest_text(step: int, files: Mapping[str, Any]) -> str:
    """The canonical text of a manifest, with its own digest."""
    body = {"format": FORMAT, "step": step, "files": files}
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return json.dumps(body | {"sha256": digest}, indent=2, sort_keys=True) + "\n"


def _fingerprint(path: Path) -> dict[str, Any]:
    with os.fdopen(open_regular(path), "rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _publish(temporary: Path, final: Path) -> None:
    """Move a complete folder into place; at every moment `final` or `final`.old is complete."""
    old = final.with_name(f"{final.name}.old")
    if final.exists():
        _discard(old)
        final.rename(old)
    temporary.rename(final)
    _sync(final.parent)
    _discard(old)


def _prune(directory: Path, step: int, keep: int) -> None:
    kept = [path for other, path in list_checkpoints(directory) if other <= step][-keep:]
    for path in list(directory.iterdir()):
        if FOLDER_NAME.fullmatch(path.name) and path not in kept:
            _discard(path)
    for path in list(directory.iterdir()):
        leftover = TEMPORARY_NAME.fullmatch(path.name)
        if leftover and not _is_another_process(int(leftover[1])):
            shutil.rmtree(path, ignore_errors=True)


def _discard(path: Path) -> None:
    """Delete a checkpoint. It is renamed first, so a kill never leaves a partial one under a valid name."""
    if path.exists():
        doomed = _temporary(path)
        shutil.rmtree(doomed, ignore_errors=True)
        path.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def _temporary(path: Path) -> Path:
    return path.with_name(f"{path.name}.tmp-{os.getpid()}")


def _is_another_process(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return pid != os.getpid()
