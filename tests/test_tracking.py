import contextlib
import importlib
import json
import math
import multiprocessing
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import wandb
from wandb.proto import wandb_internal_pb2

import alignrun.run.wandb_run
from alignrun.config import Artifact, TrackerConfig, WandbMode
from alignrun.errors import RunError
from alignrun.run import wandb_run
from alignrun.run.directory import RunDirectory
from alignrun.run.tracking import Tracking, start_tracking
from alignrun.sweeps.sweep import wandb_names
from alignrun.types import Sample

KEY = "0123456789" * 4
SAMPLES = [
    Sample("Say hi.", "Hi", "No\nthanks é", 0.75),
    Sample("Half a pair \ud800", "[bold]a[/bold]", "b", 0.25),
    Sample("third", "a", "b", 0.5),
]


class Bench:
    """A run, the notices that its tracking gave, and a way to open it."""

    def __init__(self, path: Path) -> None:
        self.run = RunDirectory(path)
        self.run.path.mkdir()
        self.notices: list[str] = []

    def start(self, mode: WandbMode = WandbMode.auto, resume_step: int | None = None, **given: Any) -> Tracking:
        config = TrackerConfig(mode=mode, samples=2, **{"tags": ["test"]} | given)
        resolved = {"optim": {"learning_rate": 0.1}, "seed": 3, "algo": {"name": "ipo"}, "preference": {"name": "none"}}
        return start_tracking(config, self.run, resolved, resume_step=resume_step, notify=self.notices.append)

    def rows(self, name: str = "metrics") -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.run.path / f"{name}.jsonl").read_text().splitlines()]

    def wandb_files(self) -> list[Path]:
        wandb.teardown()  # what the end of the process does: until then the last records may be on their way
        return sorted(self.run.wandb.glob("offline-run-*/*.wandb"))


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """No account, no settings and no network, whatever the machine has."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "home" / ".netrc"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(alignrun.run.wandb_run, "INIT_TIMEOUT", 0.3)
    monkeypatch.setenv("WANDB_HTTP_TIMEOUT", "1")
    monkeypatch.setattr(wandb, "run", None)  # left by a test that broke it
    monkeypatch.chdir(tmp_path)
    wandb.teardown()
    yield Bench(tmp_path / "run")
    with contextlib.suppress(ConnectionError):  # from the test that kills the other side
        wandb.teardown()


def read_wandb(path: Path) -> Iterator[Any]:
    """The records of a .wandb file: a LevelDB log of protobuf messages."""
    data = path.read_bytes()
    assert data[:4] == b":W&B"
    position, whole = 7, b""
    while position + 7 <= len(data):
        room = 32768 - position % 32768
        if room < 7:
            position += room
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        position += 7
        whole += data[position : position + length]
        position += length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield wandb_internal_pb2.Record.FromString(whole)
            whole = b""


def wandb_history(path: Path) -> dict[int, dict[str, Any]]:
    """What was logged at each of our steps."""
    history: dict[int, dict[str, Any]] = {}
    for record in read_wandb(path):
        if record.HasField("history"):
            row = {(item.key or ".".join(item.nested_key)): json.loads(item.value_json) for item in record.history.item}
            step = row.pop("step")
            history.setdefault(step, {}).update({k: value for k, value in row.items() if not k.startswith("_")})
    return history


def wandb_summary(path: Path) -> dict[str, Any]:
    summary = {}
    for record in read_wandb(path):
        for item in record.summary.update if record.HasField("summary") else ():
            summary[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
    return summary


def test_an_offline_run_holds_what_the_json_lines_hold(bench: Bench, capfd: pytest.CaptureFixture[str]) -> None:
    tracking = bench.start()
    for step in range(1, 401):
        tracking.log(step, {"loss": 1 / (step + 0.1), "eval/win_rate": step / 7, "count": step})
    tracking.log_samples(400, SAMPLES)
    tracking.finish({"win_rate": 0.625, "model": "tiny"}, 0)

    (path,) = bench.wandb_files()
    assert path.stat().st_size > 32768  # more than a block of the log
    assert tracking.location == str(path.parent)
    history = wandb_history(path)
    table = {key: history[400].pop(key) for key in list(history[400]) if key.startswith("eval/samples.")}
    rows = bench.rows()
    assert len(rows) == 400
    assert history == {
        row["step"]: {"train/loss": row["loss"], "eval/win_rate": row["eval/win_rate"], "train/count": row["count"]}
        for row in rows
    }
    assert rows[3] == {"step": 4, "loss": 1 / 4.1, "eval/win_rate": 4 / 7, "count": 4}

    assert table["eval/samples.nrows"] == 2
    stored = json.loads((path.parent / "files" / table["eval/samples.path"]).read_text())
    assert stored["columns"] == [
        "step", "prompt", "policy completion", "reference completion", "P(policy is preferred)",
    ]  # fmt: skip
    assert stored["data"] == [list(row.values()) for row in bench.rows("samples")]
    assert bench.rows("samples")[0] == {
        "step": 400,
        "prompt": "Say hi.",
        "first": "Hi",
        "second": "No\nthanks é",
        "preference": 0.75,
    }
    assert bench.rows("samples")[1]["prompt"] == SAMPLES[1].prompt

    records = list(read_wandb(path))
    assert wandb_summary(path)["eval/model"] == "tiny"
    (start,) = [record.run for record in records if record.HasField("run")]
    assert (start.project, start.display_name, set(start.tags)) == ("alignrun", "run", {"test", "ipo"})
    config = {item.key: json.loads(item.value_json) for item in start.config.update}
    assert config["optim"] == {"learning_rate": 0.1}
    assert [record.exit.exit_code for record in records if record.HasField("exit")] == [0]

    assert len(bench.notices) == 1
    assert "no API key found" in bench.notices[0]
    assert f"wandb sync {bench.run.wandb}/offline-run-*" in bench.notices[0]
    assert capfd.readouterr() == ("", "")
    assert sorted(path.name for path in Path().iterdir()) == ["home", "run"]


def test_values_that_json_cannot_say(bench: Bench) -> None:
    tracking = bench.start(WandbMode.disabled)
    tracking.log(1, {"loss": math.nan, "grad_norm": math.inf, "kl": 0.5})
    assert bench.run.metrics_file.read_text() == '{"step": 1, "loss": null, "grad_norm": null, "kl": 0.5}\n'


@pytest.mark.parametrize(
    ("mode", "variable"),
    [(WandbMode.disabled, None), (WandbMode.disabled, "online"), (WandbMode.auto, "disabled")],
)
def test_disabled(bench: Bench, monkeypatch: pytest.MonkeyPatch, mode: WandbMode, variable: str | None) -> None:
    if variable:
        monkeypatch.setenv("WANDB_MODE", variable)
    monkeypatch.delattr(wandb, "setup")  # it is not even asked for its settings
    tracking = bench.start(mode)
    tracking.log(1, {"loss": 1.0})
    tracking.finish({})
    assert (tracking.location, bench.notices) == (None, [])
    assert [path.name for path in bench.run.path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize(
    ("mode", "variable", "key", "notice"),
    [
        (WandbMode.auto, "offline", KEY, None),
        (WandbMode.auto, "dryrun", KEY, None),
        (WandbMode.offline, "online", KEY, None),
        (WandbMode.online, None, None, "no API key found"),
        (WandbMode.online, "offline", KEY, "could not go online"),
        (WandbMode.auto, None, "short", "API key must have"),
        (WandbMode.auto, None, KEY, "could not go online"),
        (WandbMode.auto, None, "netrc", "could not go online"),
    ],
)
def test_offline_for_good_reason(
    bench: Bench,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    mode: WandbMode,
    variable: str | None,
    key: str | None,
    notice: str | None,
) -> None:
    if variable:
        monkeypatch.setenv("WANDB_MODE", variable)
    if key == "netrc":
        Path(os.environ["NETRC"]).write_text(f"machine 127.0.0.1:9\n  login user\n  password {KEY}\n")
    elif key:
        monkeypatch.setenv("WANDB_API_KEY", key)
    tracking = bench.start(mode)
    tracking.log(1, {"loss": 1.0})
    tracking.finish({})
    (path,) = bench.wandb_files()
    assert wandb_history(path) == {1: {"train/loss": 1.0}}
    assert [notice in line for line in bench.notices if notice] == ([True] if notice else [])
    assert all("\n" not in line for line in bench.notices)
    assert capfd.readouterr() == ("", "")


def test_a_resumed_run_is_the_same_wandb_run(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    tracking = bench.start()
    for step in (1, 2, 3):
        tracking.log(step, {"loss": float(step)})
        tracking.log_samples(step, SAMPLES[:1])
    tracking.finish({})
    first = json.loads(bench.run.wandb_run_file.read_text())["id"]

    # Even where the server was to be asked for it, and could not be reached.
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    tracking = bench.start(resume_step=2)
    assert [row["step"] for row in bench.rows()] == [1, 2]
    assert [row["step"] for row in bench.rows("samples")] == [1, 2]
    tracking.log(3, {"loss": 3.5})
    tracking.finish({})
    assert [row["loss"] for row in bench.rows()] == [1.0, 2.0, 3.5]
    assert json.loads(bench.run.wandb_run_file.read_text())["id"] == first
    files = bench.wandb_files()
    assert [path.name for path in files] == [f"run-{first}.wandb"] * 2
    assert sorted(list(wandb_history(path)) for path in files) == [[1, 2, 3], [3]]

    bench.run.wandb_run_file.write_text("{")
    monkeypatch.setenv("WANDB_MODE", "offline")
    bench.start(resume_step=3).finish({})
    assert json.loads(bench.run.wandb_run_file.read_text())["id"] != first


class FakeRun:
    """A wandb run that notes what is asked of it."""

    id, url, dir = "fake", "https://example.org/run", "run/wandb/files"

    def __init__(self, **arguments: Any) -> None:
        self.arguments = arguments
        self.summary: dict[str, Any] = {}
        self.rules: dict[str, str | None] = {}
        self.artifacts: list[tuple[str, list[str], list[str]]] = []

    def define_metric(self, name: str, summary: str | None = None, **_: Any) -> None:
        self.rules[name] = summary

    def log(self, row: dict[str, Any]) -> None:
        self.summary.update(row)

    def log_artifact(self, artifact: Any, aliases: list[str]) -> None:
        self.artifacts.append((artifact.name, aliases, sorted(artifact.manifest.entries)))

    def finish(self, exit_code: int) -> None:
        self.exit_code = exit_code


@pytest.fixture
def fake(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> list[FakeRun]:
    """The runs that were opened, none of which starts a process."""
    opened: list[FakeRun] = []

    def init(**arguments: Any) -> FakeRun:
        opened.append(FakeRun(**arguments))
        return opened[-1]

    monkeypatch.setattr(wandb, "init", init)
    return opened


def test_training_batches_do_not_replace_held_out_prompts_in_the_summary(bench: Bench) -> None:
    tracking = bench.start(WandbMode.offline)
    for step, (batch, heldout) in enumerate([(0.9, 0.5), (0.95, 0.7), (1.0, 0.6)], start=1):
        tracking.log(step, {"win_rate": batch, "kl": 10 * batch})
        tracking.log(step, {"eval/win_rate": heldout, "eval/kl": heldout})
    tracking.log(4, {"win_rate": 0.1, "kl": 7.0})
    tracking.finish({"win_rate": 0.6, "kl": 0.6, "length": 12.0}, 0)
    (path,) = bench.wandb_files()
    summary = wandb_summary(path)
    assert {name: summary[name] for name in ("train/win_rate", "train/kl", "eval/kl", "eval/length")} == {
        "train/win_rate": 0.1, "train/kl": 7.0, "eval/kl": 0.6, "eval/length": 12.0,
    }  # fmt: skip
    assert summary["eval/win_rate"] == {"last": 0.6, "max": 0.7}
    assert "win_rate" not in summary
    metrics = [record.metric for record in read_wandb(path) if record.HasField("metric")]
    assert {metric.glob_name for metric in metrics} >= {"train/*", "eval/*"}
    assert {metric.step_metric for metric in metrics if metric.name != "step"} == {"step"}


def test_what_the_overview_shows(bench: Bench, fake: list[FakeRun]) -> None:
    bench.start(WandbMode.offline)
    assert fake[0].rules == {
        "step": None, "train/*": None, "eval/*": None,
        "eval/win_rate": "last,max", "eval/accuracy": "last,max", "eval/loss": "last,min",
    }  # fmt: skip


VARIABLES = {
    "WANDB_PROJECT": "their-project",
    "WANDB_ENTITY": "their-team",
    "WANDB_NAME": "their-name",
    "WANDB_RUN_GROUP": "their-group",
    "WANDB_JOB_TYPE": "their-job",
    "WANDB_TAGS": "x,y",
    "WANDB_DIR": "elsewhere",
}


def test_defaults_and_what_outranks_them(bench: Bench, fake: list[FakeRun], monkeypatch: pytest.MonkeyPatch) -> None:
    keys = ("project", "entity", "name", "group", "job_type", "tags", "dir")

    def opened(**given: Any) -> list[Any]:
        wandb.teardown()  # which reads the variables again
        bench.start(WandbMode.offline, **given)
        return [fake[-1].arguments[key] for key in keys]

    own = str(bench.run.path)
    assert opened(tags=[]) == ["alignrun", None, "run", None, "train", ["ipo"], own]
    given: dict[str, Any] = {"project": "alignrun", "entity": "us", "name": "ours", "group": "g", "tags": ["t"]}
    expected = ["alignrun", "us", "ours", "g", "train", ["t", "ipo"], own]
    assert opened(**given) == expected
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    theirs = ["their-project", "their-team", "their-name", "their-group", "their-job", ["x", "y", "ipo"], "elsewhere"]
    assert opened(tags=[]) == theirs
    # What the user has said to us counts more, also where it is the default's value.
    assert opened(**given) == [*expected[:4], "their-job", ["t", "ipo"], "elsewhere"]


@pytest.mark.parametrize(
    ("sections", "job_type", "tags"),
    [
        (
            {"algo": {"name": "dpo"}, "model": {"name": "tiny"}, "data": {"name": "hub"}},
            "train",
            ["dpo", "tiny", "hub"],
        ),
        ({"algo": {"name": "best_response"}, "preference": {"name": "judge"}}, "exploit", ["best_response", "judge"]),
        ({"runs": ["a"], "data": None, "preference": {"name": "panel"}}, "eval", ["panel"]),
    ],
)
def test_the_kind_of_job(
    bench: Bench, fake: list[FakeRun], sections: dict[str, Any], job_type: str, tags: list[str]
) -> None:
    start_tracking(TrackerConfig(mode=WandbMode.offline), bench.run, sections, resume_step=None)
    assert (fake[0].arguments["job_type"], fake[0].arguments["tags"]) == (job_type, tags)


def test_a_run_of_a_sweep_keeps_its_name_when_it_is_resumed(
    bench: Bench, fake: list[FakeRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALIGNRUN_SWEPT", "algo.kl_tau,seed")
    overrides = ["experiment=smoke", "algo.kl_tau=0.1", "seed=2"]
    named = wandb_names(Path("sweeps/mine"), Path("sweeps/mine/3"), overrides)
    assert named == {"WANDB_RUN_GROUP": "mine", "WANDB_NAME": "algo.kl_tau=0.1 seed=2"}
    for name, value in named.items():
        monkeypatch.setenv(name, value)
    assert wandb_names(Path("other"), Path("other/3"), overrides) == {}
    bench.start(WandbMode.offline)
    for name in named:
        monkeypatch.delenv(name)
    wandb.teardown()
    bench.start(WandbMode.offline, resume_step=0)
    bench.start(WandbMode.offline, resume_step=0, group="explicit")
    assert [[run.arguments[key] for key in ("name", "group", "id")] for run in fake] == [
        ["algo.kl_tau=0.1 seed=2", "mine", None],
        ["algo.kl_tau=0.1 seed=2", "mine", "fake"],
        ["algo.kl_tau=0.1 seed=2", "explicit", "fake"],
    ]


def save_adapter(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text("{}")


def test_the_adapter_as_an_artifact(bench: Bench, fake: list[FakeRun]) -> None:
    def play(resume_step: int | None, rates: list[float], artifact: Artifact, exit_code: int = 0) -> None:
        tracking = bench.start(WandbMode.offline, resume_step, artifact=artifact)
        for step, rate in enumerate(rates, start=(resume_step or 0) + 1):
            tracking.log(step, {"eval/win_rate": rate})
            tracking.log_adapter(step, {"win_rate": rate}, save_adapter)
        tracking.finish({"win_rate": rates[-1]}, exit_code)

    save_adapter(bench.run.adapter)
    play(None, [0.5, 0.7, 0.6], Artifact.best)
    play(3, [0.65, 0.8], Artifact.best)
    play(5, [0.9], Artifact.never)
    play(6, [0.9], Artifact.end)
    play(7, [0.9], Artifact.end, exit_code=1)
    assert [[aliases for _, aliases, _ in run.artifacts] for run in fake] == [
        [["best", "step-1"], ["best", "step-2"]],
        [["best", "step-5"]],
        [],
        [["end"]],
        [],
    ]
    assert fake[0].artifacts[0][::2] == ("adapter-fake", ["adapter_config.json"])
    assert not bench.notices
    bench.start(WandbMode.disabled, artifact=Artifact.end)
    assert bench.notices == ["tracker.artifact=end: wandb is disabled, so no adapter is uploaded"]


class BrokenRun:
    """A wandb run that fails at whatever is asked of it."""

    id = "broken"
    url = "https://example.org/run"
    dir = "run/wandb/files"
    calls = 0

    def __getattr__(self, name: str) -> Any:
        self.calls += 1
        raise ConnectionError(f"{name}:\nthe service process died")


def test_wandb_that_breaks_is_left_out(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = BrokenRun()
    monkeypatch.setattr(wandb, "init", lambda **_: broken)
    tracking = bench.start(WandbMode.offline)
    for step in (1, 2, 3):
        tracking.log(step, {"loss": float(step)})
        tracking.log_samples(step, SAMPLES)
    tracking.finish({"loss": 3.0}, 0)
    assert [row["step"] for row in bench.rows()] == [1, 2, 3]
    assert len(bench.rows("samples")) == 6
    assert broken.calls == 1
    assert bench.notices == [
        "wandb failed and is disabled from here on, metrics.jsonl continues: define_metric: the service process died"
    ]


def test_wandb_that_breaks_at_the_end(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wandb, "init", lambda **_: BrokenRun())
    tracking = bench.start(WandbMode.offline)
    tracking.finish({"loss": 3.0}, 1)
    tracking.finish({"loss": 3.0}, 1)
    assert len(bench.notices) == 1


def test_wandb_that_cannot_start(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**arguments: Any) -> None:
        raise OSError("no such executable")

    monkeypatch.setattr(wandb, "init", fail)
    tracking = bench.start()
    tracking.log(1, {"loss": 1.0})
    assert len(bench.rows()) == 1
    assert bench.notices[-1] == "wandb could not start, only metrics.jsonl is written: no such executable"


@pytest.mark.skipif(shutil.which("ps") is None, reason="needs ps to find the process")
def test_a_killed_wandb_process_stops_nothing(bench: Bench) -> None:
    tracking = bench.start()
    tracking.log(1, {"loss": 1.0})
    listing = subprocess.run(["ps", "-o", "pid=,comm=", "--ppid", str(os.getpid())], capture_output=True, text=True)
    services = [int(line.split()[0]) for line in listing.stdout.splitlines() if "wandb" in line]
    assert services
    for pid in services:
        os.kill(pid, 9)
    for step in range(2, 50):
        tracking.log(step, {"loss": 1.0})
    tracking.log_samples(50, SAMPLES)
    tracking.finish({"loss": 1.0})
    assert len(bench.rows()) == 49
    assert len(bench.notices) == 2


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="needs /dev/full")
def test_a_full_disk_is_reported_at_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    tracking = bench.start(WandbMode.disabled)
    monkeypatch.setattr("alignrun.run.directory.open_regular", lambda *_: os.open("/dev/full", os.O_WRONLY))
    with pytest.raises(RunError, match=r"could not write .*/metrics.jsonl: No space left on device; free space"):
        tracking.log(1, {"loss": 1.0})


def test_wandb_is_imported_only_when_it_is_used() -> None:
    def import_afresh() -> None:
        for name in [name for name in sys.modules if name.partition(".")[0] in ("wandb", "alignrun")]:
            del sys.modules[name]
        importlib.import_module("alignrun.run.tracking")
        os._exit("wandb" in sys.modules)

    child = multiprocessing.get_context("fork").Process(target=import_afresh)
    child.start()
    child.join()
    assert child.exitcode == 0


def test_a_wandb_server_that_does_not_answer(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes connections and is silent: the run is recorded offline, and waits no longer than it says it does."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        began = time.monotonic()
        tracking = bench.start(WandbMode.online)
        for step in (1, 2):
            tracking.log(step, {"loss": 1.0 / step})
        tracking.finish({})
        assert time.monotonic() - began < 60
    assert len(bench.notices) == 1
    assert "could not go online" in bench.notices[0]
    assert [row["step"] for row in bench.rows()] == [1, 2]
    (path,) = bench.wandb_files()
    assert wandb_history(path) == {1: {"train/loss": 1.0}, 2: {"train/loss": 0.5}}


@pytest.mark.parametrize(("status", "body"), [(200, b"{}"), (401, b"{}"), (200, b"<html>")])
def test_a_wandb_server_that_knows_nobody(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], status: int, body: bytes
) -> None:
    """Such an answer opened a run, whose upload then crashed wandb's process."""

    class Answers(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        began = time.monotonic()
        tracking = bench.start(WandbMode.online)
        tracking.log(1, {"loss": 1.0})
        tracking.finish({})
        assert time.monotonic() - began < 30
        server.shutdown()
    (notice,) = bench.notices
    assert notice.startswith("wandb: could not go online (Failed to authenticate with http://127.0.0.1:")
    assert ", so the run is recorded offline; upload it later with `wandb sync" in notice
    (path,) = bench.wandb_files()
    assert wandb_history(path) == {1: {"train/loss": 1.0}}
    assert "panic" not in capfd.readouterr().err


@pytest.mark.skipif(shutil.which("ps") is None, reason="needs ps to find the process")
def test_a_killed_wandb_process_leaves_no_traceback_at_the_end(tmp_path: Path) -> None:
    program = """
import os, subprocess, sys
from pathlib import Path
from alignrun.config import TrackerConfig, WandbMode
from alignrun.run.directory import RunDirectory
from alignrun.run.tracking import start_tracking
tracking = start_tracking(TrackerConfig(mode=WandbMode.offline), RunDirectory(Path(sys.argv[1])), {}, resume_step=None)
listing = subprocess.run(["ps", "-o", "pid=,comm=", "--ppid", str(os.getpid())], capture_output=True, text=True)
(service,) = (int(line.split()[0]) for line in listing.stdout.splitlines() if "wandb" in line)
os.kill(service, 9)
for step in range(1, 50):
    tracking.log(step, {"loss": 1.0})
tracking.finish({})
"""
    (tmp_path / "run").mkdir()
    # With the process of another test named in the environment, it would not start one of its own.
    environment = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
    command = [sys.executable, "-c", program, tmp_path / "run"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    (line,) = [line for line in done.stderr.splitlines() if "recorded offline" not in line]
    assert line.startswith("wandb failed and is disabled from here on")


def test_a_wandb_process_that_does_not_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """wandb waits for it without a limit; one that hung held a run for good."""
    process = subprocess.Popen(["sleep", "60"])
    hanging = SimpleNamespace(_connection=SimpleNamespace(_proc=SimpleNamespace(_process=process)))
    monkeypatch.setattr("wandb.sdk.wandb_setup._singleton", hanging)
    monkeypatch.setattr("wandb.teardown", process.wait)
    monkeypatch.setattr(wandb_run, "PATIENCE", 0.1)
    started = time.monotonic()
    wandb_run._end_process()
    assert process.returncode == -signal.SIGKILL
    assert time.monotonic() - started < 30
