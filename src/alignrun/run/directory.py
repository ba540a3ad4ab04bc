"""The folder of a run: its layout, its lock, and writes that survive a kill or a full disk."""

import contextlib
import difflib
import errno
import fcntl
import importlib.metadata
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from alignrun.errors import InputError, RunError
from alignrun.security.files import ROWS_LIMIT, open_regular, parse_json, read_bytes, read_yaml, refuse_links

PACKAGES = (
    "alignrun",
    "torch",
    "transformers",
    "peft",
    "safetensors",
    "datasets",
    "hydra-core",
    "wandb",
    "bitsandbytes",
)

REMEDIES = {errno.ENOSPC: "free space", errno.EDQUOT: "free space", errno.ELOOP: "delete that link"}
"""errno → how to fix a failed write in place."""
REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)
"""Failures that only another place avoids."""


PARTS = (".lock", "resuming.json", "job.json", "average", "adapter.partial", "average.partial")
"""Other names that the folder of a run may hold."""


class RunDirectory:
    """The paths of one run. Creating the object touches nothing on disk."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser().absolute()
        self.config_file = self.path / "config.yaml"
        self.overrides_file = self.path / "overrides.yaml"
        self.metrics_file = self.path / "metrics.jsonl"
        self.samples_file = self.path / "samples.jsonl"
        self.summary_file = self.path / "summary.json"
        self.failure_file = self.path / "failure.json"
        self.environment_file = self.path / "environment.json"
        self.pins_file = self.path / "pins.json"
        self.report_file = self.path / "report.html"
        self.wandb_run_file = self.path / "wandb_run.json"
        self.checkpoints = self.path / "checkpoints"
        self.adapter = self.path / "adapter"
        self.wandb = self.path / "wandb"
        self.signature_file = self.path / "signature.json"
        self._lock: int | None = None

    @classmethod
    def create(cls, path: str | Path) -> "RunDirectory":
        """Create the folder of a new run and lock it; the caller writes `config_file`, which makes it a run.

        Raises InputError if a run or a file exists there, or the place is not writable.
        """
        run = cls(path)
        run._refuse_another()
        run.refuse_links()
        try:
            run.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot create {run.path}: {error.strerror}; choose another run.dir") from error
        run.lock()
        try:
            run._refuse_another()  # another process may have created and unlocked one in the meantime
        except InputError:
            run.close()
            raise
        return run

    def _refuse_another(self) -> None:
        if any(part.exists() for part in (self.config_file, self.metrics_file, self.samples_file, self.checkpoints)):
            raise InputError(
                f"{self.path} already holds a run: resume it with `alignrun resume {self.path}` or choose another "
                "run.dir"
            )

    @classmethod
    def open(cls, path: str | Path) -> "RunDirectory":
        """The run at `path`, for reading; call `lock` before writing. Raises InputError if there is none."""
        run = cls(path)
        if os.path.lexists(run.config_file):
            run.refuse_links()
        if run.config_file.is_file():
            return run
        if run.path.is_dir():
            problem = "is not a run: it has no config.yaml"
        else:
            problem = "is not a run: it is a file" if run.path.exists() else "does not exist"
        parents = [str(parent) for parent in run.path.parents if (parent / "config.yaml").is_file()]
        near = parents[:1] or [str(run.path.parent / name) for name in _near_runs(run.path)]
        hint = f"did you mean {' or '.join(near)}?" if near else "name the folder of a run"
        raise InputError(f"{run.path} {problem}; {hint}")

    def refuse_links(self) -> None:
        """Raise InputError if a part of the run is a link, which could lead to files outside it."""
        figures = [entry.name for entry in self.path.glob("*.svg")]
        own = [part.name for part in vars(self).values() if isinstance(part, Path) and part.parent == self.path]
        if not self.wandb.is_symlink():
            own.remove(self.wandb.name)  # wandb makes links inside its folder
        refuse_links(self.path, [*PARTS, *own, *figures])

    def read_overrides(self) -> list[str] | None:
        """The overrides that the run was started and resumed with; None if it has recorded none.

        Raises InputError if overrides.yaml is damaged.
        """
        if not self.overrides_file.is_file():
            return None
        found = read_yaml(self.overrides_file, "delete it")
        if not isinstance(found, list):
            raise InputError(f"{self.overrides_file} cannot be read (it is not a list): delete it")
        return list(map(str, found))

    def lock(self) -> None:
        """Lock the run for this process, until `close` or its death. Raises InputError if another one has the lock."""
        if self._lock is not None:
            return
        path = self.path / ".lock"
        try:
            descriptor = open_regular(path, os.O_RDWR | os.O_CREAT)
        except OSError as error:
            remedy = "choose another run.dir"
            if self.config_file.is_file():
                remedy = f"{_copy(self.path)} and name the copy"
            raise InputError(f"cannot write in {self.path}: {error.strerror}; {remedy}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(descriptor)
            raise InputError(
                f"another process (pid {holder}) is writing {self.path}: wait until it ends, or choose another run.dir"
            ) from None
        except OSError:
            pass  # some network file systems have no locks: train without one
        with writing(path):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        self._lock = descriptor

    def close(self) -> None:
        """Release the lock."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _near_runs(path: Path) -> list[str]:
    """Names of runs next to `path` that resemble its name, the closest first."""
    try:
        names = {config.parent.name for config in path.parent.glob("*/config.yaml")} - {path.name}
    except OSError:
        return []
    return difflib.get_close_matches(path.name, names, n=3)


