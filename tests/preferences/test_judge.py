"""The judge against a real server on this machine: verdicts, patience, the cache, and what must never leak."""

import json
import logging
import math
import os
import re
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from helpers import answer

from alignrun import cli, http
from alignrun.errors import InputError, RunError
from alignrun.preferences.judge.config import JudgeConfig
from alignrun.preferences.judge.judge import JudgePreference, build, fill
from alignrun.training.signals import stop_requested

KEY = "sk-secret-0123456789"


class Server(ThreadingHTTPServer):
    """Answers what `respond` makes of (first, second): a text, a reply's JSON, a status with headers, or nothing."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, respond: Callable[[str, str], Any], port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.respond = respond
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.in_flight = self.peak = 0
        self.lock = threading.Lock()
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    @property
    def pairs(self) -> list[list[str]]:
        """What was asked, as (prompt, first, second)."""
        return [body["messages"][-1]["content"].split("|") for body in self.bodies]

    def stop(self) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, *_: Any) -> None:
        """Clients that have gone are no news."""


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        server = self.server
        with server.lock:
            server.in_flight += 1
            server.peak = max(server.peak, server.in_flight)
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.bodies.append(body)
            server.headers.append(dict(self.headers))
        assert self.path == "/v1/chat/completions"
        try:
            status, headers, reply = 200, {}, server.respond(*shown(body["messages"][-1]["content"]))
        finally:
            with server.lock:
                server.in_flight -= 1
        if reply is None:
            self.close_connection = True
            return
        if isinstance(reply, tuple):
            status, headers, reply = reply
        if isinstance(reply, str):
            reply = completion(reply)
        answer(self, status, headers, reply)

    def log_message(self, *_: Any) -> None:
        """Quiet."""


def shown(content: str) -> list[str]:
    """First and second completion in a message, from the tests' template or from the default one."""
    found = re.search(r"\n\[Answer 1\]\n(.*)\n\n\[Answer 2\]\n(.*)\n\n\[Verdict\]\n", content, re.DOTALL)
    return list(found.groups()) if found else content.split("|")[-2:]


def completion(text: Any, tokens: dict[str, float] | None = None, finish: str = "stop") -> dict[str, Any]:
    """A chat completion, with the probabilities of its first token."""
    choice: dict[str, Any] = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text}}
    if tokens is not None:
        top = [{"token": token, "logprob": math.log(share), "bytes": None} for token, share in tokens.items()]
        choice["logprobs"] = {"content": [{**top[0], "top_logprobs": top}, {"token": "x", "top_logprobs": []}]}
    return {"id": "1", "object": "chat.completion", "choices": [choice], "usage": {}}


def longer(first: str, second: str) -> str:
    return "1" if len(first) > len(second) else "2" if len(first) < len(second) else "0"


Serve = Callable[..., Server]


