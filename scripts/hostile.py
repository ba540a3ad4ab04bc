"""Run every command on hostile runs, models, data, servers and folders.

    python scripts/hostile.py            # all of it, some minutes; --quick for a part of it

A run on the tiny model is made by another user. Its copies are then made hostile and opened by one whose environment
holds secrets. A command has held if it reached what is hostile, as its message, a file or the server's record shows;
if it ended in time, within its memory, with an expected exit code and at most one line of error, without a traceback
or an escape sequence; and if no file outside was changed, no foreign code ran, no forbidden server was contacted, and
the secrets were written nowhere. Where the harm can be done on purpose, a control does it, to show that the scenario
would notice. The exit code is 1 if anything did not hold.
"""

import argparse
import gzip
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.table import Table
from safetensors.torch import load_file, save_file

from alignrun import cli
from alignrun.launch.compose import compose, plain
from alignrun.models.sources import quiet_transformers
from alignrun.models.tiny import byte_tokenizer, random_llama
from alignrun.security.terminal import PlainConsole, guard
from alignrun.security.working_directory import distrust
from alignrun.training.checkpoint import load_checkpoint, save_checkpoint

SECRET = "canary0123456789abcdef0123456789abcdef00"
"""What the environment and the files outside hold."""
TOKENS = ("TOKEN", "OPENAI_API_KEY", "WANDB_API_KEY", "HF_TOKEN", "ALIGNRUN_ROLLOUT_API_KEY")
EVIL = "a\x1b]0;title\x07\x1b[2J\x9b31m\u202e\u200b[red]b[/red][/y]"
ACTIVE = set("\x1b\x07\x08\x9b\r\u202e\u200b")
SMALL = ("train.steps=2", "train.batch_size=2", "train.micro_batch_size=null", "generation.max_new_tokens=2")
SMOKE = ("experiment=smoke", *SMALL, "data.eval_size=2")
SECONDS = 60
"""Of CPU that a command may take; `PATIENCE` is by the clock, for one that hangs."""
PATIENCE = 300
GIGABYTES = 2.5
IMPORTED = (
    *("launch.train", "launch.export", "launch.listing", "tournament.command", "planning.plan", "top"),
    *("browse.table", "browse.diff", "chat.command", "completions.command"),
)
"""What commands import, done once for all of them."""


@dataclass(frozen=True)
class Command:
    """One command line, and how it may end."""

    arguments: tuple[str, ...]
    says: str
    """A pattern that what it prints must have, which shows that it reached what is hostile."""
    codes: tuple[int, ...] = (2,)
    contacts: str | None = None
    """What the server must be asked for, and nothing else, as a pattern; nothing where None."""
    leaves: tuple[str, str] | None = None
    """A file of the scenario's folder that it must write, and a text that must stand there."""
    control: bool = False
    """It does the harm on purpose, to show that this would be noticed: code of others runs, or a server is asked."""
    alone: bool = False
    """Started as a process of its own, which imports everything anew."""


