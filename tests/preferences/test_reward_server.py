"""Reward models on a server: the scores are those of the same model loaded here, or the run ends in one line."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from published_models import random_model
from reward_serving import MODEL, RewardLike

from alignrun.config import Precision
from alignrun.errors import InputError, RunError
from alignrun.launch.compose import compose
from alignrun.preferences import reward_model
from alignrun.preferences.reward_server import RewardServer, RewardServerConfig, build
from alignrun.types import Prompt

TALK = Prompt(
    "user: Hi\n\nassistant: Hello.\n\nuser: And?",
    (
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "And?"},
    ),
)
PROMPTS: list[str] = ["How are you?", "How are you?", TALK, "x"]
ANSWERS = ["Well.", "I am well, thank you, and how are you?", "Nothing", "y"]

Serve = Callable[..., RewardLike]


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("ALIGNRUN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("REWARD_SERVER_API_KEY", raising=False)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("served")
    return {
        "decoder": random_model("llama", place / "decoder", num_labels=1),
        "several": random_model("qwen3", place / "several", num_labels=3),
        "encoder": random_model("deberta", place / "encoder", num_labels=1),
    }


@pytest.fixture
def serve(folders: dict[str, Path]) -> Iterator[Serve]:
    servers: list[RewardLike] = []

    def start(kind: str = "decoder") -> RewardLike:
        servers.append(RewardLike(folders[kind]))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


def make(server: RewardLike, **changes: Any) -> RewardServer:
    given = {"url": server.url, "model": MODEL, "retries": 1, "backoff": 0.01, "timeout_seconds": 10.0, "cache": False}
    made = build(RewardServerConfig(**{**given, **changes}))
    assert isinstance(made, RewardServer)
    return made


def loaded(folder: Path, **values: Any) -> torch.Tensor:
    """The scores of the model when it is loaded here."""
    config = reward_model.RewardModelConfig(path=str(folder), dtype=Precision.float32, device="cpu", **values)
    made = reward_model.build(config)
    assert isinstance(made, reward_model.PublishedReward)
    return made.rewards(PROMPTS, ANSWERS)


@pytest.mark.parametrize(
    ("endpoint", "kind", "path"),
    [
        ("pooling", "decoder", "/pooling"),
        ("classify", "decoder", "/classify"),
        ("sglang", "decoder", "/classify"),
        ("score", "encoder", "/score"),
        ("rerank", "encoder", "/v1/rerank"),
    ],
)
def test_scores_are_those_of_the_model_loaded_here(
    endpoint: str, kind: str, path: str, serve: Serve, folders: dict[str, Path]
) -> None:
    server = serve(kind)
    own = {"tokenizer": str(folders[kind])} if endpoint == "sglang" else {}
    config = compose(
        ["preference=reward_server", f"preference.url={server.url}/v1", f"preference.model={MODEL}"]
        + [f"preference.endpoint={endpoint}", "preference.cache=false"]
        + [f"preference.{name}={value}" for name, value in own.items()]
    )
    made = build(config.preference)
    assert isinstance(made, RewardServer)
    found, expected = made.rewards(PROMPTS, ANSWERS), loaded(folders[kind])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert expected.std() > 2e-3
    assert {asked for asked, _ in server.asked} == {path}
    first, second = made(PROMPTS[:1], ANSWERS[:1], ANSWERS[1:2]), made(PROMPTS[:1], ANSWERS[1:2], ANSWERS[:1])
    assert first.item() == pytest.approx(torch.sigmoid(expected[0] - expected[1]).item(), abs=1e-5)
    assert (first + second).item() == pytest.approx(1, abs=1e-6)


def test_the_conversation_is_sent_as_messages(serve: Serve) -> None:
    server = serve()
    make(server).rewards([TALK], ["Nothing"])
    ((_, body),) = server.asked
    assert body["messages"] == [*TALK.turns, {"role": "assistant", "content": "Nothing"}]
    assert (body["model"], body["use_activation"]) == (MODEL, False)
    make(server, extra={"use_activation": None, "priority": 3}).rewards([TALK], ["Nothing"])
    assert (server.asked[1][1].get("use_activation", "none"), server.asked[1][1]["priority"]) == ("none", 3)
    with pytest.raises(RunError, match="one ends with the assistant"):
        make(server).rewards([Prompt("x", TALK.turns[:2])], ["y"])


def test_a_tokenizer_of_ones_own_gives_token_ids(serve: Serve, folders: dict[str, Path]) -> None:
    server = serve()
    for endpoint in ("pooling", "classify"):
        given = compose(
            [
                "preference=reward_server",
                f"preference.endpoint={endpoint}",
                "preference.url=http://h",
                "preference.model=m",
            ]
        )
        made = make(server, endpoint=given.preference.endpoint, tokenizer=str(folders["decoder"]))
        torch.testing.assert_close(made.rewards(PROMPTS, ANSWERS), loaded(folders["decoder"]), rtol=1e-4, atol=1e-5)
    assert all(isinstance(body["input"][0], int) for _, body in server.asked)


def test_several_scores_are_weighted(serve: Serve, folders: dict[str, Path]) -> None:
    server = serve("several")
    found = make(server, weights=[1.0, 0.0, -0.5]).rewards(PROMPTS, ANSWERS)
    torch.testing.assert_close(
        found, loaded(folders["several"], labels={"LABEL_0": 1.0, "LABEL_2": -0.5}), rtol=1e-4, atol=1e-5
    )
    with pytest.raises(
        RunError, match=r"answered 3 scores where preference\.weights weighs 1: check preference\.endpoint"
    ):
        make(server).rewards(PROMPTS, ANSWERS)


def test_scores_are_kept_and_asked_for_once(serve: Serve) -> None:
    server = serve()
    first = make(server, cache="scores.sqlite")
    found = first.rewards([*PROMPTS, *PROMPTS], [*ANSWERS, *ANSWERS])
    assert len(server.asked) == 4
    assert first.counts() == {"reward_server/asked": 4.0, "reward_server/cached": 0.0}
    again = make(server, cache="scores.sqlite")
    assert torch.equal(again.rewards(PROMPTS, ANSWERS), found[:4])
    assert len(server.asked) == 4
    assert again.counts() == {"reward_server/asked": 0.0, "reward_server/cached": 4.0}


def test_it_waits_for_a_busy_server_and_keeps_what_was_answered(serve: Serve) -> None:
    server = serve()
    seen: list[str] = []

    def busy(path: str, body: Any) -> Any:
        seen.append(json.dumps(body))
        return (503, b"busy") if seen.count(seen[-1]) == 1 else None

    server.interfere = busy
    assert len(make(server).rewards(PROMPTS, ANSWERS)) == 4
    assert len(seen) == 8
    server.interfere = lambda path, body: (500, b"") if "Nothing" in json.dumps(body) else None
    with pytest.raises(RunError, match="failed 2 times"):
        make(server, cache="kept.sqlite", concurrency=1).rewards(PROMPTS, ANSWERS)
    server.interfere, server.asked = lambda path, body: None, []
    make(server, cache="kept.sqlite").rewards(PROMPTS, ANSWERS)
    assert len(server.asked) == 2


NONSENSE: list[tuple[Any, str]] = [
    (b"not JSON", "without 'data'"),
    ({"data": []}, "0 results to one question"),
    ({"data": [{"data": [1.0]}, {"data": [2.0]}]}, "2 results to one question"),
    ({"data": [{"data": []}]}, "not a finite number"),
    (b'{"data": [{"data": [NaN]}]}', "not a finite number"),
    (b'{"data": [{"data": [Infinity]}]}', "not a finite number"),
    ({"data": [{"data": [1e39]}]}, "not a finite number"),
    ({"data": [{"data": [10**400]}]}, "not a finite number"),
    ({"data": [{"data": [True]}]}, "not a finite number"),
    ({"data": [{"data": ["1.0"]}]}, "not a finite number"),
    ({"data": [{"data": "AACAPw=="}]}, "not a finite number"),
    ({"data": [{"data": None}]}, "without 'data'"),
    ({"data": [{"embedding": [1.0]}]}, "without 'data'"),
    ({"data": [[1.0]]}, "without 'data'"),
    ({"data": [{"data": [1.0, 2.0]}]}, "2 scores where preference.weights weighs 1"),
]


def test_impossible_answers_are_refused_in_one_line(serve: Serve) -> None:
    server = serve()
    for content, problem in NONSENSE:
        server.interfere = lambda path, body, content=content: (200, content)
        with pytest.raises(RunError) as error:
            make(server, cache="nonsense.sqlite").rewards(["p"], ["a"])
        assert problem in str(error.value), content
        assert "\n" not in str(error.value)
        assert "check preference.endpoint=pooling" in str(error.value)
    server.interfere = lambda path, body: None
    assert make(server, cache="nonsense.sqlite").counts()["reward_server/cached"] == 0
    assert len(make(server, cache="nonsense.sqlite").rewards(["p"], ["a"])) == 1


def test_refusals_say_what_to_change_and_hide_the_key(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve()
    with pytest.raises(RunError, match=r"The model `other` does not exist\.: check preference\.model=other"):
        make(server, model="other").rewards(["p"], ["a"])
    server.key = "sk-right"
    with pytest.raises(RunError, match=r"401.*: set REWARD_SERVER_API_KEY to a key that it takes"):
        make(server).rewards(["p"], ["a"])
    monkeypatch.setenv("REWARD_SERVER_API_KEY", "sk-right")
    make(server).rewards(["p"], ["a"])
    server.interfere = lambda path, body: (400, {"error": {"message": "maximum context length is 9; key sk-right"}})
    with pytest.raises(RunError, match=r"maximum context length is 9; key \[key\]: check preference.endpoint"):
        make(server).rewards(["p"], ["a"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["preference.url=localhost:8000"], "preference.url must be http(s)://HOST"),
        (["preference.model=''"], "preference.model is missing"),
        (["preference.endpoint=sglang"], "preference.tokenizer is missing: preference.endpoint=sglang applies no chat"),
        (["preference.endpoint=score", "preference.tokenizer=x"], "is not valid with preference.endpoint=score"),
        (["preference.temperature=0"], "preference.temperature must be positive"),
        (["preference.endpoint=pool"], "preference.endpoint"),
    ],
)
def test_settings_are_checked_before_anything_is_loaded(overrides: list[str], message: str) -> None:
    with pytest.raises(InputError) as error:
        compose(["preference=reward_server", "preference.url=http://h", "preference.model=m", *overrides])
    assert message in str(error.value)
