"""Checkpoints: a folder of safetensors, JSON and digests that stands complete or not at all.

A checkpoint is written beside its place and renamed into it, so a kill at any moment leaves only complete ones.
Nothing is pickled: loading one runs no code from it.
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

from alignrun.errors import InputError, one_line
from alignrun.models.weights import unfit_weight
from alignrun.run.directory import writing
from alignrun.security.files import open_regular, parse_json, read_bytes
from alignrun.security.text import counted

FORMAT = 1
MANIFEST = "manifest.json"
STATE = "state.json"
FOLDER_NAME = re.compile(r"step-(\d+)(?:\.old)?")
TEMPORARY_NAME = re.compile(r"step-.*\.tmp-(\d{1,9})")
FILE_NAME = re.compile(r"state\.json|[\w-]+\.safetensors", re.ASCII)


TensorGroups = Mapping[str, Mapping[str, Tensor]]
"""Tensors by name, by the name of the file they go to."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What one checkpoint holds."""

    path: Path
    step: int
    tensors: dict[str, dict[str, Tensor]]
    """One dictionary for each NAME.safetensors, on the CPU."""
    state: dict[str, Any]
    """As JSON returns it: tuples have become lists, and keys strings."""


def save_checkpoint(directory: Path, step: int, tensors: TensorGroups, state: Mapping[str, Any], keep: int) -> Path:
    """Write `directory`/step-N, then prune to the newest `keep` (at least 1); returns the new folder.

    Checkpoints of later steps go too: they belong to a future that was given up by resuming from an older one.
    Raises RunError where it cannot be written; the older checkpoints are then as they were.
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
    """The complete checkpoints in a checkpoints/ folder as (step, path), the oldest first; none where it is missing."""
    if not directory.is_dir():
        return []
    # `step-N.old` counts only while `step-N` is missing: a kill fell between the two renames of `_publish`.
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
    """Delete the checkpoints of later steps, the newest first: they belong to a future that was given up."""
    for later, path in reversed(list_checkpoints(directory)):
        if later > step:
            _discard(path)


class Damaged(InputError):
    """A checkpoint is not what was written."""


def read_checkpoint(directory: Path, step: int | None, report: Callable[[str], None]) -> Checkpoint | None:
    """The checkpoint of `step` in a checkpoints/ folder, or the newest that is whole; None where there is none yet.

    Raises InputError where there is none of that step, and as `load_checkpoint` or `load_newest`.
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
    """The newest checkpoint in a checkpoints/ folder that is whole, or None where there is none yet.

    `report` is told of each damaged one that is passed over. Raises InputError where all are damaged, or where one
    cannot be read for another reason, which may go away.
    """
    found = list_checkpoints(directory)
    for _, path in reversed(found):
        try:
            return _read(path)
        except Damaged as error:
            report(f"checkpoint {path}: {error}; it is passed over")
        except InputError as error:
            raise InputError(f"checkpoint {path}: {error}; mend that, or name another with --step") from error
    if found:
        raise InputError(f"no checkpoint in {directory} is whole: start again")
    return None


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint, after every file has proved to be the one that was written.

    Raises InputError where a file is missing, added, cut short or changed.
    """
    try:
        return _read(path)
    except InputError as error:
        problem = str(error)
    run = path.absolute().parent.parent
    older = list(takewhile(lambda found: found[1] != path, list_checkpoints(path.parent)))
    mend = f"resume from step {older[-1][0]}: `alignrun resume {run} --step {older[-1][0]}`" if older else "start again"
    raise InputError(f"checkpoint {path}: {problem}; {mend}")


def restore_weights(live: Mapping[str, Tensor], checkpoint: Checkpoint, group: str = "weights") -> None:
    """Copy the tensors of a saved group, which may be empty, into live ones of the same names, all or none.

    Raises:
        InputError: names, shapes or types differ, or weights are not finite.
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
            "it is no checkpoint of this run"
        )
    check_finite(checkpoint, group)
    with torch.no_grad():
        for name, tensor in live.items():
            tensor.copy_(saved[name])


def check_finite(checkpoint: Checkpoint, group: str) -> None:
    """Refuse a group with values that are not finite. Raises InputError."""
    saved = checkpoint.tensors.get(group, {})
    if unfit := unfit_weight((name, tensor) for name, tensor in saved.items() if tensor.is_floating_point()):
        raise InputError(f"{checkpoint.path}: {unfit}: name an earlier checkpoint with --step, or start again")


def _read(path: Path) -> Checkpoint:
    """Raises InputError that says only what is wrong: the caller adds where, and the mend."""
    try:
        step, names = _verify(path)
        tensors = {Path(name).stem: load_file(path / name) for name in names if name != STATE}
        state = parse_json(read_bytes(path / STATE))
    except (OSError, SafetensorError, ValueError) as error:
        raise InputError(f"cannot be read: {one_line(error)}") from error
    if not isinstance(state, dict):
        raise Damaged(f"{STATE} holds no mapping")
    return Checkpoint(path, step, tensors, state)


def _verify(path: Path) -> tuple[int, list[str]]:
    """Check every file against the manifest and the manifest against itself; returns the step and the file names.

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
        raise Damaged(f"{MANIFEST} was changed or cut short") from None
    if form != FORMAT:
        raise InputError(f"{MANIFEST} has format {form}, and this version reads format {FORMAT}")
    if text != _manifest_text(step, files):
        raise Damaged(f"{MANIFEST} was changed or cut short")
    if strange := [name for name in files if not FILE_NAME.fullmatch(name)]:
        raise Damaged(f"{MANIFEST} names {strange[0]!r}, which is no file of a checkpoint")
    present = {entry.name for entry in path.iterdir()} - {MANIFEST}
    if extra := sorted(present - files.keys()):
        raise Damaged(f"{extra[0]} does not belong to it")
    if missing := sorted({STATE, *files} - present):
        raise Damaged(f"{missing[0]} is missing")
    if changed := [name for name, wanted in files.items() if _fingerprint(path / name) != wanted]:
        raise Damaged(f"{changed[0]} was changed or cut short")
    return step, list(files)


def _write_files(folder: Path, step: int, tensors: TensorGroups, state: Mapping[str, Any]) -> None:
    (folder / STATE).write_text(json.dumps(state) + "\n", encoding="utf-8")
    for name, group in tensors.items():
        path = folder / f"{name}.safetensors"
        if not FILE_NAME.fullmatch(f"{name}.safetensors"):
            raise ValueError(f"{name!r} cannot be the name of a file in a checkpoint")
        save_file(_separate(group), path)
        shutil.copymode(folder / STATE, path)  # safetensors lets nobody but the owner read its files
    files = {path.name: _fingerprint(path) for path in sorted(folder.iterdir())}
    (folder / MANIFEST).write_text(_manifest_text(step, files), encoding="utf-8")
    for path in (*folder.iterdir(), folder):
        _sync(path)


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU, contiguous and with a storage each, as safetensors wants them."""
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
    """The one spelling of a manifest, with a digest of itself."""
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
    """Move a complete folder into its place; at every moment a complete one stands at `final` or at `final`.old."""
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
    """Delete a checkpoint. It loses its name first, so that a kill leaves no half of it to be taken for a whole."""
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
