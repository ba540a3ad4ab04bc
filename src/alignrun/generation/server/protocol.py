"""Requests to rollout servers and parsing of their responses: `/v1/completions`, with token ids and log-probabilities.

Shape legend: B prompts, T completion tokens.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from alignrun.errors import RunError
from alignrun.generation.decode import Sampling
from alignrun.generation.server.dialect import Dialect
from alignrun.security.text import counted
from alignrun.types import Completions, PromptBatch


@dataclass(frozen=True, slots=True)
class Ask:
    """Completions of one text, to be requested."""

    tokens: Sequence[int]
    """The prompt, and what is already known of the completion."""
    seed: int
    most: int
    """Tokens to draw at most."""
    samples: int = 1


@dataclass(frozen=True, slots=True)
class Drawn:
    """One completion of a server."""

    tokens: list[int]
    """With the end token, if it has one."""
    log_probs: list[float]
    """log q of each token, at the temperature of the request."""


def request(ask: Ask, sampling: Sampling, dialect: Dialect) -> dict[str, Any]:
    """The request body, without the model.

    Every sampling field is set explicitly: servers take missing ones, such as penalties and truncation, from the base's
    generation_config.json, which would change the policy's distribution.
    """
    return {
        "prompt": list(ask.tokens),
        "n": ask.samples,
        "max_tokens": ask.most,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k or dialect.all_tokens,
        "top_p": sampling.top_p,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "seed": ask.seed,
        # The policy's end tokens may differ from the server's: chat templates have their own.
        "stop_token_ids": list(sampling.stop_ids),
        "return_token_ids": True,
        "logprobs": 0,  # of the drawn tokens alone
        **dialect.ends,
    }


def prompt_seed(seed: int, row: int, part: int = 0) -> int:
    """The seed of one prompt in a batch, in [0, 2^48); `part` numbers the continuations of what began with it.

    The server adds k to the seed of stream k, so seeds of neighbouring prompts and batches must be far apart.
    """
    text = f"{seed}/{row}/{part}" if part else f"{seed}/{row}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6])


def read_completions(body: Any, ask: Ask, sampling: Sampling, dialect: Dialect, url: str) -> list[Drawn]:
    """Parse the response to `request`.

    Raises:
        RunError: the response does not match the request.
    """
    listed = field(body, "choices")
    choices = {field(choice, "index"): choice for choice in listed} if isinstance(listed, list) else {}
    if sorted(map(str, choices)) != sorted(map(str, range(ask.samples))):
        raise _unusable(
            url, f"did not return {ask.samples} completions", "check that generation.server_url is vLLM or SGLang"
        )
    # The server returns the prompt that it read; it differs if the server truncated it or added a token.
    if field(choices[0], "prompt_token_ids") not in (None, list(ask.tokens)):
        raise _unusable(url, "changed the prompt that it was sent", "start it without prompt truncation")
    return [_read_completion(choices[index], ask, sampling, dialect, url) for index in range(ask.samples)]


def field(value: Any, name: str) -> Any:
    """A field of a JSON object; None if the value is not an object or lacks the field."""
    return value.get(name) if isinstance(value, dict) else None


def real_tokens(prompts: PromptBatch) -> list[list[int]]:
    """The token ids of each of B prompts, without padding."""
    rows = zip(prompts.input_ids.tolist(), prompts.attention_mask.tolist(), strict=True)
    return [[token for token, real in zip(ids, mask, strict=True) if real] for ids, mask in rows]


def as_completions(drawn: Sequence[Drawn], pad_id: int, device: torch.device) -> Completions:
    """Completions [B, T] of B prompts, T the longest."""
    longest = max(len(one.tokens) for one in drawn)
    tokens = [one.tokens + [pad_id] * (longest - len(one.tokens)) for one in drawn]
    log_probs = [one.log_probs + [0.0] * (longest - len(one.tokens)) for one in drawn]
    lengths = torch.tensor([len(one.tokens) for one in drawn], device=device)
    return Completions(
        torch.tensor(tokens, device=device),
        torch.arange(longest, device=device) < lengths[:, None],
        torch.tensor(log_probs, device=device),
    )


def _read_completion(choice: Any, ask: Ask, sampling: Sampling, dialect: Dialect, url: str) -> Drawn:
    """The tokens of one completion, up to and including the first end token.

    Token ids include the end token, which the text omits. If a server omits it from the ids too, it is restored. Tokens
    after an end token are dropped. A truncated completion gets no end token. A completion whose last possible token is
    an end token has ended, although vLLM up to 0.10 reports `length` as the reason.
    """
    tokens, reason, stop = field(choice, "token_ids"), field(choice, "finish_reason"), field(choice, dialect.stopped_at)
    if not isinstance(tokens, list) or any(type(token) is not int or not 0 <= token < 1 << 31 for token in tokens):
        raise _unusable(url, "returned no token ids", f"use {dialect.version}, which supports return_token_ids")
    stops = list(sampling.stop_ids)
    end = next((place for place, token in enumerate(tokens) if token in stops), None)
    if end is not None:
        tokens = tokens[: end + 1]
    elif reason == "stop":
        named = stops if stop is None else [stop]
        if len(named) != 1 or named[0] not in stops:
            raise _unusable(
                url,
                f"ended a completion at {str(stop)[:40]!r}, which is not an end token of the policy",
                "serve the base that is trained, without stop strings of the server's own",
            )
        tokens = [*tokens, named[0]]
    elif reason != "length":
        raise _unusable(url, f"aborted a completion (finish_reason={str(reason)[:40]!r})", "see the server's log")
    elif len(tokens) < ask.most:
        raise _unusable(
            url,
            f"cut a completion at {len(tokens)} of {counted(ask.most, 'token')}",
            f"start it with a {dialect.context} that holds a prompt and generation.max_new_tokens",
        )
    if len(tokens) > ask.most:
        raise _unusable(url, f"continued past {ask.most} tokens", f"use {dialect.version}")
    return Drawn(tokens, _log_probs(choice, len(tokens), url))


def _log_probs(choice: Any, length: int, url: str) -> list[float]:
    """log q of the first tokens of a completion."""
    listed = field(field(choice, "logprobs"), "token_logprobs")
    values = listed[:length] if isinstance(listed, list) else []
    # A server may round the log-probability of a certain token to something above 0.
    if len(values) < length or any(type(one) not in (int, float) or not -math.inf < one < 1e-3 for one in values):
        raise _unusable(
            url,
            f"returned no log-probability for each of {counted(length, 'token')}",
            "check that generation.server_url is vLLM or SGLang, and that it allows log-probabilities",
        )
    return [float(one) for one in values]


def _unusable(url: str, problem: str, advice: str) -> RunError:
    return RunError(f"generation.engine=server: {url} {problem}: {advice}, then `alignrun resume RUN`")
