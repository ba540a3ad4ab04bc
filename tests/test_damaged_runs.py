"""Run folders that are damaged, or made to do harm: each command ends in one line, and nothing elsewhere is touched."""

import contextlib
import io
import json
import os
import random
import shutil
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from alignrun import cli
from alignrun.checkpoint import load_newest
from alignrun.errors import InputError
from alignrun.job import Job, write_job
from alignrun.reports.run import run_page
from alignrun.run_directory import RunDirectory
from alignrun.sweep import summarise

MUTATIONS = 360
STOP = "a model would be loaded here"
TEXTS = ("config.yaml", "overrides.yaml", "summary.json", "pins.json", "environment.json", "job.json", "resuming.json")
ROWS = ("metrics.jsonl", "samples.jsonl")
CHECKPOINT = (
    "checkpoints/step-2/state.json",
    "checkpoints/step-2/manifest.json",
    "checkpoints/step-2/weights.safetensors",
)
BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))
VALUES = (None, -1, 0, 10**30, 10**400, 1e308, float("inf"), float("nan"), "x", "", [], {}, True, [1, "a"], "\u202e")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("damaged")
    small = ["train.steps=2", "train.batch_size=2", "train.micro_batch_size=null", "generation.max_new_tokens=2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("alignrun.launch.write_report", lambda *_: False)
        assert cli.main(["experiment=smoke", *small, "data.eval_size=2", "run.dir=run"]) == 0
    run = folder / "run"
    write_job(run, Job(0, ("seed=1",)))
    change = {"step": 1, "evaluated": True, "outputs": ["adapter"]}
    texts = {
        name: (run / file).read_text()
        for name, file in (("config", "config.yaml"), ("overrides", "overrides.yaml"), ("pins", "pins.json"))
    }
    (run / "resuming.json").write_text(json.dumps(change | texts))
    return run


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands go up to where they would load a model."""

    def stop(*_: object) -> None:
        raise InputError(STOP)

    for place in ("launch._assemble", "export._load", "tournament.command._play"):
        monkeypatch.setattr(f"alignrun.{place}", stop)


def copied(finished: Path, folder: Path) -> Path:
    """A run that is not in the middle of a resumption."""
    shutil.copytree(finished, folder)
    (folder / "resuming.json").unlink()
    return folder


def said_by(*arguments: str) -> tuple[int, str]:
    error = io.StringIO()
    with contextlib.redirect_stderr(error), contextlib.redirect_stdout(io.StringIO()):
        code = cli.main(list(arguments))
    return code, error.getvalue()


def command(name: str, run: Path) -> tuple[int, str]:
    """The exit code and what is said; a traceback is raised."""
    match name:
        case "eval":
            return said_by("eval", f"runs=[{run}]", f"run.dir={run.parent / 'tournament'}")
        case "exploit":
            return said_by("exploit", str(run), "train.steps=1", f"run.dir={run.parent / 'response'}")
        case "resume":
            return said_by("resume", str(run), "train.steps=3")
        case "finished":
            return said_by("resume", str(run))
        case "top":
            return said_by("top", str(run), "--once")
        case "export":
            return said_by("export", str(run), "--to", str(run.parent / "out"))
    try:
        match name:
            case "report":
                run_page(RunDirectory.open(run))
            case "sweep":
                summarise(run.parent, "alignrun -m", 0.95, Console(file=io.StringIO()))
            case "checkpoint":
                load_newest(RunDirectory.open(run).checkpoints, lambda _: None)
    except InputError as error:
        return 2, f"alignrun: error: {error}"
    return 0, ""


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield (*path, key)
        yield from leaves(child, (*path, key))


def spoil_value(content: bytes, draw: random.Random, yaml_file: bool) -> bytes:
    """Put an odd value somewhere into a mapping, or rename one of its keys."""
    found = yaml.safe_load(content) if yaml_file else json.loads(content)
    places = list(leaves(found))
    if not places:
        return b"[{}]"
    *path, last = draw.choice(places)
    node = found
    for key in path:
        node = node[key]
    value = draw.choice(VALUES)
    if isinstance(node, dict) and draw.random() < 0.15:
        node[draw.choice(["x", "", "${a}", "a.b"])] = node.pop(last)
    else:
        node[last] = value
    if yaml_file:
        return yaml.safe_dump(found, sort_keys=False).encode()
    return json.dumps(found).encode()


def spoil(file: Path, draw: random.Random) -> str:
    """Damage one file, and say how."""
    content = file.read_bytes()
    kinds = ["value"] * 6 if file.suffix in (".json", ".yaml", ".jsonl") else []
    kind = draw.choice(
        [*kinds, "empty", "cut", "byte", "noise", "utf", "deep", "bomb", "missing", "folder", "fifo", "link"]
    )
    if kind == "value" and file.suffix == ".jsonl":
        lines = content.splitlines()
        place = draw.randrange(len(lines))
        lines[place] = spoil_value(lines[place], draw, yaml_file=False)
        file.write_bytes(b"\n".join(lines) + b"\n")
    elif kind == "value":
        file.write_bytes(spoil_value(content, draw, file.suffix == ".yaml"))
    elif kind in ("missing", "folder", "fifo", "link"):
        file.unlink()
        if kind == "folder":
            file.mkdir()
        elif kind == "fifo":
            os.mkfifo(file)
        elif kind == "link":
            file.symlink_to("/etc/passwd")
    else:
        place = draw.randrange(max(1, len(content)))
        deep = b'{"a":' * 5000 if file.suffix != ".yaml" else b"[" * 5000
        spoiled = {
            "empty": b"",
            "cut": content[:place],
            "byte": content[:place] + bytes([draw.randrange(256)]) + content[place + 1 :],
            "noise": draw.randbytes(60),
            "utf": content[:place] + b"\xff\xfe" + content[place:],
            "deep": deep,
            "bomb": BOMB.encode(),
        }
        file.write_bytes(spoiled[kind])
    return f"{file.name} {kind}"


COMMANDS = {
    "config.yaml": ("resume", "export", "exploit", "eval", "top", "report", "finished"),
    "overrides.yaml": ("resume", "report", "sweep"),
    "summary.json": ("resume", "finished", "top", "report", "sweep"),
    "pins.json": ("resume", "report"),
    "environment.json": ("report",),
    "job.json": ("sweep",),
    "resuming.json": ("resume",),
    "metrics.jsonl": ("top", "report", "resume", "sweep"),
    "samples.jsonl": ("top", "report", "resume"),
    "state.json": ("checkpoint", "resume"),
    "manifest.json": ("checkpoint", "export"),
    "weights.safetensors": ("checkpoint", "export"),
}


@pytest.mark.usefixtures("stopped")
def test_any_damage_ends_in_one_line(finished: Path, tmp_path: Path) -> None:
    draw, refused, passed = random.Random(0), 0, 0
    problems: list[str] = []
    files = (*TEXTS, *ROWS, *CHECKPOINT, "config.yaml", "config.yaml", "metrics.jsonl", "summary.json")
    for number in range(MUTATIONS):
        folder = tmp_path / str(number)
        run = shutil.copytree(finished, folder / "run")
        file = run / files[number % len(files)]
        if file.name != "resuming.json":
            (run / "resuming.json").unlink()
        how = spoil(file, draw)
        name = draw.choice(COMMANDS[file.name])
        try:
            code, said = command(name, run)
        except Exception as error:
            problems.append(f"{number}: {name}, {how}: {error!r} {traceback.extract_tb(error.__traceback__)[-1]}")
            continue
        lines = [line for line in said.splitlines() if not line.startswith("checkpoint ")]
        refusal = len(lines) == 1 and lines[0].startswith("alignrun: error: ") and len(lines[0]) < 1500
        if code not in (0, 1, 2) or (code and not refusal):
            problems.append(f"{number}: {name}, {how}: {code} {said}")
        stands = code == 0 or said.endswith(f"{STOP}\n")
        passed, refused = passed + stands, refused + (not stands)
        shutil.rmtree(folder)
    assert not problems, "\n".join(problems)
    assert refused > MUTATIONS // 4
    assert passed > MUTATIONS // 10, "commands read no more than they need, and small damage is harmless"
