"""Servers that would never stop: every request ends by itself, after so many seconds or bytes."""

import asyncio
import gzip
import time
import zlib
from collections.abc import Awaitable, Callable
from typing import Any

import httpx2
import pytest

from alignrun import http
from alignrun.errors import RunError
from alignrun.generation.server.client import ANSWER_BYTES, TOKEN_BYTES, ServerClient
from alignrun.preferences.judge.client import JudgeClient
from alignrun.preferences.judge.config import JudgeConfig

Talk = Callable[[asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\nConnection: close\r\n"


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")


def against(talk: Talk, client: Callable[[str], Awaitable[Any]]) -> Any:
    """What a client of this server comes to."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].split(b"\r")[0]))
            await talk(writer)
            await writer.drain()
        except OSError:
            pass
        writer.close()

    async def both() -> Any:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        try:
            return await client(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        finally:
            server.close()

    return asyncio.run(both())


def ask(talk: Talk, seconds: float = 5.0, limit: int = 100_000) -> bytes:
    async def client(url: str) -> bytes:
        async with http.connect(None, 1, {}, "test", "") as connection:
            response = await http.ask(connection, "POST", url, b"{}", seconds=seconds, limit=limit)
            return response.content

    return against(talk, client)


def says(*parts: bytes) -> Talk:
    async def talk(writer: asyncio.StreamWriter) -> None:
        writer.write(b"".join(parts))

    return talk


async def endless(writer: asyncio.StreamWriter) -> None:
    writer.write(OK + b"\r\n")
    while True:
        writer.write(b" " * 65536)
        await writer.drain()


async def dripping(writer: asyncio.StreamWriter) -> None:
    """No pause is long, and there is no end."""
    writer.write(OK + b"\r\n")
    while True:
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(0.02)


def bomb(size: int) -> bytes:
    """A thousandth of what it becomes."""
    return gzip.compress(bytes(size))


@pytest.mark.parametrize(
    "body",
    [
        OK + b"\r\n" + b"x" * 100_001,
        OK + b"Content-Length: 9000000000\r\n\r\n" + b"x" * 200_000,
        OK + b"Content-Encoding: gzip\r\n\r\n" + bomb(60_000_000),
        OK + b"Content-Encoding: deflate\r\n\r\n" + zlib.compress(bytes(60_000_000)),
    ],
    ids=["long", "announced", "gzip bomb", "deflate bomb"],
)
def test_a_long_answer_is_not_read_to_its_end(body: bytes) -> None:
    with pytest.raises(http.ResponseTooLong, match=r"more than 0\.1 MB"):
        ask(says(body))


def test_a_bomb_is_not_decompressed_beyond_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    largest = 0
    make = zlib.decompressobj

    class Watched:
        def __init__(self, *given: int) -> None:
            self._real = make(*given)

        def decompress(self, chunk: bytes, most: int) -> bytes:
            nonlocal largest
            part = self._real.decompress(chunk, most)
            largest = max(largest, len(part))
            return part

    monkeypatch.setattr(http.zlib, "decompressobj", Watched)
    with pytest.raises(http.ResponseTooLong):
        ask(says(OK + b"Content-Encoding: gzip\r\n\r\n" + bomb(60_000_000)))
    assert largest <= 100_001


def test_a_response_within_the_limit_is_read_compressed_or_not() -> None:
    text = b'{"a": 1}' * 10_000
    for headers, body in (
        (b"", text),
        (b"Content-Encoding: identity\r\n", text),
        (b"Content-Encoding: gzip\r\n", gzip.compress(text)),
        (b"Content-Encoding: Deflate\r\n", zlib.compress(text)),
        (b"Content-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n", None),
    ):
        packed = gzip.compress(text)
        chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (packed[:20], packed[20:])) + b"0\r\n\r\n"
        assert ask(says(OK, headers, b"\r\n", chunks if body is None else body)) == text, headers
    assert ask(says(OK, b"Content-Encoding: gzip\r\n\r\n")) == b""


@pytest.mark.parametrize(
    ("encoding", "body", "expected"),
    [
        (b"gzip", b"no gzip", "cannot be decompressed"),
        (b"gzip", gzip.compress(b"some text")[:-9], "the compressed answer is truncated"),
        (b"br", b"x", "compressed as br, unasked"),
        (b"gzip, gzip", b"x", "compressed as gzip, gzip, unasked"),
    ],
    ids=["none", "cut", "unknown", "twice"],
)
def test_a_damaged_answer_is_an_error_of_the_connection(encoding: bytes, body: bytes, expected: str) -> None:
    with pytest.raises(httpx2.RequestError, match=expected):
        ask(says(OK, b"Content-Encoding: ", encoding, b"\r\n\r\n", body))


@pytest.mark.parametrize("talk", [dripping, endless], ids=["dripping", "endless"])
def test_the_time_is_that_of_the_whole_request(talk: Talk) -> None:
    started = time.perf_counter()
    with pytest.raises(TimeoutError):
        ask(talk, seconds=0.15, limit=10**12)
    assert time.perf_counter() - started < 1


def test_no_server_is_asked_to_pack_its_answer() -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        writer.write(OK + b"Content-Length: %d\r\n\r\n" % len(head) + head)
        writer.close()

    async def both() -> bytes:
        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with http.connect("key", 1, {}, "test", "") as connection:
            return (await http.ask(connection, "GET", url, None, seconds=5, limit=10_000)).content

    head = asyncio.run(both()).lower()
    assert b"accept-encoding: identity" in head
    assert b"authorization: bearer key" in head


def line(talk: Talk, client: Callable[[str], Awaitable[Any]]) -> str:
    with pytest.raises(RunError) as error:
        against(talk, client)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_judge_without_bounds_ends_the_run_in_one_line() -> None:
    def judge(**changes: Any) -> Callable[[str], Awaitable[Any]]:
        async def client(url: str) -> Any:
            judge = JudgeClient(JudgeConfig("judge", f"{url}/v1", "m", retries=1, backoff=0.0, **changes))
            async with judge.connect() as connection:
                return await judge.ask(connection, {"model": "m"})

        return client

    said = line(endless, judge(max_answer_mb=0.2))
    assert "/v1/chat/completions answered more than 0.2 MB: check that preference.url" in said
    assert "raise preference.max_answer_mb" in said
    said = line(dripping, judge(timeout_seconds=0.1))
    assert "failed 2 times (no answer within 0.1 seconds)" in said
    assert "raise preference.timeout_seconds" in said


def test_a_rollout_server_may_say_as_much_as_its_tokens_take() -> None:
    async def client(url: str) -> Any:
        server = ServerClient(url, 0.5, 1, None, 1, 0.0)
        async with server.connect() as connection:
            return await server.send(connection, "/v1/completions", {}, tokens=2000)

    body = b"x" * (ANSWER_BYTES + TOKEN_BYTES * 2000)
    assert len(against(says(OK, b"\r\n", body), client).content) == len(body)
    said = line(says(OK, b"\r\n", body, b"x"), client)
    assert "answered more than 3 MB, far more than was requested: check that generation.server_url" in said
    assert "failed 2 times (no answer within 0.5 seconds)" in line(dripping, client)
