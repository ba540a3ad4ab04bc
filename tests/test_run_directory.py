import errno
import json
import multiprocessing
import os
import resource
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import zeros

from alignrun.errors import InputError, RunError
from alignrun.run import directory as run_directory
from alignrun.run.directory import RunDirectory, append_jsonl, environment, truncate_jsonl, write_text_atomic, writing

FORK = multiprocessing.get_context("fork")


def hold_lock(path: Path, held: Event) -> None:
    RunDirectory(path).lock()
    held.set()
    signal.pause()


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Make every write beyond `size` bytes fail in the kernel, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunDirectory]:
    made = RunDirectory.create(tmp_path / "runs" / "nash")
    write_text_atomic(made.config_file, "seed: 0\n")
    yield made
    made.close()


def test_layout_of_a_run(run: RunDirectory) -> None:
    names = {path.relative_to(run.path).as_posix() for path in vars(run).values() if isinstance(path, Path)}
    assert names == {
        ".",
        "config.yaml",
        "overrides.yaml",
        "metrics.jsonl",
        "samples.jsonl",
        "summary.json",
        "environment.json",
        "pins.json",
        "report.html",
        "failure.json",
        "wandb_run.json",
        "checkpoints",
        "adapter",
        "wandb",
        "signature.json",
    }
    assert run.path.is_absolute()
    assert RunDirectory.open(run.path).path == run.path


@pytest.mark.parametrize("content", ["config.yaml", "metrics.jsonl", "checkpoints"])
def test_a_second_run_is_not_made_over_the_first(tmp_path: Path, content: str) -> None:
    (tmp_path / content).mkdir() if content == "checkpoints" else (tmp_path / content).write_text("")
    with pytest.raises(InputError, match=r"already holds a run: resume it with `alignrun resume /.*` or choose"):
        RunDirectory.create(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [content]


def test_a_folder_of_other_things_may_become_a_run(tmp_path: Path) -> None:
    (tmp_path / ".hydra").mkdir()
    RunDirectory.create(tmp_path).close()


def test_a_run_that_was_made_in_the_meantime_is_not_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = RunDirectory.lock

    def late(run: RunDirectory) -> None:
        lock(run)
        run.config_file.write_text("seed: 1\n")  # another process began, ended and let go before the lock was ours

    monkeypatch.setattr(RunDirectory, "lock", late)
    with pytest.raises(InputError, match="already holds a run"):
        RunDirectory.create(tmp_path / "run")


@pytest.mark.parametrize("place", ["notes.txt", "notes.txt/run"])
def test_a_file_in_the_way(tmp_path: Path, place: str) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"cannot create .*; choose another run.dir") as caught:
        RunDirectory.create(tmp_path / place)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="Permission denied"):
        RunDirectory.create(tmp_path / "run")
    with pytest.raises(InputError, match="cannot write in"):
        RunDirectory.create(tmp_path)


def test_open_says_what_is_missing_and_what_is_near(run: RunDirectory, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"does not exist; did you mean .*/runs/nash\?"):
        RunDirectory.open(run.path.with_name("nahs"))
    with pytest.raises(InputError, match=r"/runs is not a run: it has no config.yaml; name the folder of a run"):
        RunDirectory.open(tmp_path / "runs")
    with pytest.raises(InputError, match=r"it is a file; did you mean .*/runs/nash\?"):
        RunDirectory.open(run.config_file)
    (run.checkpoints / "step-5").mkdir(parents=True)
    with pytest.raises(InputError, match=r"has no config.yaml; did you mean .*/runs/nash\?"):
        RunDirectory.open(run.checkpoints / "step-5")


def test_a_configuration_that_is_a_link_to_a_device_is_named_as_a_link(run: RunDirectory) -> None:
    run.config_file.unlink()
    run.config_file.symlink_to("/dev/zero")
    with pytest.raises(InputError, match=r"config\.yaml is a link"):
        RunDirectory.open(run.path)
    run.config_file.unlink()
    run.config_file.mkdir()
    with pytest.raises(InputError) as caught:
        RunDirectory.open(run.path)
    assert "did you mean" not in str(caught.value)  # itself, as the glob of runs finds it


