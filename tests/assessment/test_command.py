"""`alignrun eval-preference` as a user meets it: what it prints and keeps, the data it recognises, and its refusals."""

import json
from pathlib import Path
from typing import Any

import pytest
from reports.checks import check

from alignrun import cli

BIASED = '''
def judge(prompts, first, second):
    """Prefers what is shown first, and a little the longer one."""
    return [0.7 + 0.2 * (len(one) > len(other)) - 0.1 * (len(one) < len(other)) for one, other in zip(first, second)]


def cyclic(prompts, first, second):
    order = {"rock": 0, "paper": 1, "scissors": 2}
    return [(0.5, 0.9, 0.1)[(order[one] - order[other]) % 3] for one, other in zip(first, second)]


def by_answer(completions, answer):
    return [float(text == right) for text, right in zip(completions, answer)]
'''


@pytest.fixture(autouse=True)
def functions() -> None:
    Path("biased_functions.py").write_text(BIASED)


def written(name: str, rows: list[dict[str, Any]]) -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


def evaluated(*overrides: str) -> dict[str, Any]:
    assert cli.main(["eval-preference", *overrides, "run.dir=out"]) == 0
    found: dict[str, Any] = json.loads(Path("out/preference.json").read_text())
    return found


REWARDBENCH = [
    {
        "prompt": f"q{n}",
        "chosen": "good " * (1 + n % 3),
        "rejected": "bad " * (1 + n % 2),
        "chosen_model": "m",
        "rejected_model": "w",
        "subset": ("hep-cpp", "math-prm")[n % 2],
        "id": n,
    }
    for n in range(12)
]


def test_a_biased_function_on_rewardbench(capsys: pytest.CaptureFixture[str]) -> None:
    data = written("filtered.jsonl", REWARDBENCH)
    found = evaluated(
        "preference=function", "preference.function=biased_functions:judge", "data=jsonl", f"data.path={data}"
    )
    quality = found["quality"]
    leads = [len(row["chosen"]) - len(row["rejected"]) for row in REWARDBENCH]
    right = [1.0 if lead > 0 else 0.0 if lead < 0 else 0.5 for lead in leads]
    assert quality["accuracy"]["value"] == pytest.approx(sum(right) / 12)
    assert quality["accuracy"]["prompts"] == 12
    assert quality["position"]["chosen_first"]["value"] == 1.0
    assert quality["position"]["chosen_second"]["value"] == 0.0
    assert quality["position"]["consistent"]["value"] == 0.0
    assert quality["length"]["preferred"]["value"] == 1.0
    assert quality["length"]["where_wrong"]["value"] == 0.0
    assert {one["name"]: one["pairs"] for one in quality["categories"]} == {"hep-cpp": 6, "math-prm": 6}
    assert found["category"] == "subset"
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert all(
        len(line) <= 80
        for line in lines[: lines.index(next(one for one in lines if one.startswith("Accuracy 0")))]
        if not line.startswith(("data:", "preference:"))
    )
    assert "same winner in both orders" in out
    judgments = [json.loads(line) for line in Path("out/judgments.jsonl").read_text().splitlines()]
    assert [row["origin"] for row in judgments] == [f"filtered.jsonl:{n + 1}" for n in range(12)]
    assert judgments[0]["in_each_order"] == pytest.approx([0.9, 0.4])
    page = Path("out/report.html").read_text()
    assert "hep-cpp" in page
    assert "data:image/svg+xml" in page
    assert cli.main(["eval-preference", "preference=letters", "data=jsonl", f"data.path={data}", "run.dir=out"]) == 2
    assert "already holds a run" in capsys.readouterr().err


def test_judgebench_and_pandalm_are_recognised(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {
            "pair_id": str(n),
            "question": f"q{n}",
            "response_A": "I love it",
            "response_B": "I hate it",
            "label": ("A>B", "B>A", "B>A")[n % 3],
            "source": ("mmlu", "livecodebench")[n % 2],
            "response_model": "gpt-4o",
        }
        for n in range(9)
    ]
    asked = ["preference=sentiment", "data=jsonl", f"data.path={written('judgebench.jsonl', rows)}"]
    found = evaluated(*asked)
    assert found["quality"]["accuracy"]["value"] == pytest.approx(3 / 9)
    assert found["category"] == "source"
    assert "JudgeBench" in capsys.readouterr().out
    panda = [
        {"instruction": f"i{n % 5}", "input": "", "response1": "I love it", "response2": "I hate it", "idx": n}
        | {"annotator1": 1 + (n % 5 == 0), "annotator2": 1 + (n % 5 == 0), "annotator3": 1 + ((n % 5 == 0) ^ n % 2)}
        for n in range(10)
    ]
    for data in ("data=jsonl", "data=pandalm"):
        Path("out/config.yaml").unlink()
        found = evaluated("preference=sentiment", data, f"data.path={written('panda.jsonl', panda)}")
        assert found["quality"]["accuracy"]["value"] == pytest.approx(0.8)
        assert found["quality"]["accuracy"]["prompts"] == 5
        assert found["quality"]["agreement"]["human_agreement"] == pytest.approx(15 / 20)


def test_hostile_texts_are_shown_and_do_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    evil = "<script>alert(1)</script>\x1b[31m\u202e"
    rows = [
        {"prompt": evil, "chosen": evil + "a", "rejected": evil + "b", "subset": f"{evil}\ud800{n % 2}"}
        for n in range(8)
    ]
    found = evaluated("preference=sentiment", "data=jsonl", f"data.path={written('evil.jsonl', rows)}")
    assert found["quality"]["ties"] == 8
    out = capsys.readouterr().out
    assert "\x1b[31m" not in out
    assert "\u202e" not in out
    page = Path("out/report.html").read_text()
    check(page)
    assert "&lt;script&gt;alert" in page