@dataclass(frozen=True)
class Case:
    """The place of one scenario."""

    folder: Path
    own: Path
    """The run that the other user has made."""
    server: str

    @property
    def ran(self) -> Path:
        """What hostile code makes."""
        return self.folder / "ran"

    @property
    def outside(self) -> Path:
        """Files that are none of the run's."""
        return self.folder / "outside"

    def run(self, name: str = "run") -> Path:
        """A copy of the run."""
        copied = self.folder / name
        shutil.copytree(self.own, copied)
        return copied

    def edited(self, *overrides: str, **sections: Mapping[str, Any]) -> Path:
        """A copy of the run whose configuration has the sections that overrides select, and other values in some."""
        run = self.run()
        values = yaml.safe_load((run / "config.yaml").read_text())
        other = plain(compose([*SMOKE, *overrides]))
        for name, changes in sections.items():
            values[name] = {**other[name], **changes}
        (run / "config.yaml").write_text(yaml.safe_dump(values))
        return run

    def model(self) -> Path:
        """A small whole model."""
        folder = self.folder / "model"
        with quiet_transformers():
            random_llama(dict(compose(SMOKE).model.architecture), byte_tokenizer()).save_pretrained(folder)
            byte_tokenizer().save_pretrained(folder)
        return folder

    def train(self, *arguments: str, **how: Any) -> Command:
        """A new run."""
        return Command((*SMOKE, f"run.dir={self.folder / 'new'}", *arguments), **how)

    def control(self, run: Path, *arguments: str, **how: Any) -> Command:
        """The run resumed with --trust."""
        return Command(("resume", str(run), "train.steps=3", "--trust", *arguments), "", (1, 2), control=True, **how)

    def opened(self, run: Path, *verbs: str, **how: Any) -> Iterator[Command]:
        """Commands that open a run; by default all of them."""
        given = {
            "eval": (
                "eval",
                f"runs=[{run}]",
                "samples_per_prompt=1",
                f"run.dir={self.folder / 'cup'}",
            ),
            "resume": ("resume", str(run), "train.steps=3"),
            "export": ("export", str(run), "--to", str(self.folder / "out")),
            "exploit": ("exploit", str(run), "train.steps=1", f"run.dir={self.folder / 'response'}"),
            "top": ("top", str(run), "--once"),
            "diff": ("diff", str(run), str(run)),
            "chat": ("chat", str(run)),
            "generate": ("generate", str(run), f"out={self.folder / 'completions.jsonl'}", "format=pairs", "prompts=2"),
        }
        for verb in verbs or given:
            yield Command(given[verb], **how)


Scenario = Callable[[Case], Iterator[Command]]
SCENARIOS: dict[str, tuple[Scenario, bool]] = {}


def scenario(*, quick: bool) -> Callable[[Scenario], Scenario]:
    """Enter a scenario; the quick ones, which train little or nothing, run as a test."""

    def enter(play: Scenario) -> Scenario:
        SCENARIOS[play.__name__.replace("_", " ")] = play, quick
        return play

    return enter


def trap(case: Case) -> str:
    return f"open({str(case.ran)!r}, 'w').write('ran')\n"


# 1. What a stored configuration asks for.


@scenario(quick=True)
def a_function_of_the_run(case: Case) -> Iterator[Command]:
    (case.folder / "theirs.py").write_text(trap(case) + "def prefer(*_): ...\n")
    run = case.edited("preference=function", "preference.function=theirs:prefer", preference={})
    yield from case.opened(run, "eval", "resume", "exploit", says="import and run .*--trust")
    yield from case.opened(run, "generate", says="import and run .*--trust")
    yield from case.opened(run, "export", codes=(0,), says="adapter of step 2 written")
    yield from case.opened(run, "top", codes=(0,), says="nash_md on tiny")
    yield case.control(run)


