"""What is asked of the rollout server and what is made of its answers: vLLM's `/v1/completions`, on token ids."""

import hashlib
from typing import Any

from alignrun.errors import RunError
from alignrun.generation.decode import Sampling
from alignrun.security.text import counted


def request(prompt: list[int], samples: int, sampling: Sampling, seed: int) -> dict[str, Any]:
    """The body that asks for completions of one prompt, all but the model.

    What is left out, vLLM takes from the base's generation_config.json: penalties and truncations among them, which
    would make it another distribution than the policy's.
    """
    return {
        "prompt": prompt,
        "n": samples,
        "max_tokens": sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,  # 0 keeps all tokens, to vLLM as to us
        "top_p": sampling.top_p,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "seed": seed,
        # The policy's end tokens, whatever the server takes for the model's: chat templates have ends of their own.
        "stop_token_ids": list(sampling.stop_ids),
        "ignore_eos": True,
        "return_token_ids": True,
    }


def prompt_seed(seed: int, row: int) -> int:
    """The seed of one prompt of a batch, in [0, 2^48).

    The server gives stream k the seed that follows this one by k, so those of neighbouring prompts and batches must
    lie far apart.
    """
    return int.from_bytes(hashlib.sha256(f"{seed}/{row}".encode()).digest()[:6])


def read_completions(body: Any, prompt: list[int], samples: int, sampling: Sampling, url: str) -> list[list[int]]:
    """The completions in an answer to `request`, each with the token that ends it, if it ends.

    Raises:
        RunError: they are not what was asked for.
    """
    listed = field(body, "choices")
    choices = {field(choice, "index"): choice for choice in listed} if isinstance(listed, list) else {}
    if sorted(map(str, choices)) != sorted(map(str, range(samples))):
        raise _unusable(url, f"gave no {samples} completions", "check that generation.server_url is a vLLM server")
    # vLLM repeats the prompt that it has read; one that it has cut, or begun with a token of its own, is another.
    if field(choices[0], "prompt_token_ids") not in (None, prompt):
        raise _unusable(url, "read another prompt than it was sent", "start it without truncation of prompts")
    return [_read_completion(choices[index], sampling, url) for index in range(samples)]


def field(value: Any, name: str) -> Any:
    """A field of a JSON object; None where there is neither."""
    return value.get(name) if isinstance(value, dict) else None


def _read_completion(choice: Any, sampling: Sampling, url: str) -> list[int]:
    """The tokens of one completion, up to and with the first end token.

    vLLM's token ids hold the end token that its text leaves out. Servers that leave it out there too get it back, and
    tokens after an end, where a server went on, are no part of the completion. A completion that was cut gets none;
    one whose last possible token is an end has ended, although vLLM up to 0.10 gives the length as the reason.
    """
    tokens, reason, stop = field(choice, "token_ids"), field(choice, "finish_reason"), field(choice, "stop_reason")
    if not isinstance(tokens, list) or any(type(token) is not int or not 0 <= token < 1 << 31 for token in tokens):
        raise _unusable(url, "gave no token ids", "use vLLM 0.10.2 or newer, which knows return_token_ids")
    stops = list(sampling.stop_ids)
    end = next((place for place, token in enumerate(tokens) if token in stops), None)
    if end is not None:
        tokens = tokens[: end + 1]
    elif reason == "stop":
        named = stops if stop is None else [stop]
        if len(named) != 1 or named[0] not in stops:
            raise _unusable(
                url,
                f"ended a completion at {str(stop)[:40]!r}, which is no end token of the policy",
                "serve the base that is trained, without stop strings of the server's own",
            )
        tokens = [*tokens, named[0]]
    elif reason != "length":
        raise _unusable(url, f"broke a completion off (finish_reason={str(reason)[:40]!r})", "see the server's log")
    elif len(tokens) < sampling.max_new_tokens:
        raise _unusable(
            url,
            f"cut a completion at {len(tokens)} of {counted(sampling.max_new_tokens, 'token')}",
            "start it with a --max-model-len that holds a prompt and generation.max_new_tokens",
        )
    if len(tokens) > sampling.max_new_tokens:
        raise _unusable(url, f"went on past {sampling.max_new_tokens} tokens", "use vLLM 0.10.2 or newer")
    return tokens


def _unusable(url: str, problem: str, advice: str) -> RunError:
    return RunError(f"generation.engine=server: {url} {problem}: {advice}, then `alignrun resume RUN`")
