"""Sampling from a server that serves the same base and loads adapters, with the protocol of vLLM or SGLang.

A server draws from one adapter at a time, never from the mixture of two policies.

Shape legend: B prompts, T completion tokens.
"""

import asyncio
import secrets
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2

from alignrun.config.training import GenerationConfig, ServerKind
from alignrun.errors import InputError, RunError
from alignrun.generation.decode import Sampling
from alignrun.generation.server.client import KEY_VARIABLE, ServerClient
from alignrun.generation.server.dialect import dialect_of
from alignrun.generation.server.protocol import (
    Ask,
    Drawn,
    as_completions,
    field,
    prompt_seed,
    read_completions,
    real_tokens,
    request,
)
from alignrun.http import decode, read_key
from alignrun.types import Completions, PromptBatch

POLICY = "policy"
"""The slot of the policy's adapter."""


class RolloutServer:
    """Sample completions from a server that loads LoRA adapters at run time, on a machine that can read their folders.

    vLLM is started with `VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve BASE --enable-lora --max-lora-rank RANK
    --logprobs-mode processed_logprobs`, SGLang with `python -m sglang.launch_server --model-path BASE --enable-lora
    --max-lora-rank RANK --lora-target-modules all`.
    """

    def __init__(
        self,
        url: str,
        timeout: float,
        retries: int,
        api_key: str | None = None,
        *,
        model: str | None = None,
        kind: ServerKind = ServerKind.auto,
        parallel: int = 64,
        backoff: float = 1.0,
    ) -> None:
        """Connect and find the server's base.

        Args:
            url: the server's URL, with or without `/v1`.
            timeout: timeout of a request in seconds.
            retries: attempts after the first one, while the server is down, slow or busy.
            api_key: sent as a bearer token.
            model: the server's name of the base; None takes the only one.
            kind: the server's protocol; by default that of the server that the list of models names.
            parallel: requests in flight at once.
            backoff: seconds before the first retry, doubled before each further one.

        Raises:
            InputError: the server does not serve this base.
            RunError: the server does not respond, or does not implement the protocol.
        """
        self._client, self._parallel = ServerClient(url, timeout, retries, api_key, parallel, backoff), parallel
        # Every adapter gets a name that no other had: vLLM caches prefixes by name, so that it would continue from
        # another adapter's keys and values, and what it loads in place it reads again for every request
        # (github.com/vllm-project/vllm, no. 42125 and 33791).
        self._run = secrets.token_hex(4)
        self._adapters: dict[str, str] = {}
        self.base, owner = self._find_base(model)
        self.dialect = dialect_of(kind, owner)
        """The server's protocol."""

    @classmethod
    def connect(cls, config: GenerationConfig) -> "RolloutServer":
        """Connect with the configuration's settings and the environment's key. Raises like the constructor."""
        if config.server_url is None:
            raise ValueError("generation.server_url is not set")
        return cls(
            config.server_url,
            config.server_timeout_seconds,
            config.server_retries,
            read_key(KEY_VARIABLE) or None,
            model=config.server_model,
            kind=config.server_kind,
            parallel=config.server_parallel,
        )

    def load_adapter(self, folder: Path, version: int, slot: str = POLICY) -> None:
        """Load an adapter for all further sampling from a slot, and unload its previous one.

        Args:
            folder: a PEFT adapter that the server can read; keep it while it is in use.
            version: identifies the adapter within a slot of a run; the one in use is not loaded again.
            slot: what the adapter is, such as the policy or its average.

        Raises:
            RunError: the server cannot load it.
        """
        name, path, dialect = f"alignrun-{self._run}-{slot}-{version}", str(folder.resolve()), self.dialect
        if name == self._adapters.get(slot):
            return
        # vLLM answers 500 if an adapter does not fit; a retry would not help.
        response = self._send(dialect.load, {"lora_name": name, "lora_path": path}, final=(500,))
        if not response.is_success:
            said = self._client.complaint(response)
            if path in said and ("No adapter found" in said or "No such file" in said):
                advice = "set generation.server_adapter_folder to a folder that the server can read too"
            elif response.status_code == 404:
                advice = f"start {dialect.name} with {dialect.start}, or set generation.server_kind"
            else:
                advice = (
                    f"start {dialect.name} with the base that is trained, {dialect.start}, and a --max-lora-rank of at "
                    "least adapter.rank"
                )
            # Only this process uses the name, so an earlier attempt whose response was lost loaded the adapter.
            if not any(known in said for known in ("already been loaded", "already loaded", "already exists")):
                raise self._client.refusal(response, advice)
        self._forget(slot)
        self._adapters[slot] = name

    def sample(
        self, prompts: PromptBatch, samples: int, sampling: Sampling, seed: int, slot: str | None = POLICY
    ) -> list[Completions]:
        """Draw completions of every prompt from the adapter loaded last.

        The seed determines the draws, up to numerical differences from the server's batching.

        Args:
            prompts: B prompts.
            samples: completions per prompt, one stream each.
            sampling: lengths, stop tokens, temperature and truncation.
            seed: the seed of this batch, unique to it.
            slot: the slot whose adapter to draw from; None draws from the bare base.

        Returns:
            `samples` streams of completions [B, T], in the format of `sample_completions`, with the server's
            log-probabilities.

        Raises:
            RunError: the server fails, or its response does not match the request.
        """
        asks = [
            Ask(tokens, prompt_seed(seed, row), sampling.max_new_tokens, samples)
            for row, tokens in enumerate(real_tokens(prompts))
        ]
        drawn = self.draw(asks, sampling, slot)
        return [
            as_completions([row[stream] for row in drawn], sampling.pad_id, prompts.input_ids.device)
            for stream in range(samples)
        ]

    def draw(self, asks: Sequence[Ask], sampling: Sampling, slot: str | None = POLICY) -> list[list[Drawn]]:
        """The completions of each request, in order, as `sample` draws them. Raises RunError like it."""
        if slot is not None and slot not in self._adapters:
            raise ValueError(f"no adapter was loaded as {slot} before sampling")
        sent = [one for ask in asks for one in self._requests(ask)]
        drawn = iter(asyncio.run(self._draw(sent, sampling, slot)))
        return [[one for _ in self._requests(ask) for one in next(drawn)] for ask in asks]

    def close(self) -> None:
        """Unload the adapters; errors of an unreachable server are ignored."""
        for slot in list(self._adapters):
            self._forget(slot)

    def _forget(self, slot: str) -> None:
        name = self._adapters.pop(slot, None)
        if name is not None:
            with suppress(RunError):  # a stale adapter costs only memory
                self._send(self.dialect.unload, {"lora_name": name}, retries=0)

    def _requests(self, ask: Ask) -> list[Ask]:
        """A request as the server takes it: as one, or as one for each sample, seeded as vLLM seeds them."""
        if not self.dialect.one_by_one:
            return [ask]
        return [replace(ask, samples=1, seed=ask.seed + sample) for sample in range(ask.samples)]

    def _find_base(self, model: str | None) -> tuple[str, str]:
        """The name of the base, and who the server says owns it."""
        response = self._send("/v1/models")
        if not response.is_success:
            raise self._client.refusal(response, "check generation.server_url")
        listed = field(decode(response), "data")
        cards = listed if isinstance(listed, list) else []
        # Adapters are listed too, with their base as the parent.
        bases = [card for card in cards if field(card, "parent") is None and isinstance(field(card, "id"), str)]
        names = [card["id"] for card in bases]
        if not names:
            raise RunError(
                f"generation.engine=server: {response.url} lists no model: check generation.server_url, which must "
                "be an OpenAI-compatible server"
            )
        if model is not None and model not in names:
            raise InputError(
                f"generation.server_model={model} is not served by {self._client.root}: name one of "
                f"{', '.join(names)}, or serve that base"
            )
        base = bases[names.index(model) if model else 0]
        return base["id"], str(base.get("owned_by"))

    async def _draw(self, asks: Sequence[Ask], sampling: Sampling, slot: str | None) -> list[list[Drawn]]:
        """The completions of all requests, in order."""
        places = asyncio.Semaphore(self._parallel)  # waiting here does not count towards the server's timeout
        async with self._client.connect() as connection:
            try:
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(self._complete(connection, places, ask, sampling, slot)) for ask in asks]
            except ExceptionGroup as errors:  # the others were cancelled
                raise errors.exceptions[0] from errors
        return [task.result() for task in tasks]

    async def _complete(
        self,
        connection: httpx2.AsyncClient,
        places: asyncio.Semaphore,
        ask: Ask,
        sampling: Sampling,
        slot: str | None,
    ) -> list[Drawn]:
        """The completions of one request."""
        adapter = None if slot is None else self._adapters[slot]
        name = f"{self.base}:{adapter}" if adapter and self.dialect.base_and_adapter else adapter or self.base
        body = request(ask, sampling, self.dialect) | {"model": name}
        async with places:
            response = await self._client.send(
                connection, "/v1/completions", body, tokens=len(ask.tokens) + ask.samples * ask.most
            )
        if response.status_code == 404:
            raise self._client.refusal(
                response, "if the server was restarted, `alignrun resume RUN` loads the adapter again"
            )
        if not response.is_success:
            raise self._client.refusal(
                response,
                f"check generation.temperature and that {self.dialect.context} holds a prompt and max_new_tokens",
            )
        return read_completions(decode(response), ask, sampling, self.dialect, str(response.url))

    def _send(self, path: str, body: dict[str, Any] | None = None, **options: Any) -> httpx2.Response:
        """Send a single request."""

        async def alone() -> httpx2.Response:
            async with self._client.connect() as connection:
                return await self._client.send(connection, path, body, **options)

        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return asyncio.run(alone())
        with ThreadPoolExecutor(1) as thread:  # closed by the garbage collector amid the requests of another
            return thread.submit(asyncio.run, alone()).result()
