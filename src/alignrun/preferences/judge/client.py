"""Asking the judge's server for chat completions."""

from typing import Any

import httpx2

from alignrun.preferences.judge.config import JudgeConfig
from alignrun.preferences.judge.verdict import Answer, parse_answer
from alignrun.preferences.served.client import ServedClient


class JudgeClient(ServedClient):
    """Asks for chat completions."""

    too_long = "lower preference.max_tokens or raise preference.max_answer_mb"
    refused = "check preference.model and preference.extra; set preference.use_logprobs=false if it offers no logprobs"

    def __init__(self, config: JudgeConfig) -> None:
        """Raises InputError if the environment holds a key that cannot be sent."""
        super().__init__(config, f"{config.url.rstrip('/')}/chat/completions")

    async def ask(self, connection: httpx2.AsyncClient, request: dict[str, Any]) -> Answer:
        """The judge's answer, without the key. Raises RunError as `send`."""
        answer = parse_answer(await self.send(connection, request))
        tokens = [(self.without_key(token), logprob) for token, logprob in answer.first_token]
        return Answer(self.without_key(answer.text), answer.cut, tokens)
