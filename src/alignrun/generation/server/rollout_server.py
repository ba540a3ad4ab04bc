"""Sampling the policy from a server that serves the same base and loads the adapter, with vLLM's protocol.

A server can only sample the policy itself, not a mixture of two models.

Shape legend: B prompts, T completion tokens.
"""

import asyncio
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import torch

from alignrun.config.training import GenerationConfig
from alignrun.errors import InputError, RunError
from alignrun.generation.decode import Sampling
from alignrun.generation.server.client import KEY_VARIABLE, ServerClient
from alignrun.generation.server.protocol import field, prompt_seed, read_completions, request
from alignrun.http import decode, read_key
from alignrun.types import Completions, PromptBatch


class RolloutServer:
    """Sample completions from an OpenAI-compatible server that loads LoRA adapters at run time.

    It needs vLLM 0.10.2 or newer, started with `VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve BASE --enable-lora
    --max-lora-rank RANK` on a machine that can read the adapter folders.
    """

    def __init__(
        self,
        url: str,
        timeout: float,
        retries: int,
        api_key: str | None = None,
        *,
        model: str | None = None,
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
            parallel: requests in flight at once.
            backoff: seconds before the first retry, doubled before each further one.

        Raises:
            InputError: the server does not serve this base.
            RunError: the server does not respond, or does not implement the protocol.
        """
        self._client, self._parallel = ServerClient(url, timeout, retries, api_key, parallel, backoff), parallel
        # Adapter names are unique to the process: vLLM caches prefixes by adapter name and would continue from
        # another adapter's keys and values (github.com/vllm-project/vllm, no. 42125).
        self._run = secrets.token_hex(4)
        self._adapter: str | None = None
        self.base = self._find_base(model)

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
            parallel=config.server_parallel,
        )

    def load_adapter(self, folder: Path, version: int) -> None:
        """Load an adapter for all further sampling, and unload the previous one.

        Args:
            folder: a PEFT adapter that the server can read; keep it while it is in use.
            version: identifies the adapter within a run; the one in use is not loaded again.

        Raises:
            RunError: the server cannot load it.
        """
        name, path = f"alignrun-{self._run}-{version}", str(folder.resolve())
        if name == self._adapter:
            return
        # vLLM answers 500 if an adapter does not fit; a retry would not help.
        response = self._send("/v1/load_lora_adapter", {"lora_name": name, "lora_path": path}, final=(500,))
        if not response.is_success:
            said = self._client.complaint(response)
            if path in said and "No adapter found" in said:
                advice = "set generation.server_adapter_folder to a folder that the server can read too"
            elif response.status_code == 404:
                advice = "start vLLM with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True in its environment"
            else:
                advice = "start vLLM with the base that is trained, --enable-lora and a --max-lora-rank of adapter.rank"
            # Only this process uses the name, so an earlier attempt whose response was lost loaded the adapter.
            if "already been loaded" not in said:
                raise self._client.refusal(response, advice)
        self._forget()
        self._adapter = name

    def sample(self, prompts: PromptBatch, samples: int, sampling: Sampling, seed: int) -> list[Completions]:
        """Draw completions of every prompt from the adapter loaded last.

        The seed determines the draws, up to numerical differences from the server's batching.

        Args:
            prompts: B prompts.
            samples: completions per prompt, one stream each.
            sampling: lengths, stop tokens, temperature and truncation.
            seed: the seed of this batch, unique to it.

        Returns:
            `samples` streams of completions [B, T], in the format of `sample_completions`.

        Raises:
            RunError: the server fails, or its response does not match the request.
        """
        if self._adapter is None:
            raise ValueError("no adapter was loaded before sampling")
        drawn = asyncio.run(self._draw(prompts, samples, sampling, seed))
        longest = max(len(tokens) for row in drawn for tokens in row)
        device = prompts.input_ids.device
        streams = []
        for stream in zip(*drawn, strict=True):
            padded = [tokens + [sampling.pad_id] * (longest - len(tokens)) for tokens in stream]
            lengths = torch.tensor([len(tokens) for tokens in stream], device=device)
            mask = torch.arange(longest, device=device) < lengths[:, None]
            streams.append(Completions(torch.tensor(padded, device=device), mask))
        return streams

    def close(self) -> None:
        """Unload the adapter; errors of an unreachable server are ignored."""
        self._forget()

    def _forget(self) -> None:
        if self._adapter is not None:
            name, self._adapter = self._adapter, None
            with suppress(RunError):  # a stale adapter costs only memory
                self._send("/v1/unload_lora_adapter", {"lora_name": name}, retries=0)

    def _find_base(self, model: str | None) -> str:
        response = self._send("/v1/models")
        if not response.is_success:
            raise self._client.refusal(response, "check generation.server_url")
        listed = field(decode(response), "data")
        cards = listed if isinstance(listed, list) else []
        # Adapters are listed too, with their base as the parent.
        bases = [field(card, "id") for card in cards if field(card, "parent") is None]
        names = [name for name in bases if isinstance(name, str)]
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
        return model or names[0]

    async def _draw(self, prompts: PromptBatch, samples: int, sampling: Sampling, seed: int) -> list[list[list[int]]]:
        """The completions of all prompts, in order."""
        rows = zip(prompts.input_ids.tolist(), prompts.attention_mask.tolist(), strict=True)
        places = asyncio.Semaphore(self._parallel)  # waiting here does not count towards the server's timeout
        async with self._client.connect() as connection:
            try:
                async with asyncio.TaskGroup() as group:
                    tasks = [
                        group.create_task(
                            self._complete(
                                connection,
                                places,
                                [token for token, real in zip(ids, mask, strict=True) if real],
                                samples,
                                sampling,
                                prompt_seed(seed, row),
                            )
                        )
                        for row, (ids, mask) in enumerate(rows)
                    ]
            except ExceptionGroup as errors:  # the others were cancelled
                raise errors.exceptions[0] from errors
        return [task.result() for task in tasks]

    async def _complete(
        self,
        connection: httpx2.AsyncClient,
        places: asyncio.Semaphore,
        prompt: list[int],
        samples: int,
        sampling: Sampling,
        seed: int,
    ) -> list[list[int]]:
        """The completions of one prompt."""
        body = request(prompt, samples, sampling, seed) | {"model": self._adapter}
        tokens = len(prompt) + samples * sampling.max_new_tokens
        async with places:
            response = await self._client.send(connection, "/v1/completions", body, tokens=tokens)
        if response.status_code == 404:
            raise self._client.refusal(
                response, "if the server was restarted, `alignrun resume RUN` loads the adapter again"
            )
        if not response.is_success:
            raise self._client.refusal(
                response, "check generation.temperature and that --max-model-len holds a prompt and max_new_tokens"
            )
        return read_completions(decode(response), prompt, samples, sampling, str(response.url))

    def _send(self, path: str, body: dict[str, Any] | None = None, **options: Any) -> httpx2.Response:
        """Send a single request."""

        async def alone() -> httpx2.Response:
            async with self._client.connect() as connection:
                return await self._client.send(connection, path, body, **options)

        return asyncio.run(alone())
