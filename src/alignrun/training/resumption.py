"""Resuming changes the folder of a run atomically: all of the change or none of it, whenever a kill comes.

It works like a write-ahead log: the change is written to one file, then applied, and then the file is deleted. A kill
before the file exists leaves the run unchanged; after a later kill, the next resume first applies the rest.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from alignrun.errors import InputError, one_line
from alignrun.run.directory import RunDirectory, discard_output, write_text_atomic, writing
from alignrun.run.tracking import drop_rows
from alignrun.security.files import read_json
from alignrun.training.checkpoint import discard_later, list_checkpoints

FILE = "resuming.json"


@dataclass(frozen=True, slots=True)
class Resumption:
    """The run continues from a checkpoint with these settings; everything after that step is discarded."""

    step: int
    """Step of the checkpoint."""
    evaluated: bool
    """Whether to keep the evaluation of that step."""
    config: str
    """The text of config.yaml."""
    overrides: str
    """The text of overrides.yaml."""
    pins: str
    """The text of pins.json."""
    outputs: tuple[str, ...]
    """Folders with the weights of the newest checkpoint in other formats, such as adapter/."""
    signature: str = ""
    """The text of signature.json; empty if the configuration is not signed."""


def commit(run: RunDirectory, resumption: Resumption) -> None:
    """Apply the change. Raises RunError if it cannot be written; the next resume then applies the rest of it."""
    write_text_atomic(run.path / FILE, json.dumps(asdict(resumption)))
    settle(run)


def settle(run: RunDirectory) -> None:
    """Finish a change that was interrupted; the run must be locked.

    Raises:
        InputError: the file that records the change is damaged.
        RunError: the change cannot be written.
    """
    file = run.path / FILE
    if not file.is_file():
        return
    try:
        found = read_json(file, "delete it and resume again")
        change = Resumption(**found | {"outputs": tuple(found["outputs"])})
        _check(change)
        outputs = [run.path / name for name in change.outputs]
    except (ValueError, TypeError, LookupError) as error:
        raise InputError(f"{file} cannot be read ({one_line(error, 120)}): delete it and resume again") from None
    run.refuse_links()
    with writing(run.config_file):
        run.summary_file.unlink(missing_ok=True)
        run.failure_file.unlink(missing_ok=True)
        if any(step > change.step for step, _ in list_checkpoints(run.checkpoints)):
            for folder in outputs:
                discard_output(folder)
            discard_later(run.checkpoints, change.step)
    drop_rows(run, change.step, change.evaluated)
    write_text_atomic(run.pins_file, change.pins)
    write_text_atomic(run.overrides_file, change.overrides)
    if change.signature:
        write_text_atomic(run.signature_file, change.signature)
    write_text_atomic(run.config_file, change.config)
    with writing(file):
        file.unlink()


def _check(change: Resumption) -> None:
    """Raises ValueError if the file has content that `commit` would not have written."""
    texts = (change.config, change.overrides, change.pins, change.signature, *change.outputs)
    if type(change.step) is not int or not all(isinstance(text, str) for text in texts):
        raise ValueError("it has values of the wrong types")
    if wrong := [name for name in change.outputs if Path(name).name != name or name in ("", "..")]:
        raise ValueError(f"{wrong[0]!r} is not a folder of a run")