@scenario(quick=True)
def remote_code_of_a_model(case: Case) -> Iterator[Command]:
    model = case.model()
    (model / "evil.py").write_text(trap(case))
    file = model / "config.json"
    auto = {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_type": "evil", "auto_map": auto}))
    yield case.train("model=path", f"model.path={model}", says="trust_remote_code")
    run = case.edited(model={"source": "hub", "path": str(model), "trust_remote_code": True})
    verbs = ("eval", "resume", "export", "exploit", "chat", "generate")
    yield from case.opened(run, *verbs, says="run code of the model .*--trust")


@scenario(quick=True)
def a_token_in_an_address(case: Case) -> Iterator[Command]:
    judge = {"url": f"{case.server}/${{oc.env:TOKEN}}", "key_variable": "TOKEN"}
    run = case.edited("preference=judge", "preference.model=m", "preference.url=http://localhost:1", preference=judge)
    says = r"send texts to .*\$\{oc\.env:TOKEN\}.*--trust"
    yield from case.opened(run, "eval", "resume", "exploit", says=says)
    yield case.control(run, contacts=r"/.*oc\.env:TOKEN.*/chat/completions")


@scenario(quick=False)
def a_token_in_a_name(case: Case) -> Iterator[Command]:
    text = "${oc.env:TOKEN}"
    run = case.edited(tracker={"name": text, "tags": [text]})
    yield from case.opened(run, "export", codes=(0,), says="adapter of step 2 written")
    yield from case.opened(run, "eval", codes=(0,), says="The equilibrium of the win matrix")
    yield from case.opened(run, "resume", codes=(0,), says="nash_md on tiny: 3 steps", leaves=("run/config.yaml", text))
    response = ("response/config.yaml", text)
    yield from case.opened(run, "exploit", codes=(0,), says="best_response on tiny: 1 step", leaves=response)
    yield from case.opened(run, "top", codes=(0,), says="step 3/3")


@scenario(quick=True)
def a_stored_rollout_server(case: Case) -> Iterator[Command]:
    engine = {"engine": "server", "server_url": case.server, "server_adapter_folder": str(case.outside)}
    run = case.edited(generation=engine)
    yield from case.opened(run, "resume", "exploit", says="send texts, with a key, to .*--trust")
    yield case.control(run, contacts="/v1/models")


@scenario(quick=True)
def a_stored_tracker_and_hub(case: Case) -> Iterator[Command]:
    run = case.edited(tracker={"mode": "online", "entity": "somebody"}, data={"source": "hub", "path": "some/set"})
    yield from case.opened(run, "resume", "exploit", says="from the hub .*wandb.*--trust")


@scenario(quick=True)
def code_in_yaml(case: Case) -> Iterator[Command]:
    run = case.run()
    with (run / "config.yaml").open("a") as file:
        file.write(f"evil: !!python/object/apply:os.system ['touch {case.ran}']\n")
    yield from case.opened(run, says="could not determine a constructor for the tag")


@scenario(quick=True)
def an_adapter_that_imports(case: Case) -> Iterator[Command]:
    (case.folder / "theirs.py").write_text(trap(case))
    folder = case.run() / "adapter"
    file = folder / "adapter_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"megatron_config": {"a": 1}, "megatron_core": "theirs"}))
    yield case.train("reference=adapter", f"reference.path={folder}", says="not a plain LoRA adapter")
    (folder / "alignrun.json").unlink()
    file.write_text(json.dumps(config | {"base_model_name_or_path": "some/model"}))
    moved = shutil.move(folder, case.folder / "loose")
    yield Command(("eval", f"runs=[{moved}]", f"run.dir={case.folder / 'cup'}"), says="load a model from elsewhere")


# 2. Links, FIFOs and devices.


@scenario(quick=True)
def links_out_of_a_run(case: Case) -> Iterator[Command]:
    for place in (".lock", "samples.jsonl", "curve.svg", "checkpoints", "signature.json", "adapter"):
        run = case.run(f"run-{place}")
        shutil.rmtree(run / place, ignore_errors=True)
        (run / place).unlink(missing_ok=True)
        (run / place).symlink_to(case.outside / ("secret.svg" if "." in place else ""))
        yield from case.opened(run, says=f"{re.escape(place)} is a link")
        yield Command(("runs", str(run)), f"damaged: .*{re.escape(place)} is a link", codes=(0,))


@scenario(quick=True)
def pipes_and_devices(case: Case) -> Iterator[Command]:
    for place in ("metrics.jsonl", "samples.jsonl", ".lock", "checkpoints/step-2/state.json"):
        run = case.run(f"run-{Path(place).name}")
        (run / place).unlink(missing_ok=True)
        os.mkfifo(run / place)
        yield from case.opened(run, says=f"{re.escape(place)} is neither a file nor a folder")
    run = case.run("zero")
    (run / "config.yaml").unlink()
    (run / "config.yaml").symlink_to("/dev/zero")
    yield from case.opened(run, says=r"config\.yaml is a link")


@scenario(quick=True)
def a_new_run_among_links(case: Case) -> Iterator[Command]:
    (case.folder / "new").mkdir()
    (case.folder / "new" / ".lock").symlink_to(case.outside / "secret.svg")
    yield case.train(says=r"\.lock is a link")


# 3. The current folder.


@scenario(quick=False)
def modules_and_git_hooks_in_the_folder(case: Case) -> Iterator[Command]:
    for name in ("matplotlib", "wandb", "torch", "rich", "random", "scipy", "jinja2", "datasets", "sitecustomize"):
        (case.folder / f"{name}.py").write_text(trap(case))
    hook = case.folder / "hook"
    hook.write_text(f"#!/bin/sh\ntouch {case.ran}\n")
    hook.chmod(0o755)
    git = ["git", "-C", str(case.folder)]
    subprocess.run([*git, "init", "-q"], check=True)
    for key in ("core.fsmonitor", "core.pager", "core.sshCommand", "diff.external"):
        subprocess.run([*git, "config", key, str(hook)], check=True)
    (case.folder / ".git" / "hooks" / "post-index-change").symlink_to(hook)
    for harm in ([sys.executable, "-c", "import random"], [*git, "status"]):  # each would be noticed
        subprocess.run(harm, cwd=case.folder, capture_output=True, check=False)
        assert case.ran.exists(), harm
        case.ran.unlink()
    (case.folder / "matplotlibrc").write_text("backend: module://theirs\n")
    tracker = ("tracker=wandb", "tracker.mode=offline")
    yield case.train(*tracker, says=r"wandb +.*/offline-run", codes=(0,), alone=True)


# 4. Servers.


UNBOUNDED = {
    "endless": r"answered more than 1(\.\d+)? MB",
    "bomb": r"answered more than 1(\.\d+)? MB",
    "slow": "no answer within 3 seconds",
    "evil": r"answered 400: a␛\]0;title",
}
"""What is said of the answers to each path."""


@scenario(quick=False)
def judges_without_bounds(case: Case) -> Iterator[Command]:
    for path, says in (UNBOUNDED | {"impossible": "impossible log-probabilities", "redirect": "answered 307"}).items():
        yield case.train(
            "preference=judge",
            "preference.model=m",
            f"preference.url={case.server}/{path}",
            "preference.timeout_seconds=3",
            "preference.retries=0",
            "preference.max_answer_mb=1",
            "preference.cache=false",
            says=says,
            codes=(1,),
            contacts=f"/{path}/chat/completions",
        )


@scenario(quick=False)
def rollout_servers_without_bounds(case: Case) -> Iterator[Command]:
    later = {f"{path}-later": f"completions {says}" for path, says in UNBOUNDED.items()}
    (case.folder / "adapters").mkdir()
    later["slow-later"] = "completions failed 1 times .no answer within 3 seconds"
    for path, says in (UNBOUNDED | later).items():
        yield case.train(
            "algo=online_dpo",
            "generation.engine=server",
            f"generation.server_url={case.server}/{path}",
            f"generation.server_adapter_folder={case.folder / 'adapters'}",
            "generation.server_timeout_seconds=3",
            "generation.server_retries=0",
            says=says,
            codes=(1,),
            contacts=f"/{path}/v1/.*",
        )


# 5. Data.


@scenario(quick=True)
def rows_without_bounds(case: Case) -> Iterator[Command]:
    deep = "[" * 100_000
    contents = {
        "huge.jsonl": (json.dumps({"prompt": "x" * 50_000_000}).encode(), "larger than data.max_row_mb"),
        "twice.jsonl": (b'{"prompt": "a", "prompt": "b"}\n' * 40, "has the key 'prompt' twice"),
        "deep.jsonl": (f'{{"prompt": {deep}'.encode(), r"is not JSON \(maximum recursion depth"),
        "bomb.jsonl.gz": (gzip.compress(b" " * 100_000_000, 1), "unpacks to more than 100 times its size"),
        "latin.jsonl": (b'{"prompt": "\xff\xfe"}\n' * 40, "is not UTF-8"),
        "number.jsonl": (b'{"prompt": ' + b"1" * 100_000 + b"}\n", r"is not JSON \(Exceeds the limit"),
    }
    for name, (content, says) in contents.items():
        (case.folder / name).write_bytes(content)
        yield case.train("data=jsonl", f"data.path={case.folder / name}", says=f"{re.escape(name)}.* {says}")


@scenario(quick=False)
def sequences_in_texts(case: Case) -> Iterator[Command]:
    rows = [json.dumps({"prompt": f"{EVIL} {row}"}) for row in range(40)]
    (case.folder / "evil.jsonl").write_text("\n".join(rows))
    data = ("data=jsonl", f"data.path={case.folder / 'evil.jsonl'}", f"data.name='{EVIL}'")
    yield case.train(*data, codes=(0,), says=r"data: a␛\]0;title", leaves=("new/samples.jsonl", "]0;title"))
    yield from case.opened(case.folder / "new", "top", codes=(0,), says=r"prompt +a␛\]0;title")
    report = ("cup/report.html", "␛]0;title")
    yield from case.opened(case.folder / "new", "eval", codes=(0,), says="The equilibrium", leaves=report)


# 6. The terminal.


@scenario(quick=True)
def sequences_in_names(case: Case) -> Iterator[Command]:
    says = "]0;title"
    for words in (("ls",), ("plan",), ("resume",), ("export",), ("exploit",), ("top",), ("runs",), ("chat",), ()):
        yield Command((*words, EVIL), re.escape(says))
    yield Command(("diff", EVIL, "a"), re.escape(says))
    yield Command(("eval", f"runs=['{EVIL}']"), re.escape(says))
    yield Command(("-m", "seed=1,2", f"algo='{EVIL}'"), re.escape(says))
    yield Command(("config", *SMOKE, f"run.dir='{EVIL}'"), re.escape(says), codes=(0,))
    run = case.run(f"run{EVIL.replace('/', '')}")
    yield from case.opened(run, "top", codes=(0,), says=r"^runa␛\]0;title")
    yield Command(("runs", str(case.folder)), r"runa␛\]0;title", codes=(0,))
    (run / "metrics.jsonl").write_text(json.dumps({"step": 1, EVIL: 1.0}) + "\n")
    (run / "samples.jsonl").write_text(json.dumps({"step": 1, "prompt": EVIL, "first": EVIL, "second": EVIL}) + "\n")
    yield from case.opened(run, "top", codes=(0,), says=r"\na␛\]0;title(.|\n)*\npolicy +a␛\]0;title")


# 7. Damaged folders.


@scenario(quick=False)
def damaged_files(case: Case) -> Iterator[Command]:
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))
    damages = {
        "config.yaml": (bomb, "[" * 100_000, "a: " + "1" * 10_000, "\x00", "- 1"),
        "overrides.yaml": (bomb, "a: {"),
        "summary.json": ("[]", '{"step": 1e400}', "[" * 100_000, '{"step": -1}'),
        "metrics.jsonl": ('{"step": [}\n{"step": 1}\n', '{"step": ' + "1" * 10_000 + "}\n{}\n"),
        "checkpoints/step-2/state.json": ("[]",),
        "checkpoints/step-2/manifest.json": ('{"format": 1, "step": 2, "files": {"../../config.yaml": 1}}',),
        "pins.json": ("[1]",),
    }
    for name, contents in damages.items():
        for number, content in enumerate(contents):
            run = case.run(f"{Path(name).name}-{number}")
            (run / name).write_text(content)
            first = "export" if name.startswith(("config", "checkpoints")) else "resume"
            says = "every checkpoint in .* is damaged" if name.startswith("checkpoints") else re.escape(name)
            yield from case.opened(run, first, says=says)
            if name == "config.yaml":
                yield from case.opened(run, "top", says=says)
            else:
                yield from case.opened(run, "top", codes=(0,), says="nash_md on tiny")


