"""A reward model behind an HTTP server, as vLLM and SGLang serve them: preference.url=URL preference.model=NAME.

The formats are those of vLLM's /pooling, /classify, /score and /v1/rerank (docs.vllm.ai, pooling models) and of
SGLang's /classify and /v1/rerank (docs.sglang.io, native API).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import httpx2
import torch
from omegaconf import MISSING
from torch import Tensor
from transformers import AutoTokenizer

from alignrun import distributed
from alignrun.config import ModelConfig, ServedConfig, require, schema
from alignrun.errors import RunError
from alignrun.models.sources import hub_options, loading
from alignrun.preferences.base import Preference, Reward, identity, preference
from alignrun.preferences.conversations import ConversationEncoder
from alignrun.preferences.served.asking import Asking, Stats, extended, open_cache
from alignrun.preferences.served.cache import AnswerCache
from alignrun.preferences.served.client import ServedClient
from alignrun.preferences.served.scores import scores_in, stored_scores
from alignrun.types import as_prompt


class Endpoint(str, Enum):
    """The endpoint of the server."""

    pooling = "pooling"
    """vLLM's /pooling, with the conversation as messages; the last is used if there is a score for every token."""
    classify = "classify"
    """vLLM's /classify, with the conversation as messages."""
    score = "score"
    """vLLM's /score, with prompt and completion as a pair of texts."""
    rerank = "rerank"
    """/v1/rerank of vLLM or SGLang, with prompt and completion as a pair of texts."""
    sglang = "sglang"
    """SGLang's own /classify, with the tokens of the conversation, which `tokenizer` makes."""