def test_the_lock_is_held_against_another_process_and_freed_by_its_death(run: RunDirectory) -> None:
    with pytest.raises(InputError, match=rf"pid {os.getpid()}\)"):  # a new run is locked from the start
        RunDirectory.open(run.path).lock()
    run.close()
    held = FORK.Event()
    other = FORK.Process(target=hold_lock, args=(run.path, held), daemon=True)
    other.start()
    assert held.wait(10)
    with pytest.raises(InputError, match=rf"another process \(pid {other.pid}\) is writing {run.path}"):
        run.lock()
    other.kill()
    other.join()
    run.lock()
    run.lock()  # it is ours already


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="needs /dev/full")
def test_a_full_disk_is_one_line_that_says_how_to_continue(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alignrun.run.directory.open_regular", lambda *_: os.open("/dev/full", os.O_WRONLY))
    with pytest.raises(RunError) as caught:
        append_jsonl(run.metrics_file, {"step": 1})
    assert str(caught.value) == (
        f"could not write {run.metrics_file}: No space left on device; free space, then `alignrun resume {run.path}`"
    )


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (errno.EDQUOT, "free space"),
        (errno.EIO, "check the disk"),
    ],
)
def test_every_failure_to_write_says_what_to_do(run: RunDirectory, code: int, advice: str) -> None:
    with pytest.raises(RunError, match=rf"{os.strerror(code)}; {advice}, then `alignrun resume"), writing(run.adapter):
        raise OSError(code, os.strerror(code))


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.EPERM])
def test_a_place_that_may_not_be_written_is_left_for_another(run: RunDirectory, code: int, tmp_path: Path) -> None:
    said = rf"; copy the run to where you may write \(`cp -r {run.path} COPY && chmod -R u\+w COPY`\), then `alignrun "
    with pytest.raises(RunError, match=said + r"resume COPY`$"), writing(run.adapter):
        raise OSError(code, os.strerror(code))
    with (
        pytest.raises(RunError, match=r"; choose another folder$"),
        writing(run.adapter, instead="choose another folder"),
    ):
        raise OSError(code, os.strerror(code))
    with pytest.raises(RunError, match=f"; make {tmp_path} writable$"), writing(tmp_path / "file"):
        raise OSError(code, os.strerror(code))


def test_the_copy_of_a_read_only_run_can_be_written(run: RunDirectory, tmp_path: Path) -> None:
    (run.path / "metrics.jsonl").write_text("")
    run.close()
    for path in (*run.path.iterdir(), run.path):
        path.chmod(0o500 if path.is_dir() else 0o400)
    if os.geteuid():
        with pytest.raises(InputError) as caught:
            RunDirectory.open(run.path).lock()
        assert f"`cp -r {run.path} COPY && chmod -R u+w COPY`" in str(caught.value)
    subprocess.run("cp -r nash COPY && chmod -R u+w COPY", shell=True, check=True, cwd=run.path.parent)
    copied = run.path.with_name("COPY")
    assert all(path.stat().st_mode & stat.S_IWUSR for path in (*copied.iterdir(), copied))
    run.path.chmod(0o700)


def test_safetensors_failures_to_write_are_distinguished_from_its_other_errors(run: RunDirectory) -> None:
    with pytest.raises(RunError, match="File too large"), writing(run.adapter), file_size_limit(4096):
        save_file({"weight": zeros(100_000)}, run.path / "adapter.safetensors")
    with pytest.raises(SafetensorError), writing(run.adapter):
        raise SafetensorError("header too large")


def test_atomic_writing_leaves_the_old_text_when_it_fails(run: RunDirectory) -> None:
    with pytest.raises(RunError, match="File too large"), file_size_limit(4096):
        write_text_atomic(run.config_file, "x" * 10_000)
    assert run.config_file.read_text() == "seed: 0\n"
    assert sorted(path.name for path in run.path.iterdir()) == [".lock", "config.yaml"]


