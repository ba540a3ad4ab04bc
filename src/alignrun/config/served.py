"""How a server is asked: what all preferences with a `url` share."""

import math
from dataclasses import field
from typing import Any

from omegaconf import MISSING

from alignrun.config.schema import require, schema
from alignrun.config.urls import is_base


@schema
class ServedConfig:
    """Which server and model, and how patiently they are asked."""

    name: str = MISSING
    url: str = MISSING
    """The URL of the server, such as http://localhost:8000/v1."""
    model: str = MISSING
    """The name by which the server knows the model."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Further fields of the request; null removes one."""
    key_variable: str = MISSING
    """The environment variable with the API key; unset, none is sent."""
    timeout_seconds: float = 60.0
    """For one request, until the last byte of its answer."""
    max_answer_mb: float = 16.0
    """The largest response that is read, in 10⁶ bytes."""
    retries: int = 6
    """Attempts after the first one, while the server is down, slow or busy."""
    backoff: float = 1.0
    """Seconds before the first retry, doubled before each one that follows."""
    concurrency: int = 16
    """Requests in flight at once."""
    cache: bool | str = True
    """Where answers are kept: a file, true for one in the user's cache folder, or false for nowhere."""

    def __post_init__(self) -> None:
        require(
            is_base(self.url),
            "preference.url",
            f"must be http(s)://HOST[:PORT]/PATH with no query; a password or key belongs in ${self.key_variable}",
        )
        require(bool(self.model), "preference.model", "is missing: name it as the server does")
        require(bool(self.key_variable), "preference.key_variable", "must name an environment variable")
        require(0 < self.timeout_seconds < math.inf, "preference.timeout_seconds", "must be positive")
        require(0 < self.max_answer_mb < math.inf, "preference.max_answer_mb", "must be positive")
        require(self.retries >= 0, "preference.retries", "must not be negative")
        require(0 <= self.backoff < math.inf, "preference.backoff", "must not be negative")
        require(self.concurrency >= 1, "preference.concurrency", "must be at least 1")
