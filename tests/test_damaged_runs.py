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
import torch
import yaml
from rich.console import Console

from alignrun import cli
from alignrun.errors import InputError
from alignrun.reports.run import run_page
from alignrun.run.directory import RunDirectory
from alignrun.security.files import parse_json, parse_yaml, read_bytes
from alignrun.sweeps.job import Job, write_job
from alignrun.sweeps.sweep import summarise
from alignrun.training.checkpoint import Checkpoint, load_newest, restore_weights

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
        patch.setattr("alignrun.launch.train.write_report", lambda *_: False)
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

    for place in ("launch.train._assemble", "launch.export._load", "tournament.command.standing_of"):
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
        case "runs":
            return said_by("runs", str(run.parent))
        case "diff":
            return said_by("diff", str(run), str(run), "--all")
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
    "config.yaml": ("resume", "export", "exploit", "eval", "top", "report", "finished", "runs", "diff"),
    "overrides.yaml": ("resume", "report", "sweep"),
    "summary.json": ("resume", "finished", "top", "report", "sweep", "runs", "diff"),
    "pins.json": ("resume", "report", "diff"),
    "environment.json": ("report", "diff"),
    "job.json": ("sweep", "runs"),
    "resuming.json": ("resume",),
    "metrics.jsonl": ("top", "report", "resume", "sweep", "runs", "diff"),
    "samples.jsonl": ("top", "report", "resume"),
    "state.json": ("checkpoint", "resume"),
    "manifest.json": ("checkpoint", "export"),
    "weights.safetensors": ("checkpoint", "export"),
}


@pytest.mark.usefixtures("stopped")
@pytest.mark.parametrize("mutations", [150, pytest.param(400, marks=pytest.mark.nightly)])
def test_any_damage_ends_in_one_line(mutations: int, finished: Path, tmp_path: Path) -> None:
    draw, refused, passed = random.Random(mutations), 0, 0
    problems: list[str] = []
    files = (*TEXTS, *ROWS, *CHECKPOINT, "config.yaml", "config.yaml", "metrics.jsonl", "summary.json")
    for number in range(mutations):
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
    assert refused > mutations // 4
    assert passed > mutations // 10, "commands read no more than they need, and small damage is harmless"


def test_more_metrics_than_can_be_drawn(finished: Path, tmp_path: Path) -> None:
    run = copied(finished, tmp_path / "run")
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 3} | {f"m{number}": 0.5 for number in range(3_000)}) + "\n")
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        assert cli.main(["top", str(run), "--once"]) == 0
    assert "more than 500 metrics: the first ones are shown" in output.getvalue()
    assert len(output.getvalue().splitlines()) < 600


LINKS = (
    *("config.yaml", ".lock", "samples.jsonl", "metrics.jsonl", "curve.svg", "report.html", "signature.json"),
    *("resuming.json", "checkpoints", "checkpoints/step-9", "adapter", "adapter/alignrun.json", "average", "wandb"),
)


@pytest.mark.usefixtures("stopped")
@pytest.mark.parametrize("place", LINKS)
def test_no_link_is_followed_out_of_a_run(place: str, finished: Path, tmp_path: Path) -> None:
    run, outside = copied(finished, tmp_path / "run"), tmp_path / "outside"
    shutil.copytree(finished / "checkpoints", outside)
    (outside / "secret.svg").write_text("<svg>secret</svg>")
    (outside / "config.yaml").write_text((run / "config.yaml").read_text())
    before = {path: path.read_bytes() for path in outside.rglob("*") if path.is_file()}
    link = run / place
    if link.is_dir():
        shutil.rmtree(link)
    link.unlink(missing_ok=True)
    is_file = (finished / place).is_file() or "." in place
    target = outside / ("config.yaml" if place == "config.yaml" else "secret.svg")
    link.symlink_to(target if is_file else outside)
    for name in ("resume", "finished", "export", "exploit", "eval", "top", "report", "checkpoint"):
        code, said = command(name, run)
        assert code == 2, name
        assert f"{link} is a link, and links in a run folder are not followed" in said, name
    assert {path: path.read_bytes() for path in outside.rglob("*") if path.is_file()} == before


