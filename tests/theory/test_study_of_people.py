"""The study of people's preferences: its tables are means over the pairs and prompts that they say."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from forked import Job
from studies import bootstrap, people, people_data, people_report, training
from studies.people_report import Measurements, against_another

from alignrun.errors import InputError

ROOT = Path(__file__).parents[2]

JUDGED = {
    "reward": [
        [[0.5, 0.8, 0.6], [0.2, 0.5, 0.1], [0.4, 0.9, 0.5]],
        [[0.5, 0.7, 0.4], [0.3, 0.5, 0.3], [0.6, 0.7, 0.5]],
    ],
    "pair": [[[0.5, 1.0, 0.8], [0.0, 0.5, 0.3], [0.2, 0.7, 0.5]], [[0.5, 0.5, 0.4], [0.5, 0.5, 0.3], [0.6, 0.7, 0.5]]],
}
MEAN = [[[0.5, 0.9, 0.7], [0.1, 0.5, 0.2], [0.3, 0.8, 0.5]], [[0.5, 0.6, 0.4], [0.4, 0.5, 0.3], [0.6, 0.7, 0.5]]]


def found() -> Measurements:
    """Five pairs of three prompts, one of them a tie, and the candidates of two prompts."""
    half = {
        "prompts": [0, 1, 1, 2, 0],
        "labels": [1.0, 0.667, 0.5, 1.0, 1.0],
        "longer": [1, -1, -1, 0, 1],
        "distinct": 5,
    }
    reward = [
        {"probabilities": [0.9, 0.4, 0.1, 0.5, 0.2], "choices": [0, 2]},
        {"probabilities": [0.6, 0.8, 0.9, 0.7, 0.7], "choices": [2, 2]},
    ]
    pair = [{"probabilities": [0.5, 0.5, 0.5, 0.5, 0.5], "choices": [1, 0]}]
    return Measurements({"tested": half, "judged": JUDGED}, {"reward": reward, "pair": pair})


def test_accuracy_is_a_mean_over_decided_pairs() -> None:
    half = found().half("tested")
    weights = half.weights(half.decided)
    assert weights.tolist() == [2, 1, 1]
    accuracy = half.right(found().probabilities("reward"), half.decided)
    mean, _, _ = bootstrap.interval(accuracy, weights=weights)
    assert mean == pytest.approx(np.mean([[1, 0, 0.5, 0], [1, 1, 1, 1]]))
    mean, low, high = bootstrap.interval(half.longer_right, weights=weights)
    assert mean == pytest.approx(np.mean([1, 0, 0.5, 1]))
    assert low < mean < high
    worse = half.longer_is_worse
    assert worse.tolist() == [False, True, False, False, False], "a tie has no worse answer"
    assert half.right(found().probabilities("reward"), worse).tolist() == [[0], [1]]


def test_choices_are_compared_prompt_by_prompt() -> None:
    one = found()
    np.testing.assert_allclose(one.judged(), MEAN)
    expected = [[[MEAN[0][0][1], MEAN[1][2][0]]], [[MEAN[0][2][1], MEAN[1][2][0]]]]
    np.testing.assert_allclose(one.between("reward", "pair"), expected)
    np.testing.assert_allclose(one.between("pair", "reward"), 1 - np.array(expected).transpose(1, 0, 2))
    others = [np.mean(MEAN[0][1][:1] + MEAN[0][1][2:]), np.mean(MEAN[1][0][1:])]
    np.testing.assert_allclose(against_another(one.judged(), one.choices("pair")), [others])
    np.testing.assert_allclose(one.judged("pair"), JUDGED["reward"])


def test_prompts_are_drawn_with_all_their_pairs() -> None:
    """The interval of a weighted mean, against a loop that draws prompts."""
    rng = np.random.default_rng(0)
    values, weights = rng.normal(size=12), rng.integers(1, 9, size=12).astype(float)
    _, low, high = bootstrap.interval(values, weights=weights)
    draws = []
    for _ in range(4000):
        drawn = rng.integers(12, size=12)
        draws.append(np.average(values[drawn], weights=weights[drawn]))
    assert (low, high) == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])), abs=0.06)


def test_what_the_results_quote_is_on_the_page() -> None:
    """Every interval, and a difference to the longer answer with its sign turned."""
    heading = "## Three kinds of feedback model"
    section = (ROOT / "docs/results.md").read_text("utf-8").partition(heading)[2].partition("\n## ")[0]
    page = (ROOT / "docs/people.md").read_text("utf-8").replace("**", "")
    page = page.replace("-0.111 (-0.202 to -0.021)", "0.111 (0.021 to 0.202)")
    quoted = re.findall(r"0\.\d{3} \(0\.\d{3} to 0\.\d{3}\)", " ".join(section.split()))
    assert len(quoted) > 10
    assert [number for number in quoted if number not in page] == []


def voted(
    instructions: range, answers: tuple[str, ...] = ("Yes.", "No.", "Perhaps, or not.")
) -> list[dict[str, object]]:
    """Rows as PandaLM publishes them: every pair of three answers, of which three people prefer the longer."""
    rows = []
    for number in instructions:
        for first, second in ((0, 1), (1, 2), (0, 2)):
            longer = 1 if len(answers[first]) > len(answers[second]) else 2
            votes = {f"annotator{person}": longer for person in (1, 2, 3)}
            texts = {"response1": answers[first], "response2": answers[second]}
            rows.append({"instruction": f"Is {number} prime?", "input": "", **texts, **votes})
    return rows


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Runs of one step, in forked processes; the folders of those that were trained."""
    ran = []

    def forked(*arguments: str, log: Path, at_once: int = 1) -> None:
        codes, said = Job(*arguments).wait()
        assert codes == [0], said
        ran.append(log.stem)

    monkeypatch.setattr(training, "alignrun", forked)
    steps = ("train.steps=1", "optim.warmup_steps=0", "train.batch_size=2", "train.checkpoint_every=0")
    heads = {name: people.HEADS[name] for name in ("reward", "embedding")}
    for name, value in {"TRAINING": steps, "HEADS": heads, "ASKED": 2, "MODEL": ("model=tiny",)}.items():
        for module in (people, people_data, people_report):
            monkeypatch.setattr(module, name, value, raising=False)
    return ran