@scenario(quick=False)
def more_metrics_than_can_be_shown(case: Case) -> Iterator[Command]:
    run = case.run()
    names = {f"m{number}": 0.5 for number in range(300_000)}
    (run / "metrics.jsonl").write_text(json.dumps({"step": 1} | names) + "\n")
    yield from case.opened(run, "top", codes=(0,), says="m499 ")


# 8. Weights.


@scenario(quick=False)
def weights_that_are_no_numbers(case: Case) -> Iterator[Command]:
    changes: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "nan": lambda weight: weight * float("nan"),
        "whole": lambda weight: weight.mul(100).to(torch.int64),
        "truth": lambda weight: weight > 0,
    }
    model = case.model()
    whole = load_file(model / "model.safetensors")
    says = "is not finite|not real numbers"
    for name, change in changes.items():
        run = case.run(f"run-{name}")
        file = run / "adapter" / "adapter_model.safetensors"
        save_file({key: change(weight) for key, weight in load_file(file).items()}, file)
        yield case.train("reference=adapter", f"reference.path={run}", says=says)
        yield from case.opened(run, "exploit", says=says)
        saved = load_checkpoint(run / "checkpoints" / "step-2")
        tensors = saved.tensors | {"weights": {key: change(value) for key, value in saved.tensors["weights"].items()}}
        save_checkpoint(run / "checkpoints", 2, tensors, saved.state, keep=2)
        yield from case.opened(run, "export", "resume", "eval", says="is not finite|where the model has")
        changed = {key: change(weight) if "q_proj" in key else weight for key, weight in whole.items()}
        save_file(changed, model / "model.safetensors", {"format": "pt"})
        yield case.train("model=path", f"model.path={model}", "model.chat_template=null", says=says)


