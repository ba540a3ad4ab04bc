"""The judge's answers in an unfinished tournament, stored so that a tournament that fails half-way loses nothing."""

import contextlib
import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor

from alignrun.preferences.base import Preference, identity
from alignrun.preferences.none import NoPreference

CHUNK = 256
"""The number of questions judged before their answers are stored; those of one prompt stay together."""


class Journal(Preference):
    """A preference that stores its answers in batches, and reads those that an earlier attempt stored.

    A finished tournament deletes the file: a cache would outlive a change of the judge.
    """

    def __init__(self, preference: Preference, file: Path | None) -> None:
        self._preference, self._file = preference, file
        self._answers = dict(_read(file))
        self.found = len(self._answers)
        """The number of answers stored by an earlier attempt."""

    @property
    def kept(self) -> int:
        """The number of answers stored so far."""
        return len(self._answers) if self._file is not None else 0

    @property
    def members(self) -> Sequence[str]:  # type: ignore[override]
        """Those of the preference."""
        return self._preference.members

    def counts(self) -> dict[str, float]:
        """Those of the preference."""
        return self._preference.counts()

    def __call__(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> Tensor:
        """[B] the preference's answers."""
        return self._preference.settle(self.votes(prompts, first, second)).double()

    def votes(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> Tensor:
        """[M, B] the votes of the preference's members; only those that are not stored are asked."""
        questions = list(zip(prompts, first, second, strict=True))
        named = [(identity(prompt), one, other) for prompt, one, other in questions]
        keys = [hashlib.sha256(json.dumps(question).encode()).hexdigest() for question in named]
        places = [place for place, key in enumerate(keys) if key not in self._answers]
        for chunk in _chunks(places, prompts):
            sides = zip(*(questions[place] for place in chunk), strict=True)
            asked = self._preference.votes(*(list(side) for side in sides)).double()
            self._keep({keys[place]: votes for place, votes in zip(chunk, asked.T.tolist(), strict=True)})
        return torch.tensor([self._answers[key] for key in keys], dtype=torch.float64).T

    def release(self) -> Preference:
        """The preference, which is no longer asked here: its model may be large."""
        preference, self._preference = self._preference, NoPreference()
        return preference

    def close(self) -> None:
        """Delete the file: the tournament has ended."""
        if self._file is not None:
            self._file.unlink(missing_ok=True)

    def _keep(self, answers: dict[str, list[float]]) -> None:
        self._answers |= answers
        if self._file is not None:
            with contextlib.suppress(OSError):  # answers that cannot be stored only have to be judged again
                self._file.parent.mkdir(parents=True, exist_ok=True)
                with self._file.open("a", encoding="utf-8") as file:
                    file.writelines(json.dumps(row) + "\n" for row in answers.items())


class Member(Preference):
    """One member of a journal's preference, by its votes."""

    def __init__(self, journal: Journal, place: int) -> None:
        self._journal, self._place = journal, place

    def __call__(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> Tensor:
        """[B] the member's votes."""
        return self._journal.votes(prompts, first, second)[self._place]


def journal_file(folder: Path, section: Any, content: Any) -> Path:
    """The file for a judge and its questions; depends on the judge's section and the files that it names."""
    plain = OmegaConf.to_container(OmegaConf.structured(section), enum_to_str=True)
    asked = json.dumps([plain, list(stamps(plain)), content], sort_keys=True, default=str)
    return folder / f"{hashlib.sha256(asked.encode()).hexdigest()}.jsonl"


def stamps(section: Any) -> Iterator[tuple[str, int, int]]:
    """Name, size and modification time of the files of weights, code and games that a judge's section names.

    The code counts once the judge has been built.
    """
    children = section.items() if isinstance(section, dict) else enumerate(section) if isinstance(section, list) else ()
    for key, value in children:
        yield from stamps(value)
        files: list[Path] = []
        if key == "function" and isinstance(value, str):
            code = getattr(sys.modules.get(value.partition(":")[0]), "__file__", None)
            files = [Path(code)] if code else []
        if key == "path" and isinstance(value, str) and Path(value).expanduser().is_dir():
            files = sorted(Path(value).expanduser().rglob("*.safetensors"))
        if key == "game" and isinstance(value, str):
            files = [Path(value)]
        for file in files:
            with contextlib.suppress(OSError):
                found = file.stat()
                yield str(file), found.st_size, found.st_mtime_ns


def _chunks(places: Sequence[int], prompts: Sequence[str]) -> Iterator[list[int]]:
    chunk: list[int] = []
    for place in places:
        if len(chunk) >= CHUNK and prompts[place] != prompts[chunk[-1]]:
            yield chunk
            chunk = []
        chunk.append(place)
    if chunk:
        yield chunk


def _read(file: Path | None) -> Iterator[tuple[str, list[float]]]:
    """The answers in a file, without a half-written line."""
    text = ""
    if file is not None:
        with contextlib.suppress(OSError):
            text = file.read_text(encoding="utf-8", errors="replace")
    for line in text.splitlines():
        with contextlib.suppress(ValueError, TypeError):
            key, votes = json.loads(line)
            if isinstance(key, str) and isinstance(votes, list) and all(isinstance(vote, float) for vote in votes):
                yield key, votes
