"""The judge against a real OpenAI-compatible server: `transformers serve`, where its dependencies are installed."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from published_models import random_causal
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.import_utils import is_serve_available

from alignrun.errors import RunError
from alignrun.preferences.judge.config import AnswersConfig, JudgeConfig
from alignrun.preferences.judge.judge import build

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.skipif(not is_serve_available(), reason="needs pip install transformers[serving]"),
]


def always(word: str, folder: Path) -> Path:
    """A language model that answers everything with one token."""
    random_causal("qwen3", folder)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    (token,) = tokenizer(word, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        for name, weight in model.named_parameters():  # nothing is added to the embedding, whatever was read
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.zero_()
        model.get_input_embeddings().weight.zero_()[:, 0] = 1
        model.get_output_embeddings().weight.zero_()[token, 0] = 1
        model.base_model.norm.weight.fill_(1)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The URL of a server, and the name of its model."""
    folder = always("1", tmp_path_factory.mktemp("served"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(folder)]
    options = ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    log = (folder / "log.txt").open("w+")
    with subprocess.Popen([*command, *options], stdout=log, stderr=log, env=os.environ | {"NO_PROXY": "*"}) as server:
        try:
            for _ in range(600):
                assert server.poll() is None, (folder / "log.txt").read_text()[-2000:]
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=5).close()
                    break
                except OSError:
                    time.sleep(0.2)
            yield f"http://127.0.0.1:{port}/v1", str(folder)
        finally:
            server.terminate()
    log.close()


def test_a_served_model_judges(served: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    url, model = served
    given = {"url": url, "model": model, "use_logprobs": False, "max_tokens": 1, "cache": False}
    judge = build(JudgeConfig(**given))
    said = judge.judge(["Which is longer?"] * 2, ["a", "bb"], ["ccc", "d"])
    assert said.orders is not None
    assert said.orders.tolist() == [[1.0, 0.0]] * 2  # it names the answer shown first
    assert said.probabilities.tolist() == [0.5] * 2
    assert judge.counts() == {"judge/asked": 4.0, "judge/cached": 0.0, "judge/unclear": 0.0}
    # Asked for log-probabilities it gives none, and the text counts.
    assert build(JudgeConfig(**given | {"use_logprobs": True}))(["p"], ["a"], ["b"]).tolist() == [0.5]
    with pytest.raises(RunError, match=r"no verdict, as '1'"):
        build(JudgeConfig(**given | {"answers": AnswersConfig("A", "B", None), "max_unclear": 0.0}))(
            ["p"], ["a"], ["b"]
        )