BOMB = gzip.compress(b" " * 50_000_000, 1)


class Server(BaseHTTPRequestHandler):
    """Answers each path in its own bad way, and notes who has asked."""

    protocol_version = "HTTP/1.0"
    contacts = Path()

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with self.contacts.open("a") as file:
            file.write(json.dumps([self.path, str(self.headers), body.decode(errors="replace")]) + "\n")
        try:
            self._answer(self.path.split("/")[1])
        except OSError:
            return  # the other side has had enough

    do_POST = do_GET

    def _answer(self, kind: str) -> None:
        body = b"{}"
        headers = {"Content-Type": "application/json"}
        if kind.endswith("-later"):  # it is a rollout server until it is asked for completions
            asks_for = self.path.rpartition("/")[2]
            kind = kind.removesuffix("-later") if asks_for == "completions" else "good"
            body = b'{"data": [{"id": "base"}]}'
        if kind == "bomb":
            headers["Content-Encoding"] = "gzip"
            body = BOMB
        elif kind == "impossible":
            likely = [{"token": token, "logprob": 5.0, "bytes": None} for token in ("A", "A", "B", "1", "2")]
            content = [likely[0] | {"top_logprobs": likely}]
            choice = {"index": 0, "message": {"content": "A"}, "logprobs": {"content": content}}
            body = json.dumps({"choices": [choice]}).encode()
        elif kind == "evil":
            body = json.dumps({"error": {"message": EVIL}}, ensure_ascii=False).encode()
        code = {"redirect": 307, "evil": 400}.get(kind, 200)
        self.send_response(code)
        if kind == "redirect":
            headers["Location"] = "/stolen"
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if kind in ("endless", "slow"):
            self.wfile.write(b'{"a": "')
            while True:
                self.wfile.write(b"x" * (1 if kind == "slow" else 1 << 16))
                time.sleep(0.2 if kind == "slow" else 0)
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Nothing: the contacts are noted in a file."""


def serve(contacts: Path) -> tuple[str, int]:
    """The address of the server, and its process."""
    Server.contacts = contacts
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    pid = os.fork()
    if not pid:
        server.serve_forever()
    server.server_close()
    return f"http://127.0.0.1:{server.server_port}", pid


@dataclass
class Ended:
    """How a command came to its end."""

    code: int
    out: str
    error: str
    seconds: float
    cpu: float
    gigabytes: float
    problems: list[str] = field(default_factory=list)


def start(command: Command, folder: Path, out: Path, error: Path) -> int:
    """The process of a command, in that folder; its pid."""
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        os.chdir(folder)
        for number, file in ((1, out), (2, error)):
            os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        if command.alone:
            os.execv(sys.executable, [sys.executable, "-m", "alignrun", *command.arguments])
        distrust()
        guard()
        code = cli.main(command.arguments)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def ended(command: Command, folder: Path, logs: Path) -> Ended:
    """Play a command to its end, or to the end of patience."""
    began = time.monotonic()
    pid = start(command, folder, logs / "out", logs / "error")
    done, status, used = 0, 0, None
    while not done:
        done, status, used = os.wait4(pid, os.WNOHANG)
        if not done and time.monotonic() - began > PATIENCE:
            os.kill(pid, signal.SIGKILL)
            done, status, used = os.wait4(pid, 0)
        time.sleep(0.02)
    out, error = ((logs / name).read_text(errors="replace") for name in ("out", "error"))
    assert used is not None
    memory, cpu = used.ru_maxrss / (1 << 20), used.ru_utime + used.ru_stime
    return Ended(os.waitstatus_to_exitcode(status), out, error, time.monotonic() - began, cpu, memory)


def snapshot(folder: Path) -> dict[str, bytes]:
    """All files of a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink()
    }