def test_a_study_trains_and_asks_what_is_missing_and_mixes_nothing(small: list[str], tmp_path: Path) -> None:
    data, other = tmp_path / "people.json", tmp_path / "other.json"
    data.write_text(json.dumps(voted(range(8))))
    other.write_text(json.dumps(voted(range(2, 12))))

    def run(path: Path = data, *, folder: str = "runs", results: str = "people", seeds: tuple[int, ...] = (0,)) -> None:
        people.run("pandalm", path, tmp_path / folder, tmp_path / results, seeds, 2, ("model=tiny",))

    run()
    assert sorted(small) == ["embedding-0", "judge-embedding", "judge-reward", "reward-0"]
    one = people_report.load(tmp_path / "people", "pandalm")
    tested, seen = one.half("tested"), one.half("seen")
    assert len(tested.labels) + len(seen.labels) == 24
    assert tested.distinct == len(tested.labels)
    assert tested.longer_right.mean() == 1
    assert one.models["reward"][0]["intransitive"] is None
    assert one.models["embedding"][0]["intransitive"][-1] == len(tested.labels) / 3
    small.clear()
    run(seeds=(0, 1))
    assert sorted(small) == ["embedding-1", "reward-1"], "what has been measured is not trained again"
    people_report.write(tmp_path / "people")
    page = (tmp_path / "people.md").read_text()
    assert f"Second half: {len(tested.labels)} pairs ({tested.distinct} distinct) of" in page
    with pytest.raises(InputError, match="runs on other data or settings: choose another one with --folder"):
        run(other)
    with pytest.raises(InputError, match="other data or settings: choose another folder with --results"):
        run(other, folder="runs-on-other")
    record = tmp_path / "people" / "pandalm-reward-1.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"settings": "others"}))
    with pytest.raises(InputError, match="other settings or data than"):
        people_report.write(tmp_path / "people")
