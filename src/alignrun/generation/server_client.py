"""Asking the rollout server: requests, retries, what it says is wrong, and the key, which is shown nowhere."""

import asyncio
import os
import random
from typing import Any

import httpx2

from alignrun.errors import InputError, RunError, one_line

KEY_VARIABLE = "ALIGNRUN_ROLLOUT_API_KEY"
"""The environment variable with the server's API key; unset, none is sent."""
LONGEST_WAIT = 60.0
"""Seconds between two attempts, whatever the backoff says."""
_jitter = random.Random()  # of its own: the numbers that a seed fixes elsewhere are not drawn from here


class ServerClient:
    """Sends requests to a server, again where that may help."""

    def __init__(self, url: str, timeout: float, retries: int, api_key: str | None, parallel: int, backoff: float):
        """Nothing is sent yet; see `RolloutServer`."""
        self.root = url.rstrip("/").removesuffix("/v1")
        self._timeout, self._retries, self._parallel, self._backoff = timeout, retries, parallel, backoff
        self._key = api_key

    def connect(self) -> httpx2.AsyncClient:
        """For some requests. Raises RunError where the environment's proxy or certificates are of no use."""
        try:
            return httpx2.AsyncClient(
                headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
                timeout=httpx2.Timeout(self._timeout, pool=None),  # other requests come first
                limits=httpx2.Limits(max_connections=self._parallel),
                follow_redirects=False,  # to wherever it leads, the key would go too
            )
        except (OSError, ValueError, ImportError) as error:  # proxies and certificates come from the environment
            raise RunError(
                f"generation.engine=server: no connection can be made ({one_line(error, 160)}): check the proxy and "
                "certificate variables of the environment"
            ) from error

    async def send(
        self,
        connection: httpx2.AsyncClient,
        path: str,
        body: dict[str, Any] | None = None,
        *,
        final: tuple[int, ...] = (),
        retries: int | None = None,
    ) -> httpx2.Response:
        """POST a body, or GET where there is none, and try again while the server is down, slow or busy.

        Args:
            connection: from `connect`.
            path: below the root, as `/v1/models`.
            body: sent as JSON.
            final: statuses that are an answer here, although they often mean that the server is busy.
            retries: attempts after the first one, where they are not those of this client.

        Returns:
            What it answered: a success, or a refusal, of which `complaint` tells the reason.

        Raises:
            RunError: it did not answer.
        """
        url, retries = f"{self.root}{path}", self._retries if retries is None else retries
        for attempt in range(retries + 1):
            try:
                response = await connection.request("GET" if body is None else "POST", url, json=body)
            except httpx2.TimeoutException:
                problem = f"no answer within {self._timeout:g} seconds"
            except (httpx2.RequestError, httpx2.InvalidURL) as error:
                problem = one_line(error, 200)
            else:
                status = response.status_code
                if status in final or (status < 500 and status not in (408, 409, 429)):
                    return response
                problem = f"{status}: {self.complaint(response)}"
            if attempt < retries:
                wait = self._backoff * 2.0 ** min(attempt, 32) * _jitter.uniform(0.5, 1)
                await asyncio.sleep(min(wait, LONGEST_WAIT))
        raise RunError(
            f"generation.engine=server: {url} failed {retries + 1} times ({problem}): start the server, check "
            "generation.server_url or raise generation.server_timeout_seconds; `alignrun resume RUN` goes on with a run"
        )

    def refusal(self, response: httpx2.Response, advice: str) -> RunError:
        """What the server refused and why, as an error with our advice."""
        variable = f"set {KEY_VARIABLE} to a key that it takes"
        if response.has_redirect_location:
            target = self.without_key(response.headers["location"])
            advice = f"set generation.server_url to where it leads, {one_line(Exception(target), 200)}"
        advice = {401: variable, 403: variable}.get(response.status_code, advice)
        said = one_line(Exception(self.complaint(response)), 200)
        return RunError(f"generation.engine=server: {response.url} answered {response.status_code}: {said}: {advice}")

    def complaint(self, response: httpx2.Response) -> str:
        """What the server says is wrong, whole but without the key."""
        body = decode(response)
        error = body.get("error", body) if isinstance(body, dict) else None
        said = error.get("message", error.get("detail")) if isinstance(error, dict) else error
        return self.without_key(said if isinstance(said, str) else response.text) or response.reason_phrase

    def without_key(self, text: str) -> str:
        """What a server says, even where it quotes the key."""
        return text.replace(self._key, "[key]") if self._key else text


def key_in_environment() -> str | None:
    """The key in the environment. Raises InputError where no header could carry it."""
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise InputError(f"{KEY_VARIABLE} holds characters that no key has: set it again")
    return key or None


def decode(response: httpx2.Response) -> Any:
    """The JSON of a response; None where it is none."""
    try:
        return response.json()
    except (ValueError, RecursionError):
        return None