def judge(command: Command, case: Case, found: Ended, before: Mapping[str, bytes], contacts: Path) -> None:
    """Note what did not hold."""
    problems, said = found.problems, found.out + found.error
    asked = [json.loads(line) for line in contacts.read_text().splitlines()]
    if command.contacts and not asked:
        problems.append("not reached: the server was not asked")
    if command.control and not command.contacts:
        if not case.ran.exists():
            problems.append("not reached: what is hostile did no harm where it may")
        case.ran.unlink(missing_ok=True)
    if not re.search(command.says, said):
        problems.append(f"not reached: does not say {command.says}")
    if command.leaves:
        file, text = case.folder / command.leaves[0], command.leaves[1]
        if not file.is_file() or text not in file.read_text():
            problems.append(f"not reached: {text} does not stand in {command.leaves[0]}")
    lines = [line for line in found.error.splitlines() if not line.startswith("checkpoint ")]
    if found.code not in command.codes:
        problems.append(f"exit code {found.code}, not {' or '.join(map(str, command.codes))}")
    if found.code and not (lines and lines[-1].startswith("alignrun: error: ")):
        problems.append("no line of error")
    if len(lines) > 1 or "Traceback" in said:
        problems.append(f"{len(lines)} lines of error")
    if ACTIVE & set(said):
        problems.append("characters that a terminal obeys")
    if case.ran.exists():
        problems.append("code of others ran")
    if snapshot(case.outside) != before:
        problems.append("files outside were changed")
    if strange := [path for path, *_ in asked if not (command.contacts and re.fullmatch(command.contacts, path))]:
        problems.append(f"contacted {strange[0]}")
    own = {path: content for path, content in snapshot(case.folder).items() if not path.startswith("outside/")}
    secrets = [path for path, content in own.items() if SECRET.encode() in content]
    if SECRET in said or secrets or any(SECRET in "".join(request) for request in asked if not command.contacts):
        problems.append(f"the secret stands in {secrets[0] if secrets else 'what was said or sent'}")
    if found.cpu > SECONDS or found.seconds > PATIENCE:
        problems.append(f"took {found.cpu:.0f} s of CPU, {found.seconds:.0f} s by the clock")
    if found.gigabytes > GIGABYTES:
        problems.append(f"took {found.gigabytes:.1f} GB")