@pytest.fixture
def serve() -> Iterator[Serve]:
    servers: list[Server] = []

    def start(respond: Callable[[str, str], Any] = longer, port: int = 0) -> Server:
        servers.append(Server(respond, port))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No proxy, no key and no cache of the machine's."""
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("ALIGNRUN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def settings(url: str, **changes: Any) -> JudgeConfig:
    return JudgeConfig(
        **{
            "url": url,
            "model": "m",
            "template": "{prompt}|{first}|{second}",
            "timeout_seconds": 5.0,
            "retries": 2,
            "backoff": 0.01,
            "cache": False,
            **changes,
        }
    )


def make(server: Server, **changes: Any) -> JudgePreference:
    return build(settings(server.url, **changes))


def ask(preference: JudgePreference, *pairs: tuple[str, str], prompt: str = "p") -> list[float]:
    return preference([prompt] * len(pairs), [one for one, _ in pairs], [other for _, other in pairs]).tolist()


def refused(preference: JudgePreference, *pairs: tuple[str, str]) -> str:
    """The one line in which it gives up."""
    with pytest.raises(RunError) as error:
        ask(preference, *(pairs or (("a", "bb"),)))
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 700
    return str(error.value)


# What is asked, and what is made of the answers


def test_both_orders_are_asked_and_averaged(serve: Serve) -> None:
    server = serve()
    preference = make(server)
    result = preference(["p", "q", "r"], ["long", "a", "no"], ["x", "bb", "on"])
    assert result.dtype == torch.float32
    assert result.device.type == "cpu"
    assert result.tolist() == [1.0, 0.0, 0.5]
    assert sorted(server.pairs) == sorted(
        [
            ["p", "long", "x"],
            ["p", "x", "long"],
            ["q", "a", "bb"],
            ["q", "bb", "a"],
            ["r", "no", "on"],
            ["r", "on", "no"],
        ]
    )
    body = server.bodies[0]
    assert body["model"] == "m"
    assert body["temperature"] == 0
    assert body["max_tokens"] == 8
    assert body["logprobs"] is True
    assert body["top_logprobs"] == 20
    assert [message["role"] for message in body["messages"]] == ["user"]
    assert (preference.stats.asked, preference.stats.cached, preference.stats.unclear) == (6, 0, 0)


def test_a_judge_that_looks_at_the_order_alone_has_no_preference(serve: Serve) -> None:
    assert ask(make(serve(lambda *_: "1")), ("a", "b"), ("b", "c")) == [0.5, 0.5]


def test_antisymmetry_holds_whatever_the_judge_says(serve: Serve) -> None:
    def erratic(first: str, second: str) -> Any:
        share = (hash((first, second)) % 97 + 1) / 99
        return completion("1", {"1": share, "2": 1 - share})

    preference = make(serve(erratic))
    pairs = [(f"a{n}", f"b{n % 7}") for n in range(40)]
    forward = torch.tensor(ask(preference, *pairs))
    backward = torch.tensor(ask(preference, *((other, one) for one, other in pairs)))
    assert torch.allclose(forward + backward, torch.ones(40), atol=1e-6)
    assert len(set(forward.tolist())) > 10


def test_equal_completions_tie_unasked_and_equal_questions_are_asked_once(serve: Serve) -> None:
    server = serve()
    assert ask(make(server), ("same", "same")) == [0.5]
    assert make(server)([], [], []).tolist() == []
    assert server.bodies == []
    assert ask(make(server), ("aa", "b"), ("b", "aa"), ("aa", "b"), ("c", "c")) == [1.0, 0.0, 1.0, 0.5]
    assert sorted(server.pairs) == [["p", "aa", "b"], ["p", "b", "aa"]]


def test_the_request_can_be_extended_and_fields_taken_out(serve: Serve) -> None:
    server = serve()
    extra = {"max_tokens": None, "max_completion_tokens": 9, "chat_template_kwargs": {"enable_thinking": False}}
    ask(make(server, extra=extra, use_logprobs=False, system_prompt="Be fair."), ("a", "bb"))
    body = server.bodies[0]
    assert body["max_completion_tokens"] == 9
    assert body["chat_template_kwargs"] == {"enable_thinking": False}
    assert not {"max_tokens", "logprobs", "top_logprobs"} & set(body)
    assert body["messages"][0] == {"role": "system", "content": "Be fair."}


def test_the_first_token_gives_the_probability(serve: Serve) -> None:
    server = serve(lambda first, _: completion("1", {"1": 0.6, " 2": 0.2, "The": 0.2} if first == "a" else {"2": 1.0}))
    assert ask(make(server), ("a", "b")) == pytest.approx([0.5 * (0.75 + 1 - 0)])


def test_without_logprobs_the_text_decides(serve: Serve) -> None:
    replies = {
        "none": completion("1"),
        "null": completion("1") | {"choices": [completion("1")["choices"][0] | {"logprobs": None}]},
        "other": completion("**1**", {"**": 0.9, "1": 0.05, "2": 0.05}),
        "odd": {"choices": [completion("1")["choices"][0] | {"logprobs": {"content": [{"top_logprobs": [{}, 7]}]}}]},
        "huge": {
            "choices": [
                completion("1")["choices"][0]
                | {"logprobs": {"content": [{"top_logprobs": [{"token": "2", "logprob": -(10**400)}]}]}}
            ]
        },
    }
    server = serve(lambda first, second: replies.get(first, "2"))
    assert ask(make(server), *((name, "x") for name in replies)) == [1.0] * 5


def test_placeholders_and_braces_in_the_texts_stay_what_they_are(serve: Serve) -> None:
    texts = ("{first} {second} {prompt} {0} {} {{x}} %s \\1", "{second}{first}", "{prompt} ünï ☃ 🦊 \u0000")
    assert fill("<{prompt}|{first}|{second}> {other} {{}}", texts) == f"<{'|'.join(texts)}> {{other}} {{{{}}}}"
    server = serve()
    make(server)([texts[0]], [texts[1]], [texts[2]])
    assert sorted(server.pairs) == sorted([list(texts), [texts[0], texts[2], texts[1]]])


def test_half_a_surrogate_pair_is_sent_as_valid_text(serve: Serve) -> None:
    server = serve()
    ask(make(server, cache="c.sqlite"), ("a\ud800", "b"))
    assert sorted(server.pairs) == [["p", "a?", "b"], ["p", "b", "a?"]]


def test_the_default_template_names_everything(serve: Serve) -> None:
    text = fill(JudgeConfig("judge", "http://h/v1", "m").template, ("PROMPT", "ONE", "OTHER"))
    assert text.index("PROMPT") < text.index("ONE") < text.index("OTHER")


# Nonsense


NONSENSE = [
    b"",
    b"not JSON",
    b"\xff\xfe{",
    b"[" * 100_000,
    b"null",
    {"choices": []},
    {"choices": None},
    {"choices": [None]},
    {"error": "x"},
    {"choices": [{"message": None}]},
    {"choices": {"0": 1}},
    completion(""),
    completion(None),
    completion(["1"]),
    completion("I would rather not say"),
]


def test_nonsense_within_what_is_tolerated_counts_as_a_tie(serve: Serve) -> None:
    for nonsense in NONSENSE:
        server = serve(lambda first, _, nonsense=nonsense: nonsense if first == "odd" else "2")
        preference = make(server, max_unclear=0.5, cache="answers.sqlite")
        assert ask(preference, ("odd", "other")) == [pytest.approx(0.75)], nonsense  # ½ (½ + 1 − 0)
        assert (preference.stats.asked, preference.stats.unclear) == (2, 1)
        # An unclear answer is not kept: it is asked for again, and only it.
        assert ask(preference, ("odd", "other")) == [pytest.approx(0.75)]
        assert (preference.stats.asked, preference.stats.cached, preference.stats.unclear) == (3, 1, 2)


def test_too_much_nonsense_ends_the_run_in_one_line(serve: Serve) -> None:
    server = serve(lambda first, second: "no\n\nidea " * 100 if "odd" in first else longer(first, second))
    pairs = [("odd", "a"), ("bb", "c"), ("dd", "e"), ("ff", "g"), ("hh", "i")]
    assert ask(make(server, max_unclear=0.1), *pairs)[1:] == [1.0] * 4
    message = refused(make(server, max_unclear=0.04), *pairs)
    assert "1 of 10 answers of m are no verdict, as 'no idea no idea" in message
    assert "preference.template" in message
    assert "'" in message.partition("as '")[2][:110], "the answer is truncated"
    assert "as ''" in refused(make(serve(lambda *_: ""), max_unclear=0.0))


def test_one_strange_answer_of_few_ends_nothing(serve: Serve) -> None:
    server = serve(lambda first, second: "no idea" if first == "odd" else longer(first, second))
    assert ask(make(server, max_unclear=0.1), ("odd", "a")) == [0.75]  # one order was clear


# Patience


def test_requests_run_side_by_side_up_to_the_limit(serve: Serve) -> None:
    def slow(first: str, second: str) -> str:
        time.sleep(0.05)
        return longer(first, second)

    server = serve(slow)
    started = time.perf_counter()
    assert ask(make(server, concurrency=8), *((f"a{n}", "b") for n in range(16))) == [1.0] * 16
    assert time.perf_counter() - started < 32 * 0.05 / 2
    assert 4 <= server.peak <= 8
    server.peak = 0
    ask(make(server, concurrency=1), ("aa", "b"), ("cc", "d"))
    assert server.peak == 1


def flaky(failure: Any, times: int) -> Callable[[str, str], Any]:
    """Fails so many times for every question before it answers."""
    seen: dict[tuple[str, str], int] = {}

    def respond(first: str, second: str) -> Any:
        seen[first, second] = seen.get((first, second), 0) + 1
        if seen[first, second] > times:
            return longer(first, second)
        return failure() if callable(failure) else failure

    return respond


def overslept() -> str:
    time.sleep(1)
    return "1"


@pytest.mark.parametrize(
    "failure", [*((status, {}, b"busy") for status in (408, 409, 429, 500, 502, 503, 529)), None, overslept]
)
def test_it_tries_again(serve: Serve, failure: Any) -> None:
    server = serve(flaky(failure, 2))
    preference = make(server, timeout_seconds=0.4 if failure is overslept else 5.0)
    assert ask(preference, ("a", "bb")) == [0.0]
    assert len(server.bodies) == 6
    assert preference.stats.asked == 2


def waited(serve: Serve, retry_after: str, **changes: Any) -> float:
    preference = make(serve(flaky((429, {"Retry-After": retry_after}, b""), 1)), **changes)
    started = time.perf_counter()
    assert ask(preference, ("a", "bb")) == [0.0]
    return time.perf_counter() - started


def test_retry_after_is_honoured_and_capped(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    assert waited(serve, "0.3") >= 0.3
    monkeypatch.setattr(http, "LONGEST_WAIT", 0.02)
    assert waited(serve, "99999") < 5
    assert waited(serve, "soon", backoff=99.0) < 5


@pytest.mark.parametrize("value", ["soon", "", "-5", "nan", formatdate(1e9, usegmt=True), "Wed, 99 Foo", "1 Jan 2999"])
def test_an_invalid_retry_after_is_ignored(value: str) -> None:
    assert http.retry_after(httpx2.Response(429, headers={"Retry-After": value})) == 0


def test_a_retry_after_may_be_seconds_or_a_date() -> None:
    assert http.retry_after(httpx2.Response(429)) == 0
    assert http.retry_after(httpx2.Response(429, headers={"Retry-After": "7"})) == 7
    date = formatdate(time.time() + 100, usegmt=True)
    assert 90 < http.retry_after(httpx2.Response(429, headers={"Retry-After": date})) <= 100


def test_the_waits_double_and_differ(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr(http, "sleep", sleep)
    server = serve(lambda *_: (503, {}, b""))
    state = __import__("random").getstate()
    refused(make(server, retries=5, backoff=2.0, concurrency=1))
    assert len(waits) == 5
    assert all(2.0**n <= wait <= 2.0 ** (n + 1) for n, wait in enumerate(waits))
    assert len({wait / 2**n for n, wait in enumerate(waits)}) > 1
    assert __import__("random").getstate() == state, "the user's random numbers are left alone"


def test_it_gives_up_in_one_line(serve: Serve) -> None:
    server = serve(lambda *_: (500, {}, {"error": {"message": "out of\n memory " * 99}}))
    message = refused(make(server))
    assert f"{server.url}/chat/completions failed 3 times (500: out of memory out of" in message
    assert "alignrun resume RUN" in message
    assert "within 0.1 seconds" in refused(make(serve(lambda *_: overslept()), timeout_seconds=0.1, retries=0))
    closed = serve()
    closed.stop()
    assert "failed 3 times" in refused(make(closed))
    assert "failed 1 times" in refused(make(serve(lambda *_: None), retries=0))
    assert "failed 1 times" in refused(build(settings(f"http://{'a' * 70}.invalid/v1", retries=0)))


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (401, "set OPENAI_API_KEY"),
        (403, "the key in OPENAI_API_KEY"),
        (404, "check preference.model=m"),
        (400, "preference.use_logprobs=false"),
        (422, "preference.extra"),
        (304, "check"),
    ],
)
def test_a_refusal_is_reported_at_once(serve: Serve, status: int, expected: str) -> None:
    server = serve(lambda *_: (status, {}, b"" if status == 304 else {"error": {"message": "it is\nso"}}))
    message = refused(make(server, concurrency=1, retries=9, backoff=9.0))
    assert expected in message
    assert (
        f"{server.url}/chat/completions answered {status}: {'it is so' if status != 304 else 'Not Modified'}" in message
    )
    assert len(server.bodies) == 1


def test_broken_proxy_settings_are_reported(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_PROXY")
    monkeypatch.setenv("ALL_PROXY", "carrier-pigeon://coop")
    assert "check the proxy" in refused(make(serve()))


@pytest.fixture
def heeds_ctrl_c() -> Iterator[None]:
    """As a terminal's processes do; those that a script puts into the background do not."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeds_ctrl_c")
@pytest.mark.parametrize("within_a_run", [False, True])
def test_ctrl_c_stops_it_promptly(serve: Serve, within_a_run: bool) -> None:
    """Within a run the first signal waits for the end of the step, and the second acts at once."""
    server = serve(lambda *_: time.sleep(3))
    preference = make(server, timeout_seconds=60.0)
    timers = [threading.Timer(0.2 + 0.5 * n, os.kill, (os.getpid(), signal.SIGINT)) for n in range(1 + within_a_run)]
    started = time.perf_counter()

    for timer in timers:
        timer.start()
    with stop_requested() if within_a_run else nullcontext(), pytest.raises(KeyboardInterrupt):
        ask(preference, *((f"a{n}", "b") for n in range(9)))
    assert time.perf_counter() - started < 2
    for timer in timers:
        timer.join()


# The cache


def test_nothing_is_asked_twice_across_instances(serve: Serve, tmp_path: Path) -> None:
    server = serve(lambda first, second: completion("1", {"1": 0.7, "2": 0.3}) if first > second else "2")
    file = tmp_path / "as" / "deep" / "answers.sqlite"
    first, second = make(server, cache=str(file)), make(server, cache=str(file))
    expected = ask(first, ("b", "a"), ("d", "c"))
    assert (first.stats.asked, first.stats.cached) == (4, 0)
    server.stop()  # the second time, nobody is there to answer
    assert ask(second, ("b", "a"), ("d", "c"), ("a", "b")) == [*expected, pytest.approx(1 - expected[0])]
    assert (second.stats.asked, second.stats.cached) == (0, 4)


def test_all_that_determines_an_answer_is_in_its_key(serve: Serve, tmp_path: Path) -> None:
    server, other = serve(), serve()
    file = str(tmp_path / "answers.sqlite")
    changes: list[dict[str, Any]] = [
        {},
        {"model": "n"},
        {"template": "{prompt}?|{first}|{second}"},
        {"system_prompt": "Be fair."},
        {"max_tokens": 4},
        {"use_logprobs": False},
        {"extra": {"seed": 1}},
    ]
    for number, change in enumerate(changes, start=1):
        ask(make(server, cache=file, **change), ("a", "bb"))
        assert len(server.bodies) == 2 * number, change
    ask(make(other, cache=file), ("a", "bb"))
    assert len(other.bodies) == 2
    # How patiently it is asked determines no answer.
    ask(make(server, cache=file, retries=0, timeout_seconds=9.0, concurrency=1, max_unclear=1.0), ("a", "bb"))
    assert len(server.bodies) == 2 * len(changes)


def test_what_was_answered_before_a_failure_is_kept(serve: Serve, tmp_path: Path) -> None:
    broken = threading.Event()
    broken.set()
    server = serve(lambda first, second: None if broken.is_set() and "z" in first + second else longer(first, second))
    cache = str(tmp_path / "answers.sqlite")
    pairs = [("aa", "b"), ("cc", "d"), ("ee", "f"), ("zz", "y")]
    refused(make(server, cache=cache, concurrency=1, retries=0), *pairs)
    asked = len(server.bodies)
    broken.clear()
    preference = make(server, cache=cache)
    assert ask(preference, *pairs) == [1.0] * 4
    assert preference.stats.cached == asked - 1
    assert preference.stats.asked == 8 - (asked - 1)
    assert asked >= 4


def test_the_cache_is_in_the_users_folder_or_nowhere(serve: Serve, tmp_path: Path) -> None:
    server = serve()
    ask(make(server, cache=True), ("a", "bb"))
    assert (tmp_path / "cache" / "judge.sqlite").is_file()
    ask(make(server, cache=True), ("a", "bb"))
    assert len(server.bodies) == 2
    ask(make(server, cache=False), ("a", "bb"))
    assert len(server.bodies) == 4
    assert list(Path().iterdir()) == []


def test_a_damaged_cache_is_reported_in_one_line(serve: Serve, tmp_path: Path) -> None:
    server = serve()
    damaged, foreign, folder = (tmp_path / name for name in ("damaged", "foreign", "folder"))
    damaged.write_bytes(b"this is no database" * 100)
    folder.mkdir()
    with closing(sqlite3.connect(foreign)) as connection:
        connection.execute("CREATE TABLE answers (other TEXT)")
    for file in (damaged, foreign, folder, damaged / "below"):
        with pytest.raises(InputError, match=r"preference\.cache: .* cannot be used") as error:
            make(server, cache=str(file))
        assert str(file) in str(error.value)
        assert "\n" not in str(error.value)
    assert damaged.read_bytes() == b"this is no database" * 100, "what may be something else is not touched"


def test_a_cache_that_fails_during_a_run_is_reported_and_a_garbled_row_asked_again(
    serve: Serve, tmp_path: Path
) -> None:
    server = serve()
    file = tmp_path / "answers.sqlite"
    preference = make(server, cache=str(file))
    ask(preference, ("a", "bb"))
    with closing(sqlite3.connect(file)) as connection:
        for garbled in ("{", "7", '["1"]', '["1", false, [[1]]]'):
            connection.execute("UPDATE answers SET answer = ?", (garbled,))
            connection.commit()
            before = len(server.bodies)
            assert ask(preference, ("a", "bb")) == [0.0]
            assert len(server.bodies) == before + 2
        connection.execute("DROP TABLE answers")
        connection.commit()
    assert "preference.cache" in refused(preference)


# The key


def everything_in(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_the_key_is_sent_and_shown_nowhere(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MY_KEY", f" {KEY}\n")
    caplog.set_level(logging.DEBUG)
    folder = tmp_path / "answers"
    changes: dict[str, Any] = {
        "key_variable": "MY_KEY",
        "cache": str(folder / "c.sqlite"),
        "retries": 0,
        "max_unclear": 0.0,
    }
    server = serve(lambda *_: completion(f"1, and {KEY}", {"1": 0.8, KEY: 0.2}))
    preference = make(server, **changes)
    assert ask(preference, ("a", "b")) == [0.5]
    assert {headers["Authorization"] for headers in server.headers} == {f"Bearer {KEY}"}
    assert KEY not in json.dumps(server.bodies)
    messages = [
        refused(make(serve(reply), **changes), ("c", "d"))
        for reply in (
            lambda *_: (401, {}, {"error": {"message": f"wrong key {KEY}"}}),
            lambda *_: (400, {}, f"bad header Bearer {KEY}".encode()),
            lambda *_: (500, {}, ("x" * 190 + KEY).encode()),
            lambda *_: f"neither: {KEY}",
        )
    ]
    assert all("key" in message for message in messages[:2])
    shown = "\n".join(messages) + caplog.text + repr(preference.__dict__["_config"])
    assert KEY[:12] not in shown
    assert "chat/completions" in caplog.text, "the requests were logged"
    leads_on = (302, {"Location": f"http://elsewhere/?key={KEY}"}, b"")
    assert "http://elsewhere/?key=[key]" in refused(make(serve(lambda *_: leads_on), **changes))
    assert KEY.encode() not in everything_in(folder)
    assert b"and [key]" in everything_in(folder)


def test_without_a_key_no_header_is_sent(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve()
    ask(make(server), ("a", "bb"))
    monkeypatch.setenv("OPENAI_API_KEY", " ")
    ask(make(server), ("a", "bb"))
    assert not any("Authorization" in headers for headers in server.headers)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-ä")
    with pytest.raises(InputError, match="OPENAI_API_KEY") as error:
        make(server)
    assert "sk-" not in str(error.value)


def test_a_redirect_is_not_followed(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for status in (301, 302, 303, 307, 308):
        other = serve()
        location = f"{other.url}/chat/completions"
        message = refused(make(serve(lambda *_, s=status, to=location: (s, {"Location": to}, b""))))
        assert f"set preference.url to where it leads, {location}" in message
        assert other.bodies == []


# A whole run

RUN = (
    "experiment=smoke",
    "preference=judge",
    "preference.model=m",
    "preference.backoff=0.01",
    "algo.samples_per_prompt=2",
    "train.batch_size=2",
    "data.eval_size=4",
)


def prefers_letters(first: str, second: str) -> Any:
    """What can be learned in principle, and costs nothing to say."""
    share = 1 / (1 + math.exp(sum(map(str.isalpha, second)) - sum(map(str.isalpha, first))))
    return completion("1", {"1": share, "2": 1 - share}) if 0.01 < share < 0.99 else "1" if share > 0.5 else "2"


def measured(run: Path) -> dict[str, float]:
    """The summary of a run but for how its answers came about, which depends on the cache."""
    summary = json.loads((run / "summary.json").read_text())
    return {name: value for name, value in summary.items() if not name.startswith("judge/")}


def test_a_run_is_judged(serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server = serve(prefers_letters)
    arguments = [*RUN, f"preference.url={server.url}"]
    assert cli.main([*arguments, f"run.dir={tmp_path / 'run'}"]) == 0
    asked = len(server.bodies)
    assert asked > 20
    assert "[Answer 2]" in server.bodies[0]["messages"][0]["content"]
    assert KEY.encode() not in everything_in(tmp_path)
    # The same run again: every answer is known.
    server.stop()
    assert cli.main([*arguments, f"run.dir={tmp_path / 'again'}"]) == 0
    summaries = [measured(tmp_path / name) for name in ("run", "again")]
    assert summaries[0] == summaries[1]


def test_a_run_outlives_its_judge(serve: Serve, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The judge dies in the middle of a step: what is saved goes on to the same end as a run without the accident."""
    server = serve(prefers_letters)
    url = f"preference.url={server.url}"
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert cli.main([*RUN, url, "preference.cache=false", f"run.dir={whole}"]) == 0
    limit = 20
    server.bodies.clear()
    server.respond = lambda first, second: prefers_letters(first, second) if len(server.bodies) < limit else None
    capsys.readouterr()
    assert cli.main([*RUN, url, "preference.concurrency=1", "preference.retries=1", f"run.dir={broken}"]) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("alignrun: error: ")]
    assert len(errors) == 1
    assert "preference=judge" in errors[0]
    saved = [path.name for path in (broken / "checkpoints").iterdir()]
    assert saved
    assert "step-3" not in saved
    server.stop()
    answered = limit - 1
    back = serve(prefers_letters, server.server_port)
    assert cli.main(["resume", str(broken)]) == 0
    assert measured(broken) == measured(whole)
    rows = [json.loads(line) for line in (broken / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3]
    repeated = {json.dumps(body) for body in server.bodies[:answered]} & {json.dumps(body) for body in back.bodies}
    assert not repeated, "what was answered before is not asked again"