@contextlib.contextmanager
def writing(path: Path, then: str | None = None, instead: str | None = None) -> Iterator[None]:
    """Turn a failure to write `path` into a RunError: what could not be written, why, and how to fix it.

    Args:
        path: a file or a folder.
        then: what to do once the cause is fixed; by default, resume the run that `path` belongs to.
        instead: what to do if writing `path` is not permitted; by default, copy that run.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        code = _error_number(error)
        if code is None:
            raise
        run = next((parent for parent in path.absolute().parents if (parent / "config.yaml").is_file()), None)
        if code in REFUSED:
            advice = f"{_copy(run)}, then `alignrun resume COPY`" if run else f"make {path.parent} writable"
            advice = instead or advice
        else:
            then = then or (f"`alignrun resume {shlex.quote(str(run))}`" if run else None)
            advice = REMEDIES.get(code, "check the disk") + (f", then {then}" if then else "")
        raise RunError(f"could not write {path}: {os.strerror(code)}; {advice}") from error


def _copy(run: Path) -> str:
    # A plain `cp -r` would make a copy as read-only as the run.
    return f"copy the run to where you may write (`cp -r {shlex.quote(str(run))} COPY && chmod -R u+w COPY`)"


def _error_number(error: Exception) -> int | None:
    """The errno of a failed system call; safetensors gives it only in its text."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"os error (\d+)", str(error))
    return int(found[1]) if found else None


def write_text_atomic(path: Path, text: str) -> None:
    """Replace the contents of `path` atomically: after a kill, the file has either the old text or the new.

    Raises RunError if it cannot be written; `path` is then unchanged.
    """
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    with writing(path):
        try:
            temporary.unlink(missing_ok=True)
            descriptor = open_regular(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def writing_folder(path: Path, then: str, instead: str) -> Iterator[Path]:
    """A temporary folder that is renamed to `path` at the end, or deleted if anything fails.

    `path` is an empty folder, or does not exist. Raises RunError if it cannot be written; `then` and `instead` are as
    for `writing`.
    """
    with writing(path, then, instead):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        with writing(path, then, instead):
            yield partial
            partial.chmod(0o777 & ~_umask())
            partial.rename(path)  # this also replaces an empty folder
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def append_jsonl(path: Path, row: Mapping[str, Any]) -> None:
    """Append a row to a JSON Lines file; a kill loses at most this row. Raises RunError if it cannot be written."""
    # A lone surrogate, which JSON input can contain, becomes its \u escape, which is valid JSON again.
    line = (json.dumps(row, ensure_ascii=False) + "\n").encode(errors="backslashreplace")
    with writing(path), os.fdopen(open_regular(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), "ab") as file:
        file.write(line)


def truncate_jsonl(path: Path, after_step: int, stale: Callable[[Mapping[str, Any]], bool] = lambda _: False) -> None:
    """Drop the rows of steps after `after_step`, those of `after_step` that are `stale`, and a torn last line.

    Rows without a step stay; the file may be missing. Raises InputError for a broken line elsewhere.
    """
    kept = []
    for line, row in read_jsonl(path):
        step = row.get("step") if isinstance(row, dict) else None
        if not isinstance(step, int) or step < after_step or (step == after_step and not stale(row)):
            kept.append(line)
    after = b"".join(line + b"\n" for line in kept)
    if path.exists() and after != read_bytes(path, ROWS_LIMIT):
        write_text_atomic(path, after.decode())


def read_jsonl(path: Path) -> list[tuple[bytes, Any]]:
    """The lines of a JSON Lines file with their values, without a torn last one; empty if the file is missing.

    Raises InputError for a broken line elsewhere.
    """
    lines = read_bytes(path, ROWS_LIMIT).splitlines() if path.exists() else []
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            found.append((line, parse_json(line)))
        except ValueError:
            if number < len(lines):
                raise InputError(f"{path}:{number} is not JSON: correct or delete that line") from None
    return found


def discard_output(folder: Path) -> None:
    """Delete a folder of weights. It is renamed first, so a kill never leaves a partial one under its name."""
    if folder.is_dir() and not folder.is_symlink():
        partial = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        folder.rename(partial)
        shutil.rmtree(partial, ignore_errors=True)


def environment() -> dict[str, Any]:
    """The environment of this process: versions, git commit, device, threads, start time, command. Never fails."""
    return {
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
        "git_commit": _git_commit(),
        **_hardware(),
        "GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT"),
        "platform": platform.platform(),
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": shlex.join(sys.argv),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """The commit of alignrun's own source tree, with `-dirty` if tracked files differ; None without a repository.

    git is not run in the current folder: a repository's configuration can name programs that git runs.
    """
    root = Path(__file__).parents[3]
    if not (root / ".git").exists():
        return None
    command = ["git", "-c", "core.fsmonitor=false", "-c", f"core.hooksPath={os.devnull}", "-C", str(root)]
    command += ["describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    # Git's variables could point it to another repository. It still reads the user's configuration (safe.directory).
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    clean |= {"GIT_CEILING_DIRECTORIES": str(root.parent), "GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, env=clean)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def _hardware() -> dict[str, Any]:
    import torch  # imported here because readers of a run's files do not need it

    if torch.cuda.is_available():
        device = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    else:
        device = "mps" if torch.backends.mps.is_available() else "cpu"
    return {"device": device, "cpu_count": os.cpu_count(), "threads": torch.get_num_threads()}