@schema
class RewardServerConfig(ServedConfig):
    """P = σ((r − r') / temperature) with r the score that the server gives a conversation."""

    name: str = "reward_server"
    url: str = MISSING
    """The server, such as http://localhost:8000; a trailing `/v1` is dropped for endpoints without it."""
    endpoint: Endpoint = Endpoint.pooling
    weights: list[float] = field(default_factory=list)
    """For a model with several scores: their weights, in the model's order. r is the weighted sum."""
    tokenizer: str | None = None
    """A hub id or folder whose chat template and tokenizer are applied here; null leaves both to the server."""
    temperature: float = 1.0
    """Divides the log-odds: P = σ((r − r') / temperature)."""
    key_variable: str = "REWARD_SERVER_API_KEY"
    """The environment variable with the API key; unset, none is sent."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.temperature > 0, "preference.temperature", f"must be positive, not {self.temperature}")
        endpoint = f"preference.endpoint={self.endpoint.value}"
        paired = self.endpoint in (Endpoint.score, Endpoint.rerank)
        require(not (paired and self.tokenizer), "preference.tokenizer", f"is not valid with {endpoint}: leave it out")
        require(
            self.endpoint is not Endpoint.sglang or bool(self.tokenizer),
            "preference.tokenizer",
            f"is missing: {endpoint} applies no chat template: name the model's hub id or folder",
        )


@dataclass(frozen=True, slots=True)
class EndpointFormat:
    """The request and response format of an endpoint."""

    path: str
    listed: str
    """The field with the results."""
    names: tuple[str, ...]
    """The field with the score in a result."""
    raw: bool = True
    """Whether it must be asked for raw scores instead of probabilities (vLLM from 0.11.1 on)."""
    tokens: str = "input"
    """The field for token ids."""


FORMATS = {
    Endpoint.pooling: EndpointFormat("/pooling", "data", ("data",)),
    Endpoint.classify: EndpointFormat("/classify", "data", ("probs",)),
    Endpoint.score: EndpointFormat("/score", "data", ("score",)),
    Endpoint.rerank: EndpointFormat("/v1/rerank", "results", ("relevance_score", "score")),
    Endpoint.sglang: EndpointFormat("/classify", "", ("embedding",), raw=False, tokens="input_ids"),
}


class RewardServer(Reward):
    """σ(r(x, y) − r(x, y')) with r from a server, one request per conversation."""

    def __init__(
        self, config: RewardServerConfig, cache: AnswerCache | None, encoder: ConversationEncoder | None = None
    ) -> None:
        super().__init__(config.temperature)
        self._config, self._encoder, self._format = config, encoder, FORMATS[config.endpoint]
        self._weights = torch.tensor(config.weights or [1.0], dtype=torch.float64)
        self._client = RewardClient(config, f"{config.url.rstrip('/').removesuffix('/v1')}{self._format.path}")
        self.stats = Stats()
        self._asking = Asking(self._client, config, cache, self._ask, self._read, self.stats)

    def rewards(self, prompts: Sequence[str], completions: Sequence[str]) -> Tensor:
        """[B] the weighted sums of the scores. Processes share the questions."""
        rows = list(zip(prompts, completions, strict=True))
        return distributed.by_share(len(rows), lambda share: self._rewards([rows[row] for row in share]))

    def counts(self) -> dict[str, float]:
        """Requests, and how many were cached, over all processes."""
        return self._asking.counts(self._config.name)

    def _rewards(self, rows: Sequence[tuple[str, str]]) -> Tensor:
        requests = {(identity(prompt), completion): self._request(prompt, completion) for prompt, completion in rows}
        found = self._asking.all(requests)
        scores = [found[identity(prompt), completion][1] for prompt, completion in rows]
        return (torch.tensor(scores, dtype=torch.float64).reshape(-1, len(self._weights)) @ self._weights).float()

    def _request(self, prompt: str, completion: str) -> dict[str, Any]:
        config, asked = self._config, as_prompt(prompt)
        question: dict[str, Any]
        match config.endpoint:
            case Endpoint.score:
                question = {"text_1": str(prompt), "text_2": completion}
            case Endpoint.rerank:
                question = {"query": str(prompt), "documents": [completion]}
            case _ if self._encoder is not None:
                question = {self._format.tokens: list(self._encoder.encode(prompt, completion).ids)}
            case _:
                if asked.turns[-1]["role"] == "assistant":
                    raise RunError(
                        f"preference={config.name} judges what follows a prompt, and one ends with the assistant"
                    )
                question = {"messages": [*asked.turns, {"role": "assistant", "content": completion}]}
        raw = {"use_activation": False} if self._format.raw else {}
        return extended({"model": config.model, **question, **raw}, config.extra)

    async def _ask(self, connection: httpx2.AsyncClient, request: dict[str, Any]) -> str:
        body = await self._client.send(connection, request)
        try:
            scores = scores_in(body, self._format.listed, self._format.names)
        except ValueError as problem:
            raise self._nonsense(str(problem)) from None
        if len(scores) != len(self._weights):
            raise self._nonsense(f"{len(scores)} scores where preference.weights weighs {len(self._weights)}")
        return json.dumps(scores)

    def _read(self, stored: str) -> list[float] | None:
        scores = stored_scores(stored)
        return scores if scores is not None and len(scores) == len(self._weights) else None

    def _nonsense(self, problem: str) -> RunError:
        return RunError(
            f"preference={self._config.name}: {self._client.url} answered {problem}: check "
            f"preference.endpoint={self._config.endpoint.value}, preference.weights and what the server serves"
        )


class RewardClient(ServedClient):
    """Asks for scores."""

    refused = "check preference.endpoint, preference.model and preference.extra"


def load_encoder(config: RewardServerConfig) -> ConversationEncoder | None:
    """The local tokenizer, if configured. Raises InputError if it cannot be loaded."""
    if config.tokenizer is None:
        return None
    source = ModelConfig(name=config.name, path=config.tokenizer)
    place = Path(config.tokenizer).expanduser()
    with loading(source, "tokenizer", "preference"):
        tokenizer = AutoTokenizer.from_pretrained(
            str(place) if place.is_dir() else config.tokenizer, **hub_options(source)
        )
        tokenizer("text")
    return ConversationEncoder(tokenizer, config.name)


@preference("reward_server", RewardServerConfig)
def build(config: RewardServerConfig) -> Preference:
    """The preference that the configuration asks for."""
    return RewardServer(config, open_cache(config), load_encoder(config))
