"""Requests to the rollout server and parsing of its responses: vLLM's `/v1/completions`, with token ids."""

import hashlib
from typing import Any

from alignrun.errors import RunError
from alignrun.generation.decode import Sampling
from alignrun.security.text import counted


def request(prompt: list[int], samples: int, sampling: Sampling, seed: int) -> dict[str, Any]:
    """The request body for completions of one prompt, without the model.

    Every sampling field is set explicitly: vLLM takes missing ones, such as penalties and truncation, from the base's
    generation_config.json, which would change the policy's distribution.
    """
    return {
        "prompt": prompt,
        "n": samples,
        "max_tokens": sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,  # 0 keeps all tokens, in vLLM too
        "top_p": sampling.top_p,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "seed": seed,
        # The policy's end tokens may differ from the server's: chat templates have their own.
        "stop_token_ids": list(sampling.stop_ids),
        "ignore_eos": True,
        "return_token_ids": True,
    }


def prompt_seed(seed: int, row: int) -> int:
    """The seed of one prompt in a batch, in [0, 2^48).

    The server adds k to the seed of stream k, so seeds of neighbouring prompts and batches must be far apart.
    """
    return int.from_bytes(hashlib.sha256(f"{seed}/{row}".encode()).digest()[:6])


def read_completions(body: Any, prompt: list[int], samples: int, sampling: Sampling, url: str) -> list[list[int]]:
    """Parse the response to `request`: each completion with its end token, if it has one.

    Raises:
        RunError: the response does not match the request.
    """
    listed = field(body, "choices")
    choices = {field(choice, "index"): choice for choice in listed} if isinstance(listed, list) else {}
    if sorted(map(str, choices)) != sorted(map(str, range(samples))):
        raise _unusable(
            url, f"did not return {samples} completions", "check that generation.server_url is a vLLM server"
        )
    # vLLM returns the prompt that it read; it differs if the server truncated it or added a token.
    if field(choices[0], "prompt_token_ids") not in (None, prompt):
        raise _unusable(url, "changed the prompt that it was sent", "start it without prompt truncation")
    return [_read_completion(choices[index], sampling, url) for index in range(samples)]


def field(value: Any, name: str) -> Any:
    """A field of a JSON object; None if the value is not an object or lacks the field."""
    return value.get(name) if isinstance(value, dict) else None


def _read_completion(choice: Any, sampling: Sampling, url: str) -> list[int]:
    """The tokens of one completion, up to and including the first end token.

    vLLM's token ids include the end token, which its text omits. If a server omits it from the ids too, it is restored.
    Tokens after an end token are dropped. A truncated completion gets no end token. A completion whose last possible
    token is an end token has ended, although vLLM up to 0.10 reports `length` as the reason.
    """
    tokens, reason, stop = field(choice, "token_ids"), field(choice, "finish_reason"), field(choice, "stop_reason")
    if not isinstance(tokens, list) or any(type(token) is not int or not 0 <= token < 1 << 31 for token in tokens):
        raise _unusable(url, "returned no token ids", "use vLLM 0.10.2 or newer, which supports return_token_ids")
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
    elif len(tokens) < sampling.max_new_tokens:
        raise _unusable(
            url,
            f"cut a completion at {len(tokens)} of {counted(sampling.max_new_tokens, 'token')}",
            "start it with a --max-model-len that holds a prompt and generation.max_new_tokens",
        )
    if len(tokens) > sampling.max_new_tokens:
        raise _unusable(url, f"continued past {sampling.max_new_tokens} tokens", "use vLLM 0.10.2 or newer")
    return tokens


def _unusable(url: str, problem: str, advice: str) -> RunError:
    return RunError(f"generation.engine=server: {url} {problem}: {advice}, then `alignrun resume RUN`")
