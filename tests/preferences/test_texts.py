"""Scores of texts: the library's own, each computed once, and the same wherever they are computed."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from alignrun.preferences import texts, workers
from alignrun.preferences.examples import last_number, same_first_letter
from alignrun.preferences.function import FunctionConfig, FunctionKind, FunctionPreference, FunctionReward, build
from alignrun.preferences.text_measures import TEXT_MEASURES
from alignrun.preferences.texts import TextScores
from alignrun.preferences.vader import Analyzer, compound
from alignrun.preferences.workers import Worker
from alignrun.types import Prompt

RULES = re.findall(
    r"\S+",
    "but BUT But kind of sort never so this without doubt least at very VERY no nor or the bomb shit bad BAD ass yeah "
    "right to die for just enough not isn't ISN'T !! ??? good GOOD great 😀 💔 bus stop hand mouth barely 0 :) don't",
)
calls: Counter[str] = Counter()
"""How often `counted` was asked about each completion."""


def counted(_prompt: str, completion: str) -> float:
    calls[completion] += 1
    return float(len(completion)) / 3


def test_the_linear_vader_is_the_librarys_to_the_last_bit() -> None:
    library, ours, draw = SentimentIntensityAnalyzer(), Analyzer(), random.Random(0)
    lexicon = list(library.lexicon)
    for _ in range(1500):
        vocabulary = (RULES, lexicon[:30], lexicon)
        words = [draw.choice(draw.choice(vocabulary)) for _ in range(draw.choice((0, 1, 2, 3, 4, 5, 8, 30, 60)))]
        text = " ".join(words)
        assert ours.polarity_scores(text) == library.polarity_scores(text), text
    idiom = "and so it was the kiss of death for us"  # two words after the one in the lexicon
    assert ours.polarity_scores(idiom) == library.polarity_scores(idiom)


def test_the_linear_vader_is_linear() -> None:
    """With a word in three from the lexicon: for the library, four times the words are sixteen times the work."""

    def seconds(words: int) -> float:
        text = " ".join(f"plain words{n} {('good', 'bad', 'but')[n % 3]}" for n in range(words // 3))
        spans = []
        for _ in range(3):
            started = time.process_time()
            analyzer.polarity_scores(text)
            spans.append(time.process_time() - started)
        return min(spans)

    analyzer = Analyzer()
    assert seconds(6000) < 9 * seconds(1500)


def test_equal_texts_are_scored_once_until_they_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "KEPT", 3)
    calls.clear()
    scores = TextScores.by_row(counted)
    asked = ["a", "bb", "a", "ccc", "bb"]
    expected = torch.tensor([len(text) / 3 for text in asked], dtype=torch.float64)
    assert torch.equal(scores(["x"] * 5, asked), expected)
    assert torch.equal(scores(["x"] * 5, asked), expected)
    assert calls == {"a": 1, "bb": 1, "ccc": 1}
    scores(["other"], ["a"])
    scores([Prompt("other", columns={"answer": 3})], ["a"])
    assert calls["a"] == 3, "another prompt is another question"
    scores(["x"], ["ccc"])
    scores(["x"], ["a"])
    assert calls["ccc"] == 1, "asked about last"
    assert calls["a"] == 4, "forgotten, since three are kept"
    assert scores([], []).shape == (0,)
    assert float(scores(["x"], ["\ud800"])) == 1 / 3, "half a surrogate pair is a text as well"


@pytest.fixture
def two_workers(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Worker, ...]]:
    made = (Worker(), Worker())
    monkeypatch.setattr(texts, "workers", lambda: made)
    monkeypatch.setattr(texts, "PAYS", 0)
    yield made
    for worker in made:
        worker.close()


def long_texts(count: int) -> list[str]:
    draw = random.Random(1)
    return [" ".join(draw.choice(RULES) for _ in range(40)) + str(number) for number in range(count)]


@pytest.mark.parametrize("ahead", [False, True])
def test_scores_are_the_same_wherever_they_are_computed(ahead: bool, two_workers: tuple[Worker, ...]) -> None:
    asked = [*long_texts(7), "\udfff" * 3]
    prompts = ["a prompt"] * len(asked)
    for name in ("sentiment", "readability"):
        function = TEXT_MEASURES[name].score
        scores = TextScores.by_row(function)
        if ahead:
            scores.expect(prompts[:5], asked[:5])
            scores.expect(prompts[3:], asked[3:])
        assert scores(prompts, asked).tolist() == [function("a prompt", text) for text in asked]
    assert all(worker.process is not None and worker.process.poll() is None for worker in two_workers)
    one = TextScores.by_row(compound)
    assert one(["x"], asked[:1]).tolist() == [compound("x", asked[0])], "fewer rows than workers"


def test_pure_functions_are_asked_once_and_anywhere(two_workers: tuple[Worker, ...]) -> None:
    name = "alignrun.preferences.examples:"
    prompts = [Prompt(f"p{row}", columns={"answer": str(row)}) for row in range(6)]
    asked = [f"it is {row // 2 * 2}" for row in range(6)]
    reward = build(FunctionConfig(function=f"{name}last_number", kind=FunctionKind.reward, pure=True))
    assert isinstance(reward, FunctionReward)
    assert reward.rewards(prompts, asked).tolist() == [1.0, 0.0] * 3
    pairs = build(FunctionConfig(function=f"{name}same_first_letter", pure=True))
    plain = FunctionPreference("it", same_first_letter)
    assert torch.equal(pairs(prompts, asked, [*prompts]), plain(prompts, asked, [*prompts]))
    assert all(worker.process is not None for worker in two_workers)
    unknown = [Prompt("p", columns={"answer": "2", "object": lambda: None}) for _ in range(6)]  # no pickle takes it
    assert reward.rewards(unknown, asked).tolist() == last_number(asked, ["2"] * 6)
    times: Counter[str] = Counter()

    def remembered(prompts: list[str], completions: list[str]) -> list[float]:
        times.update(completions)
        return [1.0] * len(prompts)

    for pure, expected in ((True, 1), (False, 2)):
        times.clear()
        function = FunctionReward("not:there", remembered, 1.0, pure=pure)
        assert function.rewards(["p"], ["a"]).tolist() == function.rewards(["p"], ["a"]).tolist() == [1.0]
        assert times["a"] == expected


def test_what_a_worker_cannot_do_is_done_here(two_workers: tuple[Worker, ...]) -> None:
    one, _ = two_workers
    asked = long_texts(6)
    expected = [compound("", text) for text in asked]
    assert TextScores.by_row(compound)([""] * 6, asked).tolist() == expected
    assert one.process is not None
    os.kill(one.process.pid, signal.SIGTERM)  # as a launcher sends to all: for the parent to handle
    os.kill(one.process.pid, signal.SIGINT)
    assert TextScores.by_row(compound)([""] * 6, asked).tolist() == expected
    assert one.process.poll() is None
    os.kill(one.process.pid, signal.SIGKILL)
    one.process.wait()
    assert TextScores.by_row(compound)([""] * 6, asked).tolist() == expected
    scores = TextScores.by_row(counted)  # this module cannot be imported there
    calls.clear()
    scores.expect([""] * 6, asked)
    assert scores([""] * 6, asked).tolist() == [len(text) / 3 for text in asked]
    assert set(calls.values()) == {1}


def test_what_takes_no_time_starts_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "workers", lambda: pytest.fail("started a process"))
    scores = TextScores.by_row(compound)
    assert len(scores(["x"] * 20, long_texts(20))) == 20
    scores.expect(["x"] * 3, ["not", "yet", "known"])
    assert len(scores(["y"] * 20, long_texts(20))) == 20


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads what Linux says of processes")
def test_a_worker_is_light_and_ends_with_its_parent() -> None:
    script = (
        "import sys\n"
        "from alignrun.preferences.workers import Worker\n"
        "worker = Worker()\n"
        "task = 'alignrun.preferences.worker:by_row_of', ('alignrun.preferences.vader:compound',)\n"
        "assert worker.ask(task, [['x'], ['a good day']]).result()[0] > 0.4\n"
        "print(worker.process.pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert "torch" not in Path(f"/proc/{pid}/maps").read_text()
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 10
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not alive(pid)


def alive(pid: int) -> bool:
    """Whether there is such a process, and not only its exit code."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_as_many_workers_as_there_are_other_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    for cores, expected in ((1, 0), (2, 1), (64, workers.MOST)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: set(range(cores)), raising=False)
        assert len(workers.workers.__wrapped__()) == expected