def test_a_run_and_its_parents_may_be_links(finished: Path, tmp_path: Path) -> None:
    copied(finished, tmp_path / "disk" / "run")
    (tmp_path / "runs").symlink_to(tmp_path / "disk")
    (tmp_path / "mine").symlink_to(tmp_path / "runs" / "run")
    for run in (tmp_path / "runs" / "run", tmp_path / "mine"):
        assert command("top", run) == (0, "")
    wandb = tmp_path / "disk" / "run" / "wandb"
    wandb.mkdir()
    (wandb / "latest-run").symlink_to("offline-run-1")  # as wandb makes it
    (tmp_path / "disk" / "run" / "notes").symlink_to("/etc/hosts")  # which alignrun does not touch
    assert command("top", tmp_path / "mine") == (0, "")


@pytest.mark.parametrize("name", [".lock", "adapter", "samples.jsonl", "metrics.jsonl", "checkpoints"])
def test_a_new_run_writes_through_no_link(name: str, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).symlink_to(tmp_path / "outside" / ("file" if "." in name else ""))
    with pytest.raises(InputError):
        RunDirectory.create(tmp_path / "run")
    assert not list((tmp_path / "outside").iterdir())


def test_a_resumption_names_folders_of_the_run_alone(finished: Path, tmp_path: Path) -> None:
    run = copied(finished, tmp_path / "parent" / "run")
    change = json.loads((finished / "resuming.json").read_text())
    for output in ("..", "", "a/b", "/etc", 3):
        (run / "resuming.json").write_text(json.dumps(change | {"step": 0, "outputs": [output]}))
        code, said = command("resume", run)
        assert code == 2
        assert "resuming.json" in said
        assert "delete it and resume again" in said
    assert (run / "checkpoints" / "step-2").is_dir()


@pytest.mark.parametrize("kind", [torch.int64, torch.bool])
def test_whole_numbers_are_no_weights(kind: torch.dtype) -> None:
    live = {"a": torch.zeros(2)}
    saved = Checkpoint(Path("step-1"), 1, {"weights": {"a": torch.ones(2).to(kind)}}, {})
    with pytest.raises(InputError, match=f"^step-1: a holds {kind} where the model has torch.float32"):
        restore_weights(live, saved)
    assert live["a"].tolist() == [0, 0]


def test_limits_of_files(tmp_path: Path) -> None:
    file = tmp_path / "file"
    with pytest.raises(InputError, match="No such file"):
        read_bytes(file)
    file.write_bytes(b"12345")
    assert read_bytes(file, 5) == b"12345"
    with pytest.raises(InputError, match="is larger than 4e-06 MB"):
        read_bytes(file, 4)
    with pytest.raises(InputError, match="not a regular file"):
        read_bytes(Path("/dev/zero"))
    for text in ("[" * 65 + "]" * 65, "[" * 10**5, '{"a": ' + "1" * 41 + "}", "{", "\ufeff{}"):
        with pytest.raises(ValueError):  # noqa: PT011
            parse_json(text)
    for text in (BOMB, "[" * 65 + "]" * 65, "[" * 10**5, "a: " + "1" * 41, "a: 0x" + "1" * 41, "a: " + "1:" * 30 + "1",
                 "!!python/object/apply:os.system [ls]", "2001-99-99", "{", "a: \x00", "[{}]: 1"):  # fmt: skip
        with pytest.raises(ValueError):  # noqa: PT011
            parse_yaml(text)
    assert parse_json("[" * 64 + "]" * 64)
    assert parse_json("1" * 40) == parse_yaml("1" * 40) == int("1" * 40)
    assert parse_yaml("a: '" + "1" * 41 + "'") == {"a": "1" * 41}
    assert parse_yaml(str(yaml.safe_dump({"a": [[], [], {}], "b": ["x", "x"]}))) == {"a": [[], [], {}], "b": ["x", "x"]}