def test_a_file_says_what_is_evaluated_and_is_in_the_command() -> None:
    Path("mine.yaml").write_text("defaults:\n  - preference: letters\n  - data: bundled_pairs\ntriples: 0\n")
    found = evaluated("--config", "mine.yaml", "pairs=3")
    assert found["quality"]["pairs"] == 3
    assert found["command"] == f"alignrun eval-preference --config={Path('mine.yaml').absolute()} pairs=3 run.dir=out"


def test_cycles_are_found_and_rewards_have_none() -> None:
    names = ["rock", "paper", "scissors"]
    rows = [{"prompt": f"p{n}", "chosen": names[n % 3], "rejected": names[(n + 2) % 3]} for n in range(3)]
    rows += [{"prompt": "all", "chosen": one, "rejected": other} for one, other in (names[1::-1], names[:0:-1])]
    data = ["data=jsonl", f"data.path={written('games.jsonl', rows)}"]
    found = evaluated("preference=function", "preference.function=biased_functions:cyclic", *data)
    circles = found["quality"]["intransitivity"]
    assert (circles["triples"], circles["share"]) == (1, 1.0)
    assert found["quality"]["position"]["first_wins"]["value"] == pytest.approx(0.5)
    Path("out/config.yaml").unlink()
    found = evaluated("preference=sentiment", *data)
    assert found["quality"]["intransitivity"] is None
    assert "A reward is transitive: no triple is asked." in found["notes"]


def test_a_function_gets_its_columns_and_pairs_are_drawn() -> None:
    rows = [{"prompt": f"{n} + 1", "chosen": str(n + 1), "rejected": str(n), "answer": str(n + 1)} for n in range(30)]
    reward = ["preference=function", "preference.function=biased_functions:by_answer", "preference.kind=reward"]
    found = evaluated(*reward, "data=jsonl", f"data.path={written('sums.jsonl', rows)}", "pairs=11", "seed=3")
    assert found["quality"]["pairs"] == 11
    assert found["quality"]["accuracy"]["value"] == 1.0
    assert "11 pairs of 30, drawn at random (seed=3)." in found["notes"]


def test_a_trained_feedback_model_is_asked_without_a_policy() -> None:
    rows = [{"prompt": f"p{n}", "chosen": f"good {n}", "rejected": "x"} for n in range(20)]
    data = ["data=jsonl", f"data.path={written('pairs.jsonl', rows)}", "data.eval_fraction=0.3"]
    assert cli.main(["experiment=smoke", "algo=preference_model", *data, "run.dir=model"]) == 0
    summary = json.loads(Path("model/summary.json").read_text())
    judge = ["preference=learned", "preference.path=model"]
    found = evaluated(*judge, *data, "rows=heldout")
    assert found["quality"]["accuracy"]["value"] == pytest.approx(summary["accuracy"])
    assert found["quality"]["calibration"]["brier"] == pytest.approx(summary["brier"], abs=1e-5)
    assert not any("trained on" in note for note in found["notes"])
    Path("out/config.yaml").unlink()
    found = evaluated(*judge, *data)
    assert found["quality"]["pairs"] == 20
    assert any("rows=heldout" in note for note in found["notes"])
    Path("out/config.yaml").unlink()
    members = "preference.members={a: {name: learned, path: model}, b: {name: letters}}"
    found = evaluated("preference=panel", members, *data, "pairs=3")
    assert any(note.startswith("model was trained on rows of these data") for note in found["notes"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "preference is missing: write preference=NAME, one of `alignrun ls preference`"),
        (["preference=sentiment"], "data is missing: write data=NAME"),
        (["preference=sentiment", "data=jsonl"], "data.path is missing"),
        (["preference=none", "data=bundled"], "prefers nothing"),
        (["preference.path=x", "data=bundled"], "preference.path=x also needs preference=NAME"),
        (["preference=sentiment", "data=bundled"], "holds no pair of answers"),
        (["preference=sentiment", "data=jsonl", "data.path=nowhere.jsonl"], "no file nowhere.jsonl"),
        (["preference=sentimental", "data=bundled"], "did you mean sentiment"),
        (["preference=sentiment", "data=bundled", "pair=3"], "did you mean pairs"),
        (["preference=sentiment", "data=bundled", "pairs=0"], "pairs must be at least 1"),
        (["preference=sentiment", "data=bundled", "rows=some"], "rows"),
        (["preference=sentiment", "data=bundled", "algo=dpo"], "unknown group algo: choose from data, preference"),
        (["preference=sentiment", "data=bundled", "train.steps=3"], "eval-preference has its own keys"),
        (["preference=learned", "preference.path=nowhere", "data=bundled"], "nowhere does not exist"),
        (["preference=letters", "data=jsonl", "data.path=tie.jsonl", "data.columns.label=l"], "all ties"),
        (["preference=letters", "data=jsonl", "data.path=tie.jsonl", "category=subset"], "no row has this column"),
        (["preference=letters", "data=bundled", "data.max_prompt_tokens=9"], "no policy reads the rows"),
        (["preference=letters", "data=bundled", "data.eval_size=9"], "write pairs=N for fewer pairs"),
        (["preference=letters", "runs/x"], "'runs/x' is not key=value"),
    ],
)
def test_wrong_ways(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    written("tie.jsonl", [{"prompt": "p", "chosen": "a", "rejected": "b", "l": 0.5}])
    assert cli.main(["eval-preference", *arguments, "run.dir=out"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert "Traceback" not in error
    assert not Path("out").exists()