def test_atomic_writing_shows_a_reader_no_part(run: RunDirectory) -> None:
    with run.config_file.open() as reader:
        write_text_atomic(run.config_file, "seed: 1\n")
        assert reader.read() == "seed: 0\n"
    assert run.config_file.read_text() == "seed: 1\n"


def test_a_half_of_a_surrogate_pair_survives(run: RunDirectory) -> None:
    append_jsonl(run.samples_file, {"step": 1, "first": "bad \ud800, good é 😀"})
    assert json.loads(run.samples_file.read_text())["first"] == "bad \ud800, good é 😀"
    assert "é 😀" in run.samples_file.read_text()


def test_truncation_drops_later_rows_and_a_torn_line(run: RunDirectory) -> None:
    append_jsonl(run.metrics_file, {"note": "no step"})
    for step in (1, 2, 3, 4):
        append_jsonl(run.metrics_file, {"step": step, "text": "é"})
    whole = run.metrics_file.read_bytes()
    run.metrics_file.write_bytes(whole + '{"step": 5, "text": "é'.encode()[:-1])
    truncate_jsonl(run.metrics_file, 4)
    assert run.metrics_file.read_bytes() == whole
    truncate_jsonl(run.metrics_file, 2)
    rows = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
    assert rows == [{"note": "no step"}, {"step": 1, "text": "é"}, {"step": 2, "text": "é"}]
    truncate_jsonl(run.path / "missing.jsonl", 2)


def test_truncation_refuses_a_broken_line_in_the_middle(run: RunDirectory) -> None:
    run.metrics_file.write_text('{"step": 1}\n{"st\n{"step": 2}\n')
    with pytest.raises(InputError, match=r"metrics.jsonl:2 is not JSON"):
        truncate_jsonl(run.metrics_file, 1)
    assert run.metrics_file.read_text().endswith('{"step": 2}\n')


def test_the_environment_is_json_and_names_the_commit_of_alignrun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tmp_path / "src" / "alignrun" / "run" / "directory.py"
    module.parent.mkdir(parents=True)
    module.write_text("1")
    monkeypatch.setattr(run_directory, "__file__", str(module))
    assert environment()["git_commit"] is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for command in (["init", "-q"], ["add", "src"], ["commit", "-qm", "first"]):
        subprocess.run([*git, *command], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    found = json.loads(json.dumps(environment()))
    assert found["git_commit"] == commit
    assert found["versions"]["python"] == sys.version.split()[0]
    assert found["versions"]["torch"]
    assert set(found) == {
        "versions",
        "git_commit",
        "device",
        "cpu_count",
        "threads",
        "GOMP_SPINCOUNT",
        "platform",
        "started",
        "command",
    }
    module.write_text("2")
    assert environment()["git_commit"] == f"{commit}-dirty"
    monkeypatch.setenv("PATH", "")
    assert environment()["git_commit"] is None


def test_no_repository_can_have_git_run_its_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A monitor of the file system is any program; neither the current folder's nor alignrun's own is run."""
    ran = tmp_path / "ran"
    monitor = tmp_path / "monitor"
    monitor.write_text(f"#!/bin/sh\ntouch {ran}\n")
    monitor.chmod(0o755)
    for name in ("here", "own"):
        folder = tmp_path / name
        module = folder / "src" / "alignrun" / "run" / "directory.py"
        module.parent.mkdir(parents=True)
        module.write_text("1")
        git = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b.c"]
        for command in (["init", "-q"], ["add", "src"], ["commit", "-qm", "first"]):
            subprocess.run([*git, *command], check=True)
        subprocess.run([*git, "config", "core.fsmonitor", str(monitor)], check=True)
    monkeypatch.chdir(tmp_path / "here")
    subprocess.run(["git", "describe", "--always", "--dirty"], check=True, capture_output=True)
    assert ran.exists(), "git does run it where nothing forbids that"
    ran.unlink()
    environment()
    monkeypatch.setattr(run_directory, "__file__", str(tmp_path / "own" / "src" / "alignrun" / "run" / "directory.py"))
    assert environment()["git_commit"]
    assert not ran.exists()
