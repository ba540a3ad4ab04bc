"""Requests to a judging server: retries, errors, and the API key, which is never printed."""

import json
from typing import Any

import httpx2

from alignrun import http
from alignrun.config import ServedConfig
from alignrun.errors import RunError, one_line

AGAIN = "then repeat the command, or `alignrun resume RUN`"


class ServedClient:
    """Sends requests with retries; errors say what to change."""

    too_long = "raise preference.max_answer_mb"
    """What to change if an answer is too long."""
    refused = "check preference.model and preference.extra"
    """What to check after a refusal, by default."""

    def __init__(self, config: ServedConfig, url: str) -> None:
        """`url` is complete. Raises InputError if the environment holds a key that cannot be sent."""
        self._config, self.url = config, url
        self._key = http.read_key(config.key_variable, "preference.key_variable: ")
        self._named = f"preference={config.name}: {url}"

    def connect(self) -> httpx2.AsyncClient:
        """A session for one batch. Raises RunError if the proxy or certificates of the environment are invalid."""
        headers = {"Content-Type": "application/json"}
        who = f"preference={self._config.name}"
        return http.connect(self._key, self._config.concurrency, headers, who, f", {AGAIN}")

    async def send(self, connection: httpx2.AsyncClient, request: dict[str, Any]) -> Any:
        """The JSON that the server answers, or None if it is not JSON; failed attempts are repeated.

        Raises:
            RunError: it refuses the request, or does not answer.
        """
        config = self._config
        # A lone surrogate, which JSON input can contain, is not text that a server accepts.
        content = json.dumps(request, ensure_ascii=False).encode(errors="replace")
        try:
            response = await http.ask_again(
                connection,
                "POST",
                self.url,
                content,
                seconds=config.timeout_seconds,
                limit=int(config.max_answer_mb * http.MEGABYTE),
                retries=config.retries,
                backoff=config.backoff,
                complaint=self._complaint,
            )
        except http.ResponseTooLong as error:
            raise RunError(
                f"{self._named} answered {error}: check that preference.url is a {config.name}'s, {self.too_long}, "
                f"{AGAIN}"
            ) from None
        except http.NoAnswer as problem:
            raise RunError(
                f"{self._named} failed {config.retries + 1} times ({problem}): start it again or wait, or raise "
                f"preference.timeout_seconds, {AGAIN}; earlier answers are kept"
            ) from None
        if not response.is_success:
            said = f"{response.status_code}: {self._complaint(response)}"
            raise RunError(f"{self._named} answered {said}: {self._advice(response)}")
        return http.decode(response)

    def _complaint(self, response: httpx2.Response) -> str:
        """The server's error message, in one line."""
        body = http.decode(response)
        error = body.get("error", body) if isinstance(body, dict) else None
        message = error.get("message") if isinstance(error, dict) else None
        text = message if isinstance(message, str) else response.text
        return one_line(Exception(self.without_key(text) or response.reason_phrase), 200)

    def _advice(self, response: httpx2.Response) -> str:
        """Advice for a refusal."""
        if response.has_redirect_location:
            return f"set preference.url to where it leads, {self.without_key(response.headers['location'])}"
        variable = self._config.key_variable
        return {
            401: f"set {variable} to a key that it takes",
            403: f"check what the key in {variable} is allowed",
            404: f"check preference.model={self._config.model} and preference.url",
        }.get(response.status_code, self.refused)

    def without_key(self, text: str) -> str:
        """A server's text without the key, if it quotes it."""
        return http.without_key(text, self._key)
