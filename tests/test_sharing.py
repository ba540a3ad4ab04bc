"""What an export says about itself, and its upload to a server that answers as the hub does."""

import base64
import json
import logging
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml
from transformers import AutoModelForCausalLM

from alignrun import cli
from alignrun.config import ModelConfig, ModelSource
from alignrun.errors import RunError
from alignrun.launch import sharing
from alignrun.models import sources
from alignrun.models.tiny import byte_tokenizer, random_llama

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Knows one token, makes repositories, and keeps the files of commits. Follows the hub's HTTP API of models."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.repositories: dict[str, dict[str, Any]] = {}
        self.files: dict[str, bytes] = {}
        self.broken = False

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answers(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        if self.headers.get("Authorization") != "Bearer hf_right":
            return self.answer({"error": "Invalid user token."}, 401)
        return self.answer({"name": "me", "type": "user", "auth": {"accessToken": {"role": "write"}}})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Authorization") != "Bearer hf_right":
            return self.answer({"error": "Invalid user token."}, 401)
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            self.server.repositories[f"{asked.get('organization', 'me')}/{asked['name']}"] = asked
            return self.answer({"url": f"{self.server.address}/me/{asked['name']}", "name": asked["name"]})
        if "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(body)["files"]]
            return self.answer({"files": [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]})
        if "/commit/" in self.path:
            if self.server.broken:
                return self.answer({"error": "no space"}, 507)
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    self.server.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            return self.answer({"commitUrl": f"{self.server.address}/me/x/commit/{COMMIT}", "commitOid": COMMIT})
        return self.answer({})

    def answer(self, value: Any, code: int = 200) -> None:
        content = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharing") / "run"
    assert cli.main(["experiment=smoke", "train.steps=1", f"run.dir={folder}"]) == 0
    return folder


@pytest.fixture
def export(
    run: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """The command with the stand-in as its hub: exit code, standard output and errors."""
    # Other tests leave handlers of the root logger behind, whose streams are closed.
    monkeypatch.setattr(logging.root.manager, "disable", logging.CRITICAL)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.address)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(run.parent / "no-token"))

    def exported(*arguments: str, token: str | None = "hf_right") -> tuple[int, str, str]:
        if token is None:
            monkeypatch.delenv("HF_TOKEN", raising=False)
        else:
            monkeypatch.setenv("HF_TOKEN", token)
        capsys.readouterr()
        return (cli.main(["export", str(run), *arguments]), *capsys.readouterr())

    return exported


def test_an_upload_is_the_exported_folder(export: Callable[..., Any], hub: Hub, tmp_path: Path) -> None:
    code, out, error = export("--to", str(tmp_path / "out"), "--push", "me/nash")
    assert code == 0, error
    assert "uploaded to" in out
    assert hub.repositories["me/nash"]["visibility"] == "private"
    written = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    assert {name: hub.files[name] for name in written} == written
    assert {"README.md", "adapter_model.safetensors", "adapter_config.json"} <= set(written)


def test_what_cannot_be_uploaded_is_refused_in_one_line(export: Callable[..., Any], hub: Hub, tmp_path: Path) -> None:
    for repository, token, said in (
        ("me/nash", None, "nobody is logged in to the hub: log in with `hf auth login`"),
        ("me/nash", "hf_wrong", "the hub refuses your token"),
        ("nash", "hf_right", "names no owner: write --push OWNER/NAME"),
    ):
        code, _, error = export("--to", str(tmp_path / "out"), "--push", repository, token=token)
        assert (code, error.count("\n")) == (2, 1), error
        assert said in error
        assert not (tmp_path / "out").exists(), "nothing is exported before it is known who asks"
    hub.broken = True
    code, _, error = export("--to", str(tmp_path / "out"), "--push", "me/nash")
    assert (code, error.count("\n")) == (1, 1), error
    assert f"the export is complete in {tmp_path / 'out'}" in error


def test_a_hub_out_of_reach_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Away:
        def whoami(self) -> None:
            httpx2.get("http://127.0.0.1:9")  # a port at which nothing listens

    monkeypatch.setattr(sharing, "_api", Away)
    with pytest.raises(RunError, match=r"^--push me/nash: the hub cannot be reached \(.*refused\)$"):
        sharing.check_push("me/nash")


def test_public_without_an_upload_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["export", str(run), "--public"]) == 2
    assert "--public is for an upload: name it with --push OWNER/NAME" in capsys.readouterr().err


def test_the_card_holds_the_results_of_its_step_and_the_command(run: Path, tmp_path: Path) -> None:
    assert cli.main(["export", str(run), "--to", str(tmp_path / "out")]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    results = yaml.safe_load(card.partition("## Results")[2].partition("```yaml\n")[2].partition("```")[0])
    summary = json.loads((run / "summary.json").read_text())
    assert results == pytest.approx(summary, rel=1e-5)
    assert "alignrun experiment=smoke train.steps=1\n" in card
    assert str(run) not in card
    (run / "summary.json").write_text(json.dumps(summary | {"step": 7}))
    try:
        assert cli.main(["export", str(run), "--to", str(tmp_path / "other")]) == 0
    finally:
        (run / "summary.json").write_text(json.dumps(summary))
    assert "## Results" not in (tmp_path / "other" / "README.md").read_text(), "the evaluation was of another step"


def test_an_adapter_names_the_commit_of_its_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a cache as the hub's library fills it, in which `main` is a commit."""
    repository = tmp_path / "models--org--name"
    snapshot = repository / "snapshots" / COMMIT
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    tokenizer = byte_tokenizer()
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    random_llama(sizes, tokenizer).save_pretrained(snapshot)
    tokenizer.save_pretrained(snapshot)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert AutoModelForCausalLM.from_pretrained("org/name", cache_dir=tmp_path, local_files_only=True)
    config = ModelConfig(name="path", source=ModelSource.hub, path="org/name")
    assert sources.base_revision(config) == COMMIT
    assert sources.base_revision(ModelConfig(name="path", source=ModelSource.hub, path=str(snapshot))) is None
