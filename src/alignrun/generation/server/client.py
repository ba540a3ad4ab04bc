"""Asking the rollout server: requests, retries, what it says is wrong, and the key, which is shown nowhere."""

import json
from typing import Any

import httpx2

from alignrun import http
from alignrun.errors import RunError, one_line

KEY_VARIABLE = "ALIGNRUN_ROLLOUT_API_KEY"
"""The environment variable with the server's API key; unset, none is sent."""
ANSWER_BYTES = http.MEGABYTE
"""An answer may have so many, and more for the tokens that were asked for: nothing else in it is long."""
TOKEN_BYTES = 1000
"""For each token: its number, and its text, of which the longest are hundreds of characters."""


class ServerClient:
    """Sends requests to a server, again where that may help."""

    def __init__(self, url: str, timeout: float, retries: int, api_key: str | None, parallel: int, backoff: float):
        """Nothing is sent yet; see `RolloutServer`."""
        self.root = url.rstrip("/").removesuffix("/v1")
        self._timeout, self._retries, self._parallel, self._backoff = timeout, retries, parallel, backoff
        self._key = api_key

    def connect(self) -> httpx2.AsyncClient:
        """For some requests. Raises RunError where the environment's proxy or certificates are of no use."""
        headers = {"Content-Type": "application/json"}
        return http.connect(self._key, self._parallel, headers, "generation.engine=server", "")

    async def send(
        self,
        connection: httpx2.AsyncClient,
        path: str,
        body: dict[str, Any] | None = None,
        *,
        final: tuple[int, ...] = (),
        retries: int | None = None,
        tokens: int = 0,
    ) -> httpx2.Response:
        """POST a body, or GET where there is none, and try again while the server is down, slow or busy.

        Args:
            connection: from `connect`.
            path: below the root, as `/v1/models`.
            body: sent as JSON.
            final: statuses that are an answer here, although they often mean that the server is busy.
            retries: attempts after the first one, where they are not those of this client.
            tokens: that the answer may hold.

        Returns:
            What it answered: a success, or a refusal, of which `complaint` tells the reason.

        Raises:
            RunError: it did not answer, or with far more than it was asked for.
        """
        url, retries = f"{self.root}{path}", self._retries if retries is None else retries
        method, content = ("GET", None) if body is None else ("POST", json.dumps(body).encode())
        try:
            return await http.ask_again(
                connection,
                method,
                url,
                content,
                seconds=self._timeout,
                limit=ANSWER_BYTES + TOKEN_BYTES * tokens,
                retries=retries,
                backoff=self._backoff,
                complaint=self.complaint,
                final=final,
            )
        except http.TooLong as error:
            raise RunError(
                f"generation.engine=server: {url} answered {error}, which nothing that was asked for takes: check "
                "that generation.server_url is a vLLM server, then `alignrun resume RUN`"
            ) from None
        except http.NoAnswer as problem:
            raise RunError(
                f"generation.engine=server: {url} failed {retries + 1} times ({problem}): start the server, check "
                "generation.server_url or raise generation.server_timeout_seconds; `alignrun resume RUN` continues it"
            ) from None

    def refusal(self, response: httpx2.Response, advice: str) -> RunError:
        """What the server refused and why, as an error with our advice."""
        variable = f"set {KEY_VARIABLE} to a key that it takes"
        if response.has_redirect_location:
            target = http.without_key(response.headers["location"], self._key)
            advice = f"set generation.server_url to where it leads, {one_line(Exception(target), 200)}"
        advice = {401: variable, 403: variable}.get(response.status_code, advice)
        said = one_line(Exception(self.complaint(response)), 200)
        return RunError(f"generation.engine=server: {response.url} answered {response.status_code}: {said}: {advice}")

    def complaint(self, response: httpx2.Response) -> str:
        """What the server says is wrong, whole but without the key."""
        body = http.decode(response)
        error = body.get("error", body) if isinstance(body, dict) else None
        said = error.get("message", error.get("detail")) if isinstance(error, dict) else error
        text = said if isinstance(said, str) else response.text
        return http.without_key(text, self._key) or response.reason_phrase
