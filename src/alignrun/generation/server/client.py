"""The HTTP client of the rollout server: requests, retries, error messages, and an API key that is never shown."""

import json
from typing import Any

import httpx2

from alignrun import http
from alignrun.errors import RunError, one_line

KEY_VARIABLE = "ALIGNRUN_ROLLOUT_API_KEY"
"""The environment variable with the server's API key; if unset, no key is sent."""
ANSWER_BYTES = http.MEGABYTE
"""The largest response, not counting the requested tokens."""
TOKEN_BYTES = 1000
"""The allowance per requested token, for its id and its text of up to hundreds of characters."""


class ServerClient:
    """Send requests to the server and retry those that may succeed later."""

    def __init__(self, url: str, timeout: float, retries: int, api_key: str | None, parallel: int, backoff: float):
        """Store the settings without sending anything; see `RolloutServer`."""
        self.root = url.rstrip("/").removesuffix("/v1")
        self._timeout, self._retries, self._parallel, self._backoff = timeout, retries, parallel, backoff
        self._key = api_key

    def connect(self) -> httpx2.AsyncClient:
        """Open an HTTP client. Raises RunError if the environment's proxy or certificates are invalid."""
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
        """POST the body, or GET without one, and retry while the server is down, slow or busy.

        Args:
            connection: a client from `connect`.
            path: the path below the root, such as `/v1/models`.
            body: the JSON body.
            final: statuses not to retry, although they often mean that the server is busy.
            retries: attempts after the first one; by default those of this client.
            tokens: the largest number of tokens in the response.

        Returns:
            The response: a success, or a refusal whose reason `complaint` returns.

        Raises:
            RunError: the server did not respond, or sent far more than was requested.
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
        except http.ResponseTooLong as error:
            raise RunError(
                f"generation.engine=server: {url} answered {error}, far more than was requested: check "
                "that generation.server_url is vLLM or SGLang, then `alignrun resume RUN`"
            ) from None
        except http.NoAnswer as problem:
            raise RunError(
                f"generation.engine=server: {url} failed {retries + 1} times ({problem}): start the server, check "
                "generation.server_url or raise generation.server_timeout_seconds; `alignrun resume RUN` continues it"
            ) from None

    def refusal(self, response: httpx2.Response, advice: str) -> RunError:
        """An error that names the refused request, the server's reason, and what to do."""
        variable = f"set {KEY_VARIABLE} to a valid key"
        if response.has_redirect_location:
            target = http.without_key(response.headers["location"], self._key)
            advice = f"set generation.server_url to where it leads, {one_line(Exception(target), 200)}"
        advice = {401: variable, 403: variable}.get(response.status_code, advice)
        said = one_line(Exception(self.complaint(response)), 200)
        return RunError(f"generation.engine=server: {response.url} answered {response.status_code}: {said}: {advice}")

    def complaint(self, response: httpx2.Response) -> str:
        """The server's full error message, with the key removed."""
        body = http.decode(response)
        error = body.get("error", body) if isinstance(body, dict) else None
        if isinstance(error, dict):  # vLLM, FastAPI, SGLang
            error = next((error[name] for name in ("message", "detail", "error_message") if error.get(name)), None)
        text = error if isinstance(error, str) else response.text
        return http.without_key(text, self._key) or response.reason_phrase
