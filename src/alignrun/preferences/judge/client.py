"""Asking the judge's server: requests, retries, what a refusal means, and the key, which is shown nowhere."""

import json
from typing import Any

import httpx2

from alignrun import http
from alignrun.errors import RunError, one_line
from alignrun.preferences.judge.config import JudgeConfig
from alignrun.preferences.judge.verdict import Answer, dig, parse_answer


class JudgeClient:
    """Asks for chat completions, again where that may help; where it does not, says what to change."""

    def __init__(self, config: JudgeConfig) -> None:
        """Raises InputError where the environment holds a key that cannot be sent."""
        self._config = config
        self.url = f"{config.url.rstrip('/')}/chat/completions"
        self._key = http.read_key(config.key_variable, "preference.key_variable: ")

    def connect(self) -> httpx2.AsyncClient:
        """For one batch of questions. Raises RunError if the proxy or certificates of the environment are invalid."""
        headers, remedy = {"Content-Type": "application/json"}, ", then repeat the command, or `alignrun resume RUN`"
        return http.connect(self._key, self._config.concurrency, headers, "preference=judge", remedy)

    async def ask(self, connection: httpx2.AsyncClient, request: dict[str, Any]) -> Answer:
        """The judge's answer, after as many attempts as it takes.

        Raises:
            RunError: it refuses the request, or does not answer.
        """
        config = self._config
        # Half a surrogate pair, which JSON input can bring in, is no text that a server would take.
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
        except http.TooLong as error:
            raise RunError(
                f"preference=judge: {self.url} answered {error}: check that preference.url is a judge's, lower "
                "preference.max_tokens or raise preference.max_answer_mb, then repeat the command, or "
                "`alignrun resume RUN`"
            ) from None
        except http.NoAnswer as problem:
            raise RunError(
                f"preference=judge: {self.url} failed {config.retries + 1} times ({problem}): start it again or wait, "
                "or raise preference.timeout_seconds, then repeat the command, or `alignrun resume RUN`; what it has "
                "answered is kept"
            ) from None
        if not response.is_success:
            said = f"{response.status_code}: {self._complaint(response)}"
            raise RunError(f"preference=judge: {self.url} answered {said}: {self._advice(response)}")
        return self._answer(response)

    def _answer(self, response: httpx2.Response) -> Answer:
        """What the response says, without the key."""
        answer = parse_answer(http.decode(response))
        tokens = [(self._without_key(token), logprob) for token, logprob in answer.first_token]
        return Answer(self._without_key(answer.text), answer.cut, tokens)

    def _complaint(self, response: httpx2.Response) -> str:
        """What the server says is wrong, in one line."""
        message = dig(http.decode(response), "error", "message")
        text = message if isinstance(message, str) else response.text
        return one_line(Exception(self._without_key(text) or response.reason_phrase), 200)

    def _advice(self, response: httpx2.Response) -> str:
        """What to do about a refusal."""
        if response.has_redirect_location:
            return f"set preference.url to where it leads, {self._without_key(response.headers['location'])}"
        variable = self._config.key_variable
        return {
            401: f"set {variable} to a key that it takes",
            403: f"check what the key in {variable} is allowed",
            404: f"check preference.model={self._config.model} and preference.url",
        }.get(
            response.status_code,
            "check preference.model and preference.extra; set preference.use_logprobs=false if it offers no logprobs",
        )

    def _without_key(self, text: str) -> str:
        """What a server says, even where it quotes the key."""
        return http.without_key(text, self._key)
