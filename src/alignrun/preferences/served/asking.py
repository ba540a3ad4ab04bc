"""Concurrent requests to one server, each sent once, and none whose answer is cached."""

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable, Hashable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import httpx2
import torch

from alignrun import distributed
from alignrun.config import ServedConfig
from alignrun.models.sources import cache_folder
from alignrun.preferences.served.cache import AnswerCache
from alignrun.preferences.served.client import ServedClient

Question = TypeVar("Question", bound=Hashable)
Meaning = TypeVar("Meaning")
Answered = tuple[str, Meaning | None]
"""An answer as cached, and its meaning; None if it has none."""


@dataclass(slots=True)
class Stats:
    """Counts of questions so far."""

    asked: int = 0
    """Questions that the server answered."""
    cached: int = 0
    """Questions that the cache answered."""


class Asking(Generic[Meaning]):
    """Queries a server, and caches each valid answer as soon as it arrives."""

    def __init__(
        self,
        client: ServedClient,
        config: ServedConfig,
        cache: AnswerCache | None,
        ask: Callable[[httpx2.AsyncClient, dict[str, Any]], Awaitable[str]],
        read: Callable[[str], Meaning | None],
        stats: Stats,
    ) -> None:
        """`ask` sends a request and returns the answer as text for the cache; `read` interprets such a text."""
        self._client, self._cache, self._concurrency = client, cache, config.concurrency
        self._ask, self._read, self.stats = ask, read, stats

    def all(self, requests: Mapping[Question, dict[str, Any]]) -> dict[Question, Answered[Meaning]]:
        """The answer to every request. Raises RunError if one fails; earlier answers stay cached."""
        return asyncio.run(self._all(requests)) if requests else {}

    def counts(self, name: str) -> dict[str, float]:
        """The statistics of all processes since the start, as metrics of `name`."""
        counted = asdict(self.stats)
        total = distributed.all_reduce_sum(torch.tensor([float(value) for value in counted.values()])).tolist()
        return {f"{name}/{key}": value for key, value in zip(counted, total, strict=True)}

    async def _all(self, requests: Mapping[Question, dict[str, Any]]) -> dict[Question, Answered[Meaning]]:
        slots = asyncio.Semaphore(max(1, self._concurrency // distributed.size()))
        async with self._client.connect() as connection:
            try:
                async with asyncio.TaskGroup() as group:
                    tasks = {
                        question: group.create_task(self._one(connection, slots, request))
                        for question, request in requests.items()
                    }
            except ExceptionGroup as errors:  # the others were cancelled
                raise errors.exceptions[0] from errors
        return {question: task.result() for question, task in tasks.items()}

    async def _one(
        self, connection: httpx2.AsyncClient, slots: asyncio.Semaphore, request: dict[str, Any]
    ) -> Answered[Meaning]:
        # A request and the URL determine the answer.
        key = hashlib.sha256(json.dumps([self._client.url, request], sort_keys=True).encode()).hexdigest()
        known = None if self._cache is None else self._cache.get(key)
        if known is not None and (meaning := self._read(known)) is not None:
            self.stats.cached += 1
            return known, meaning
        async with slots:
            answer = await self._ask(connection, request)
        self.stats.asked += 1
        meaning = self._read(answer)
        if self._cache is not None and meaning is not None:
            self._cache.put(key, answer)
        return answer, meaning


def open_cache(config: ServedConfig) -> AnswerCache | None:
    """The cache that the configuration names, if any. Raises InputError if it cannot be used."""
    if config.cache is False:
        return None
    path = cache_folder() / f"{config.name}.sqlite" if config.cache is True else Path(str(config.cache)).expanduser()
    return AnswerCache(path)


def extended(request: dict[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """A request with the fields that the configuration adds, without those that it removes."""
    return {name: value for name, value in {**request, **extra}.items() if value is not None}
