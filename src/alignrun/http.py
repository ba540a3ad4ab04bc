"""HTTP requests to judges and rollout servers: connections, keys, limits and retries.

The official `openai` client would replace only the retry loop. The limits on a response's size and total time, the
refusal to follow redirects and the hiding of the key would still need a transport below it and wrappers around it. It
would also fix the waits that `preference.backoff` sets (at most 8 s, and no retry after a Retry-After above two
minutes), for a dependency of 246,000 lines.
"""

import os
import random
import zlib
from asyncio import sleep, timeout
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx2

from alignrun.errors import InputError, RunError, one_line

LONGEST_WAIT = 60.0
"""Upper limit of the seconds between two attempts, whatever the backoff or the server says."""
MEGABYTE = 1_000_000
_jitter = random.Random()  # separate, so that the seeded global generator is not advanced


class ResponseTooLong(Exception):
    """A response exceeds the size limit."""


class NoAnswer(Exception):
    """No attempt was answered; the message is the last attempt's problem."""


def connect(key: str | None, parallel: int, headers: Mapping[str, str], who: str, remedy: str) -> httpx2.AsyncClient:
    """A client for requests, which `ask` sends and limits.

    Args:
        key: the bearer token, if any.
        parallel: maximum number of requests in flight.
        headers: further headers.
        who: the setting that names the server, for the message.
        remedy: ends the message, after "check the proxy and certificate variables of the environment".

    Raises:
        RunError: the environment's proxy or certificates are invalid.
    """
    try:
        return httpx2.AsyncClient(
            # Compression gains nothing for short responses, and a small one could unpack to a very large one.
            headers={**headers, "Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {key}"} if key else {}),
            timeout=None,
            limits=httpx2.Limits(max_connections=parallel),
            follow_redirects=False,  # the key would be sent to the new address too
        )
    except (OSError, ValueError, ImportError) as error:  # proxies and certificates come from the environment
        raise RunError(
            f"{who}: no connection can be made ({one_line(error, 160)}): check the proxy and "
            f"certificate variables of the environment{remedy}"
        ) from error


async def ask(
    connection: httpx2.AsyncClient, method: str, url: str, content: bytes | None, *, seconds: float, limit: int
) -> httpx2.Response:
    """Send a request and read the whole response.

    Args:
        connection: from `connect`.
        method: GET or POST.
        url: complete.
        content: the body of the request.
        seconds: from the first byte sent to the last byte read.
        limit: bytes of the body, both compressed and decompressed.

    Raises:
        TimeoutError: it took longer.
        ResponseTooLong: the body is larger; the rest was not read.
        httpx2.RequestError: there was no response, or it is damaged.
    """
    async with timeout(seconds), connection.stream(method, url, content=content) as response:
        body = await _read(response, limit)
    dropped = ("content-encoding", "content-length", "transfer-encoding")
    headers = [(name, value) for name, value in response.headers.multi_items() if name.lower() not in dropped]
    return httpx2.Response(response.status_code, headers=headers, content=body, request=response.request)


async def ask_again(
    connection: httpx2.AsyncClient,
    method: str,
    url: str,
    content: bytes | None,
    *,
    seconds: float,
    limit: int,
    retries: int,
    backoff: float,
    complaint: Callable[[httpx2.Response], str],
    final: Sequence[int] = (),
) -> httpx2.Response:
    """`ask` with retries while the server is down, slow or busy; returns a success or a permanent refusal.

    Waits double from `backoff` seconds; a Retry-After can extend one, up to `LONGEST_WAIT`. `complaint` describes the
    problem in a response. Statuses in `final` are not retried, although they often mean that the server is busy.

    Raises:
        ResponseTooLong: a response is too long; it is not retried.
        NoAnswer: no attempt was answered.
    """
    problem = ""
    for attempt in range(retries + 1):
        wait = backed_off(backoff, attempt)
        try:
            response = await ask(connection, method, url, content, seconds=seconds, limit=limit)
        except TimeoutError:
            problem = f"no answer within {seconds:g} seconds"
        except (httpx2.RequestError, httpx2.InvalidURL) as error:
            problem = one_line(error, 200)
        else:
            if response.status_code in final or not may_pass(response.status_code):
                return response
            problem = f"{response.status_code}: {complaint(response)}"
            wait = max(wait, retry_after(response))
        if attempt < retries:
            await sleep(min(wait, LONGEST_WAIT))
    raise NoAnswer(problem)


async def _read(response: httpx2.Response, limit: int) -> bytes:
    """Read the body, decompressed if the server compresses it unasked."""
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("", "identity", "gzip", "x-gzip", "deflate"):
        raise httpx2.DecodingError(f"the answer is compressed as {one_line(Exception(encoding), 40)}, unasked")
    unpacker = zlib.decompressobj(zlib.MAX_WBITS | 32) if encoding not in ("", "identity") else None
    received, body = 0, bytearray()
    async for chunk in response.aiter_raw():
        received += len(chunk)
        try:
            body += chunk if unpacker is None else unpacker.decompress(chunk, limit + 1 - len(body))
        except zlib.error as error:
            raise httpx2.DecodingError(f"the answer cannot be decompressed ({one_line(error, 80)})") from error
        if max(received, len(body)) > limit:
            raise ResponseTooLong(f"more than {limit / MEGABYTE:.3g} MB")
    if unpacker is not None and received and not unpacker.eof:
        raise httpx2.DecodingError("the compressed answer is truncated")
    return bytes(body)


def read_key(variable: str, named: str = "") -> str:
    """The key in an environment variable, or an empty string.

    Raises:
        InputError: it is not valid in a header; the message begins with `named`, the setting that names the variable.
    """
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise InputError(f"{named}{variable} contains characters that are not valid in a key: set it again")
    return key


def without_key(text: str, key: str | None) -> str:
    """A server's text with the key removed."""
    return text.replace(key, "[key]") if key else text


def may_pass(status: int) -> bool:
    """Whether a retry may succeed: the server is down, slow or busy."""
    return status >= 500 or status in (408, 409, 429)


def backed_off(backoff: float, attempt: int) -> float:
    """Seconds to wait after attempt 0, 1, …: exponential backoff with jitter, so that requests spread out."""
    return backoff * 2.0 ** min(attempt, 32) * _jitter.uniform(0.5, 1)


def retry_after(response: httpx2.Response) -> float:
    """Seconds of the Retry-After header, a number or a date; 0 without one."""
    value = response.headers.get("Retry-After", "")
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return 0.0


def decode(response: httpx2.Response) -> Any:
    """The JSON of a response; None if it is not JSON."""
    try:
        return response.json()
    except (ValueError, RecursionError):
        return None
