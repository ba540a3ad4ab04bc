"""A server of a real tiny reward model that speaks as vLLM and SGLang do about it.

As vLLM does, it gives probabilities unless `use_activation` is false, scores of every token at /pooling, and
applies the chat template to messages itself; SGLang's /classify takes token ids and no messages.
"""

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from helpers import answer
from transformers import AutoModelForSequenceClassification, AutoTokenizer

MODEL = "tiny-reward"
Reply = tuple[int, Any]


class RewardLike(ThreadingHTTPServer):
    """Serves the sequence classifier in a folder; `interfere` may answer a request itself."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.model: Any = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.key: str | None = None
        self.asked: list[tuple[str, Any]] = []
        self.interfere: Callable[[str, Any], Any] = lambda path, body: None
        self.lock = threading.Lock()
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def stop(self) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, *_: Any) -> None:
        """Clients that have gone are no news."""

    @torch.no_grad()
    def answer(self, path: str, body: Any, key: str) -> Reply:
        if self.key is not None and key != f"Bearer {self.key}":
            return 401, {"error": "Unauthorized"}
        if body.get("model") != MODEL:
            return error(404, f"The model `{body.get('model')}` does not exist.")
        with self.lock:
            if path == "/classify" and "input_ids" in body:
                return 200, {"embedding": self.scores(body["input_ids"])[-1], "meta_info": {"id": "1"}}
            raw = body.get("use_activation") is False
            if path in ("/pooling", "/classify"):
                every = [self.activated(row, raw) for row in self.scores(self.tokens(body))]
                if path == "/pooling":
                    return 200, listing({"index": 0, "object": "pooling", "data": every})
                return 200, listing({"index": 0, "label": "LABEL_0", "probs": every[-1], "num_classes": len(every[-1])})
            if path in ("/score", "/v1/rerank"):
                pair = (body["text_1"], body["text_2"]) if path == "/score" else (body["query"], *body["documents"])
                ids = self.tokenizer(*pair)
                logits = self.model(**{name: torch.tensor([row]) for name, row in ids.items()}).logits[0]
                (score,) = self.activated(logits.tolist(), raw)
                if path == "/score":
                    return 200, listing({"index": 0, "object": "score", "score": score})
                document = {"text": pair[1], "multi_modal": None}
                return 200, {"results": [{"index": 0, "document": document, "relevance_score": score}]}
        return 404, {"detail": "Not Found"}

    def tokens(self, body: Any) -> list[int]:
        if "messages" not in body:
            ids: list[int] = body["input"]
            return ids
        text = self.tokenizer.apply_chat_template(body["messages"], tokenize=False)
        encoded: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return encoded

    def scores(self, ids: list[int]) -> list[list[float]]:
        """The head on every token."""
        hidden = self.model.base_model(input_ids=torch.tensor([ids])).last_hidden_state
        every: list[list[float]] = self.model.score(hidden)[0].tolist()
        return every

    @staticmethod
    def activated(scores: list[float], raw: bool) -> list[float]:
        values = torch.tensor(scores)
        done: list[float] = (values if raw else values.sigmoid() if len(scores) == 1 else values.softmax(0)).tolist()
        return done


class Handler(BaseHTTPRequestHandler):
    server: RewardLike
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server.asked.append((self.path, body))
        reply = server.interfere(self.path, body)
        if reply is None:
            reply = server.answer(self.path, body, self.headers.get("Authorization", ""))
        status, content = reply
        answer(self, status, {}, content)

    def log_message(self, *_: Any) -> None:
        """Quiet."""


def listing(item: dict[str, Any]) -> dict[str, Any]:
    return {"id": "x-1", "object": "list", "created": 1, "model": MODEL, "data": [item], "usage": {"prompt_tokens": 3}}


def error(status: int, message: str) -> Reply:
    return status, {"error": {"message": message, "type": "BadRequestError", "param": None, "code": status}}
