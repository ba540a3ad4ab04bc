"""What asking a server over HTTP takes, whoever asks: addresses, connections, keys, and when to try again.

The official `openai` client would replace the retry loop alone: the limits on an answer's size and total time, the
refusal to follow redirects and the hidden key would have to live in a transport below it and wrappers around it. It
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
"""Seconds between two attempts, whatever the backoff or the server says."""
MEGABYTE = 1_000_000
_jitter = random.Random()  # of its own: the numbers that a seed fixes elsewhere are not drawn from here


class TooLong(Exception):
    """An answer of more bytes than any that was asked for."""


class NoAnswer(Exception):
    """No attempt had an answer; what the last one met."""


def connect(key: str | None, parallel: int, headers: Mapping[str, str], who: str, remedy: str) -> httpx2.AsyncClient:
    """A client for some requests, each of which `ask` sends and limits.

    Args:
        key: sent as a bearer token, where there is one.
        parallel: requests in flight at once.
        headers: sent beside the key.
        who: the setting that asks, and `remedy` what else to do, for the message.
        remedy: follows "check the proxy and certificate variables of the environment".

    Raises:
        RunError: the environment's proxy or certificates are of no use.
    """
    try:
        return httpx2.AsyncClient(
            # A short answer gains nothing by being packed, and a small one that is may become a very large one.
            headers={**headers, "Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {key}"} if key else {}),
            timeout=None,
            limits=httpx2.Limits(max_connections=parallel),
            follow_redirects=False,  # to wherever it leads, the key would go too
        )
    except (OSError, ValueError, ImportError) as error:  # proxies and certificates come from the environment
        raise RunError(
            f"{who}: no connection can be made ({one_line(error, 160)}): check the proxy and "
            f"certificate variables of the environment{remedy}"
        ) from error


async def ask(
    connection: httpx2.AsyncClient, method: str, url: str, content: bytes | None, *, seconds: float, limit: int
) -> httpx2.Response:
    """Send a request and read the whole answer.

    Args:
        connection: from `connect`.
        method: GET or POST.
        url: whole.
        content: the body of the request.
        seconds: from the first byte sent to the last byte read, however slowly they come.
        limit: bytes of the answer's body, both as they come and unpacked.

    Raises:
        TimeoutError: it took longer.
        TooLong: there were more bytes; the rest was not read.
        httpx2.RequestError: there was no answer, or it is damaged.
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
    """`ask`, again while the server is down, slow or busy: a success, or a refusal that no attempt would change.

    Waits double from `backoff` seconds; a Retry-After may make one longer, up to `LONGEST_WAIT`. `complaint` says what
    is wrong in a response. Statuses in `final` are an answer, although they often mean that the server is busy.

    Raises:
        TooLong: an answer is too long; there is no other attempt.
        NoAnswer: no attempt had an answer.
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
    """The body, unpacked where a server packs it unasked."""
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("", "identity", "gzip", "x-gzip", "deflate"):
        raise httpx2.DecodingError(f"the answer is packed as {one_line(Exception(encoding), 40)}, unasked")
    unpacker = zlib.decompressobj(zlib.MAX_WBITS | 32) if encoding not in ("", "identity") else None
    received, body = 0, bytearray()
    async for chunk in response.aiter_raw():
        received += len(chunk)
        try:
            body += chunk if unpacker is None else unpacker.decompress(chunk, limit + 1 - len(body))
        except zlib.error as error:
            raise httpx2.DecodingError(f"the answer cannot be unpacked ({one_line(error, 80)})") from error
        if max(received, len(body)) > limit:
            raise TooLong(f"more than {limit / MEGABYTE:.3g} MB")
    if unpacker is not None and received and not unpacker.eof:
        raise httpx2.DecodingError("the answer ends before its last packed byte")
    return bytes(body)


def read_key(variable: str, named: str = "") -> str:
    """The key in an environment variable, or nothing.

    Raises:
        InputError: no header could carry it; the message begins with the setting that named the variable.
    """
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise InputError(f"{named}{variable} holds characters that no key has: set it again")
    return key


def without_key(text: str, key: str | None) -> str:
    """What a server says, even where it quotes the key."""
    return text.replace(key, "[key]") if key else text


def may_pass(status: int) -> bool:
    """Whether the same request may succeed later: the server is down, slow or busy."""
    return status >= 500 or status in (408, 409, 429)


def backed_off(backoff: float, attempt: int) -> float:
    """Seconds to wait after attempt 0, 1, …: doubled each time, and cut by chance so that not all come at once."""
    return backoff * 2.0 ** min(attempt, 32) * _jitter.uniform(0.5, 1)


def retry_after(response: httpx2.Response) -> float:
    """The seconds that a server asks to wait, given as such or as a date; 0 where it does not."""
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
    """The JSON of a response; None where it is none."""
    try:
        return response.json()
    except (ValueError, RecursionError):
        return None