def main() -> int:
    """Play all scenarios, or the quick ones, or those whose names hold a word; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    measured = "measured on two cores: 101 commands in 47 s of CPU; each other scenario alone took 22 to 37 s"
    parser.add_argument("--quick", action="store_true", help=f"what needs little training ({measured})")
    parser.add_argument("--only", default="", help="scenarios whose names hold this")
    given = parser.parse_args()
    chosen = {
        name: play for name, (play, quick) in SCENARIOS.items() if given.only in name and (quick or not given.quick)
    }
    console = PlainConsole(width=None if sys.stdout.isatty() else 200)
    with tempfile.TemporaryDirectory(prefix="alignrun-hostile-") as name:
        work = Path(name)
        environment = dict.fromkeys(TOKENS, SECRET)
        environment |= {"HOME": f"{work}/home", "ALIGNRUN_CACHE": f"{work}/cache", "WANDB_MODE": "offline"}
        environment |= {"HF_HUB_OFFLINE": "1", "WANDB_SILENT": "true", "ALIGNRUN_CONFIG": f"{work}/other"}
        os.environ.update(environment)
        contacts = work / "contacts"
        contacts.touch()
        address, server = serve(contacts)
        try:
            held = play_all(chosen, work, address, contacts, console)
        finally:
            os.kill(server, signal.SIGKILL)
            os.waitpid(server, 0)
    return 0 if held else 1


def play_all(chosen: Mapping[str, Scenario], work: Path, address: str, contacts: Path, console: PlainConsole) -> bool:
    """Whether all that was played held; a table says what did."""
    for module in IMPORTED:
        importlib.import_module(f"alignrun.{module}")
    torch.set_num_threads(1)  # no thread pool that forked processes would miss
    own = work / "own"
    made = ended(Command((*SMOKE, f"run.dir={own}"), "", codes=(0,)), work, work)
    if made.code:
        console.print(f"the run to be made hostile could not be made: {made.error}")
        return False
    os.environ["ALIGNRUN_CONFIG"] = f"{work}/mine"
    table = Table("scenario", "command", "code", "seconds", "message", "held")
    total, failed, cpu = 0, 0, made.cpu
    for number, (name, play) in enumerate(chosen.items()):
        case = Case(work / f"case-{number}", own, address)
        case.outside.mkdir(parents=True)
        for file in ("secret.svg", "secret.txt"):
            (case.outside / file).write_text(f"<svg>{SECRET}</svg>")
        shutil.copytree(own / "checkpoints" / "step-2", case.outside / "step-9")
        before, shown = snapshot(case.outside), name
        for command in play(case):
            contacts.write_text("")
            found = ended(command, case.folder, work)
            judge(command, case, found, before, contacts)
            total, failed, cpu = total + 1, failed + bool(found.problems), cpu + found.cpu
            line = (found.error.strip().splitlines() or [""])[-1].removeprefix("alignrun: error: ")
            line = line.replace(f"{case.folder}/", "")
            verdict = "; ".join(found.problems) or "yes"
            if found.problems:
                console.print(f"{name}: {command.arguments}: {verdict}\n{found.error[-2000:]}")
            said = (
                " ".join(command.arguments).replace(f"{case.folder}/", "").replace(" ".join(SMOKE), "experiment=smoke")
            )
            table.add_row(shown, said[:60], str(found.code), f"{found.seconds:.1f}", line[:110], verdict)
            shown = ""
            for left in ("new", "cup", "response", "out"):
                if command.codes != (0,):
                    shutil.rmtree(case.folder / left, ignore_errors=True)
        shutil.rmtree(case.folder)
    console.print(table)
    cpu += time.process_time()
    verdict = f"{failed} did not hold" if failed else "all held"
    console.print(f"{len(chosen)} scenarios, {total} commands, {cpu:.0f} s of CPU: {verdict}")
    return not failed


if __name__ == "__main__":
    sys.exit(main())
