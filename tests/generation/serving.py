"""Servers with the protocols of vLLM and SGLang around a real tiny model and the PEFT adapters that they load.

They do what those do, the traps included: what a request leaves out comes from the base's generation_config.json, the
model has end tokens of its own, stream k of a prompt is drawn with seed + k, and what was read under an adapter's name
is used again for whatever is loaded under that name later. SGLang gives all samples of a request one seed, and forgets
about `stop_token_ids` where it ignores its own end tokens.
"""

import json
import threading
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from helpers import answer
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

BASE = "tiny-base"
Reply = tuple[int, Any]


class VllmLike(ThreadingHTTPServer):
    """Serves `model`; `interfere` may answer a request itself, or change an answer before it is sent."""

    owner, stopped_at, hottest = "vllm", "stop_reason", 2.0
    daemon_threads = False  # a thread that computes while the interpreter ends would take it down
    request_queue_size = 256

    def __init__(self, model: PreTrainedModel, defaults: dict[str, Any] | None = None, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.model: PreTrainedModel | PeftModel = model
        self.defaults = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0} | (defaults or {})
        self.key: str | None = None
        self.runtime_lora = True
        self.max_model_len = 1024
        self.max_lora_rank = 512
        self.processed = True
        """Whether log-probabilities are those of the distribution drawn from, or of temperature 1 and no truncation."""
        self.numerics: Callable[[Tensor], Tensor] = lambda logits: logits
        """How its logits [V] differ from the trainer's."""
        self.end_of_length_first = False
        self.loras: dict[str, str] = {}
        self.read: dict[tuple[str, tuple[int, ...]], Tensor] = {}
        self.interfere: Callable[[str, Any], Reply | None] = lambda path, body: None
        self.alter: Callable[[dict[str, Any]], Any] = lambda answer: answer
        self.asked: list[tuple[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.in_flight = self.peak = 0
        self.counting, self.computing = threading.Lock(), threading.Lock()
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def bodies(self, path: str) -> list[Any]:
        return [body for asked, body in self.asked if asked == path]

    def stop(self) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, *_: Any) -> None:
        """Clients that have gone are no news."""

    def answer(self, path: str, body: Any, key: str) -> Reply:
        if self.key is not None and key != f"Bearer {self.key}":
            return 401, {"error": "Unauthorized"}
        if path == "/v1/models":
            cards = [card(BASE), *(card(name, BASE) for name in self.loras)]
            return 200, {"object": "list", "data": [one | {"owned_by": self.owner} for one in cards]}
        if path == "/v1/load_lora_adapter" and self.runtime_lora:
            return self.load(body["lora_name"], body["lora_path"])
        if path == "/v1/unload_lora_adapter" and self.runtime_lora:
            if self.loras.pop(body["lora_name"], None) is None:
                return error(404, f"The lora adapter '{body['lora_name']}' cannot be found.")
            with self.computing, warnings.catch_warnings(action="ignore"):  # it may be the active one
                self.model.delete_adapter(body["lora_name"])
            return 200, f"Success: LoRA adapter '{body['lora_name']}' removed successfully."
        if path == "/v1/completions":
            return self.complete(body)
        return 404, {"detail": "Not Found"}

    def load(self, name: str, path: str) -> Reply:
        if name in self.loras:
            return error(400, f"The lora adapter '{name}' has already been loaded. If you want to load the adapter …")
        if not (Path(path) / "adapter_config.json").is_file():
            return error(404, f"Loading lora {name} failed: No adapter found for {path}")
        rank = json.loads((Path(path) / "adapter_config.json").read_text())["r"]
        if rank > self.max_lora_rank:
            return error(500, f"LoRA rank {rank} is greater than max_lora_rank {self.max_lora_rank}.")
        with self.computing:
            if isinstance(self.model, PeftModel):
                self.model.load_adapter(path, adapter_name=name)
            else:
                self.model = PeftModel.from_pretrained(self.model, path, adapter_name=name)
            self.model.eval()
        self.loras[name] = path
        return 200, f"Success: LoRA adapter '{name}' added successfully."

    def complete(self, body: dict[str, Any]) -> Reply:
        if body["model"] != BASE and body["model"] not in self.loras:
            return error(404, f"The model `{body['model']}` does not exist.")
        if not 0 <= body["temperature"] <= self.hottest:
            return error(400, f"temperature must be in [0, 2], got {body['temperature']}.")
        prompt = body["prompt"]
        if len(prompt) >= self.max_model_len:
            return error(400, f"This model's maximum context length is {self.max_model_len} tokens.")
        with self.computing, torch.no_grad(), self.using(body["model"]):
            drawn = [self.draw(body, stream) for stream in range(body.get("n", 1))]
        with_ids = body.get("return_token_ids")
        choices = [
            {
                "index": index,
                "text": "",
                "logprobs": {"token_logprobs": log_probs} if body.get("logprobs") is not None else None,
                "finish_reason": reason,
                self.stopped_at: stop,
                "token_ids": tokens if with_ids else None,
                "prompt_token_ids": prompt if with_ids else None,
            }
            for index, (tokens, log_probs, reason, stop) in enumerate(drawn)
        ]
        return 200, {"id": "cmpl-1", "object": "text_completion", "model": body["model"], "choices": choices}

    @contextmanager
    def using(self, name: str) -> Any:
        if name == BASE and isinstance(self.model, PeftModel):
            with self.model.disable_adapter():
                yield
        else:
            if name != BASE:
                self.model.set_adapter(name)
            yield

    def draw(self, body: dict[str, Any], stream: int) -> tuple[list[int], list[float], str, int | None]:
        """One completion, with the token that ended it, as `check_stop` of vLLM's scheduler decides."""
        generator = torch.Generator().manual_seed(body["seed"] + self.seed_of(stream))
        eos, stops = self.ends(body)
        tokens: list[int] = []
        log_probs: list[float] = []
        while True:
            token, log_prob = self.next_token(body, tokens, generator)
            tokens.append(token)
            log_probs.append(log_prob)
            full = len(tokens) >= body["max_tokens"] or len(body["prompt"]) + len(tokens) >= self.max_model_len
            if full and self.end_of_length_first:  # up to vLLM 0.10
                return tokens, log_probs, "length", None
            if token == eos:
                return tokens, log_probs, "stop", self.stopped_by_its_own(token)
            if token in stops:
                return tokens, log_probs, "stop", token
            if full:
                return tokens, log_probs, "length", None

    def seed_of(self, stream: int) -> int:
        return stream

    def ends(self, body: dict[str, Any]) -> tuple[int | None, set[int]]:
        """Its own end token, and those of the request."""
        own = None if body.get("ignore_eos") else self.model.generation_config.eos_token_id
        return own, set(body.get("stop_token_ids", []))

    def stopped_by_its_own(self, token: int) -> int | None:
        return None

    def next_token(self, body: dict[str, Any], tokens: list[int], generator: torch.Generator) -> tuple[int, float]:
        """A token and its log-probability."""

        def option(name: str) -> float:
            return body.get(name, self.defaults[name])

        text = [*body["prompt"], *tokens]
        place = (body["model"], tuple(text))
        if place not in self.read:
            self.read[place] = self.numerics(self.model(input_ids=torch.tensor([text])).logits[0, -1].double())
        seen = torch.tensor(sorted(set(text)))
        penalty = option("repetition_penalty")
        logits = self.read[place].clone()
        logits[seen] = torch.where(logits[seen] > 0, logits[seen] / penalty, logits[seen] * penalty)
        logits = logits / max(option("temperature"), 0.01)
        if (top_k := option("top_k")) > 0:
            logits[logits < logits.topk(int(top_k)).values[-1]] = -torch.inf
        if (top_p := option("top_p")) < 1:
            ranked, order = logits.softmax(-1).sort(descending=True)
            logits[order[ranked.cumsum(-1) - ranked >= top_p]] = -torch.inf
        token = int(torch.multinomial(logits.softmax(-1), 1, generator=generator))
        reported = logits if self.processed else self.read[place]
        return token, float(reported.log_softmax(-1)[token])


class SglangLike(VllmLike):
    """The same with SGLang's protocol."""

    owner, stopped_at, hottest = "sglang", "matched_stop", float("inf")

    def answer(self, path: str, body: Any, key: str) -> Reply:
        if path not in ("/load_lora_adapter", "/unload_lora_adapter"):
            if path.startswith("/v1/") and "lora" in path:
                return 404, {"detail": "Not Found"}
            return super().answer(path, body, key)
        status, said = super().answer(f"/v1{path}", body, key)
        if status == 200:
            return 200, {"success": True, "error_message": ""}
        return 400, {"success": False, "error_message": said["error"]["message"]}

    def complete(self, body: dict[str, Any]) -> Reply:
        base, _, adapter = body["model"].partition(":")
        if base != BASE or (adapter and adapter not in self.loras):
            return error(400, f"The following requested LoRA adapters are not loaded: {adapter}")
        if body["top_k"] != -1 and body["top_k"] < 1:
            return error(400, f"top_k must be -1 (disable) or at least 1, got {body['top_k']}.")
        return super().complete(body | {"model": adapter or base})

    def seed_of(self, stream: int) -> int:
        return 0

    def ends(self, body: dict[str, Any]) -> tuple[int | None, set[int]]:
        own, stops = super().ends(body)
        return (None, set()) if body.get("ignore_eos") else (own, stops)

    def stopped_by_its_own(self, token: int) -> int | None:
        return token


class Handler(BaseHTTPRequestHandler):
    server: VllmLike
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        self.respond(None)

    def do_POST(self) -> None:
        self.respond(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def respond(self, body: Any) -> None:
        server = self.server
        with server.counting:
            server.in_flight += 1
            server.peak = max(server.peak, server.in_flight)
            server.asked.append((self.path, body))
            server.headers.append(dict(self.headers))
        try:
            reply = server.interfere(self.path, body)
            if reply is None:
                reply = server.answer(self.path, body, self.headers.get("Authorization", ""))
        finally:
            with server.counting:
                server.in_flight -= 1
        status, content = reply
        if status == 0:  # hang up
            self.close_connection = True
            return
        headers = content if 300 <= status < 400 else {}
        if status == 200 and self.path == "/v1/completions":
            content = server.alter(content)
        answer(self, status, headers, content)

    def log_message(self, *_: Any) -> None:
        """Quiet."""


def card(name: str, parent: str | None = None) -> dict[str, Any]:
    return {"id": name, "object": "model", "owned_by": "vllm", "root": name, "parent": parent, "max_model_len": 1024}


def error(status: int, message: str) -> Reply:
    return status, {"error": {"message": message, "type": "BadRequestError", "param": None, "code": status}}
