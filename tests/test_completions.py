"""`alignrun generate`: what is written, that nothing is lost or replaced, and that the next run learns from it."""

import json
from itertools import combinations, permutations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignrun import cli
from alignrun.completions import command
from alignrun.completions.partial import Partial
from alignrun.completions.rows import pair_row
from alignrun.config import DataConfig
from alignrun.data.loading import load_examples
from alignrun.errors import InputError, RunError
from alignrun.preferences.examples import letters
from alignrun.types import Example


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("completions") / "run"
    assert cli.main(["experiment=smoke", "optim.learning_rate=0.05", f"run.dir={folder}"]) == 0
    return folder


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    file = tmp_path / "questions.jsonl"
    rows = [{"uid": f"q{n}", "prompt": f"Question {n % 4}?", "dataset": "mine", "category": "x"} for n in range(6)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def written(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_every_row_is_answered_in_order(run: Path, questions: Path) -> None:
    data = ["data=jsonl", f"data.path={questions}", "max_new_tokens=4"]
    assert cli.main(["generate", str(run), "out=c.jsonl", "samples=2", *data]) == 0
    rows = written(Path("c.jsonl"))
    assert [(row["prompt"], row["sample"]) for row in rows] == [
        (f"Question {n % 4}?", k) for n, k in product(range(6), range(2))
    ]
    assert rows[0].keys() == {"prompt", "completion", "sample", "log_prob", "ended"}
    assert all(row["log_prob"] < 0 for row in rows)
    assert len({row["completion"] for row in rows}) > 6

    assert cli.main(["generate", str(run), "out=a.json", "format=alpaca_eval", "generator=ours", *data]) == 0
    outputs = json.loads(Path("a.json").read_text())
    assert [row["instruction"] for row in outputs] == [f"Question {n % 4}?" for n in range(6)]
    assert {(row["generator"], row["dataset"], *sorted(row)) for row in outputs} == {
        ("ours", "mine", "dataset", "generator", "instruction", "output")
    }

    assert cli.main(["generate", str(run), "out=h.jsonl", "format=arena_hard", "--reference", *data]) == 0
    answers = written(Path("h.jsonl"))
    assert [row["uid"] for row in answers] == [f"q{n}" for n in range(6)]
    assert len({row["ans_id"] for row in answers}) == 6
    assert answers[0]["model"] == "reference of run"
    asked, answer = answers[0]["messages"]
    assert asked == {"role": "user", "content": "Question 0?"}
    assert (answer["role"], list(answer["content"])) == ("assistant", ["answer"])


def test_a_benchmark_gets_only_what_it_can_hold(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "chat.jsonl"
    turns = [{"role": role, "content": "x"} for role in ("user", "assistant", "user")]
    file.write_text(json.dumps({"prompt": turns}) + "\n")
    data = ["data=jsonl", f"data.path={file}", "out=x.json"]
    for name, reason in (("alpaca_eval", "chat.jsonl:1 is more than one turn"), ("arena_hard", "column 'uid'")):
        assert cli.main(["generate", str(run), f"format={name}", *data]) == 2
        assert reason in capsys.readouterr().err
    assert cli.main(["generate", str(run), *data]) == 0
    assert written(Path("x.json"))[0]["prompt"] == turns


def test_an_interruption_loses_one_batch_and_changes_nothing(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["generate", str(run), "prompts=10", "batch_size=4", "rows=train", "max_new_tokens=3"]
    assert cli.main([*arguments, "out=whole.jsonl"]) == 0
    draw, drawn = command.draw, []

    def failing(*given: Any, **named: Any) -> Any:
        drawn.append(given[2].texts)
        if len(drawn) == 3:
            raise RunError("the power is off")
        return draw(*given, **named)

    monkeypatch.setattr(command, "draw", failing)
    assert cli.main([*arguments, "out=c.jsonl"]) == 1
    assert not Path("c.jsonl").exists()
    partial = Path("c.jsonl.partial")
    partial.write_bytes(partial.read_bytes()[:-20])  # a kill while the second batch was written
    capsys.readouterr()
    assert cli.main([*arguments, "out=c.jsonl", "temperature=0.5"]) == 2
    assert "c.jsonl.partial is a part of another command's file" in capsys.readouterr().err
    assert cli.main([*arguments, "out=c.jsonl"]) == 0
    assert "1 of 3 batches are known" in capsys.readouterr().out
    assert Path("c.jsonl").read_bytes() == Path("whole.jsonl").read_bytes()
    assert [len(texts) for texts in drawn] == [4, 4, 2, 4, 2]
    assert {path.name for path in Path().iterdir()} == {"whole.jsonl", "c.jsonl"}
    assert cli.main([*arguments, "out=c.jsonl"]) == 2
    assert "c.jsonl exists: choose another out" in capsys.readouterr().err


def test_columns_that_are_not_read_are_named(run: Path, questions: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["generate", str(run), "data=jsonl", f"data.path={questions}", "max_new_tokens=2", "prompts=1"]
    for number, more in enumerate(([], ["rows=heldout", "data.eval_fraction=0.5"])):
        assert cli.main([*arguments, f"out={number}.jsonl", *more]) == 0
        assert "data: columns that are not read: uid\n" in capsys.readouterr().out
    assert cli.main([*arguments, "out=h.jsonl", "format=arena_hard"]) == 0
    assert "columns that are not read" not in capsys.readouterr().out


def fails_once(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The judge of pairs fails when it is asked the second time. Returns the list of what it is asked."""
    compare, asked = command.compare, list[Any]()

    def failing(*given: Any) -> Any:
        asked.append(given[1])
        if len(asked) == 2:
            raise RunError("the judge is gone")
        return compare(*given)

    monkeypatch.setattr(command, "compare", failing)
    return asked


def test_a_judge_that_changes_in_its_place_starts_again(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file of a user's function, and the weights in a folder: what another judge said is not taken over."""
    module = tmp_path / "judging_in_place.py"
    module.write_text("def longer(prompts, completions): return [len(text) for text in completions]\n")
    monkeypatch.syspath_prepend(tmp_path)
    judge = ["preference=function", "preference.function=judging_in_place:longer", "preference.kind=reward"]
    arguments = ["generate", str(run), "format=pairs", "prompts=6", "samples=2", "batch_size=2", "out=p.jsonl", *judge]
    fails_once(monkeypatch)
    assert cli.main(arguments) == 1
    module.write_text("def longer(prompts, completions): return [-len(text) for text in completions]\n")
    capsys.readouterr()
    assert cli.main(arguments) == 2
    assert "p.jsonl.partial is a part of another command's file" in capsys.readouterr().err


def test_a_file_that_appears_in_the_meantime_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "out"
    partial = Partial(out, "key")
    with pytest.raises(InputError, match="another process is writing"):
        Partial(out, "key")
    partial.add([1])
    out.write_text("theirs")
    with pytest.raises(InputError, match="out exists: choose another out"):
        partial.publish(["ours"])
    assert out.read_text() == "theirs"
    partial.close()
    out.unlink()
    again = Partial(out, "key")
    assert again.batches == [[1]]
    again.publish(["ours \udcff"])
    assert out.read_text() == "ours \\udcff"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def table_of(*above: float) -> np.ndarray:
    """An antisymmetric table from its entries above the diagonal."""
    size = round((1 + (1 + 8 * len(above)) ** 0.5) / 2)
    table = np.full((size, size), 0.5)
    for place, value in zip(combinations(range(size), 2), above, strict=True):
        table[place], table[place[::-1]] = value, 1 - value
    return table


def test_pairs_are_the_best_and_the_worst_of_every_order() -> None:
    """All orders of three completions with distinct strengths, and what no order can express."""
    example = Example("x", "here")
    for strengths in permutations((0.0, 1.0, 3.0)):
        texts = [f"strength {strength}" for strength in strengths]
        table = 1 / (1 + np.exp(np.subtract.outer(strengths, strengths).T))
        row = pair_row(example, texts, table)
        expected = {"prompt": "x", "chosen": "strength 3.0", "rejected": "strength 0.0"}
        assert row == {**expected, "probability": pytest.approx(1 / (1 + np.exp(-3.0)))}
    assert pair_row(example, ["a", "b"], table_of(0.5)) is None
    assert pair_row(example, ["a", " a"], table_of(0.9)) is None
    assert pair_row(example, ["a", "  "], table_of(0.9)) is None
    cycle = table_of(0.9, 0.1, 0.9)  # a beats b, c beats a, b beats c, alike
    assert pair_row(example, ["a", "b", "c"], cycle) is None
    found = pair_row(example, ["a", "", "c"], table_of(0.1, 0.8, 0.9))
    assert found is not None
    assert (found["chosen"], found["rejected"]) == ("a", "c"), "a blank completion takes no part"


def test_two_commands_are_a_round_of_iterated_preference_optimisation(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs, after = tmp_path / "pairs.jsonl", tmp_path / "dpo"
    assert cli.main(["generate", str(run), "format=pairs", f"out={pairs}", "prompts=40", "samples=3"]) == 0
    out = capsys.readouterr().out
    rows = written(pairs)
    assert f"{len(rows)} rows of 40 prompts written to {pairs}" in out
    assert "its held-out rows are left out (rows=all takes them too)" in out
    for row in rows:
        better, worse = letters([row["prompt"]] * 2, [row["chosen"], row["rejected"]])
        assert better > worse
        assert row["probability"] == pytest.approx(1 / (1 + np.exp((worse - better) / 0.1)), rel=1e-4)
    bundled = load_examples(DataConfig(name="bundled"))
    assert not {row["prompt"] for row in rows} & {example.text for example in bundled.heldout}

    command_line = next(line for line in out.splitlines() if line.startswith("train on them with alignrun "))
    suggested = command_line.removeprefix("train on them with alignrun ").split()
    assert suggested[:2] == ["algo=dpo", "model=tiny"]
    more = ["tracker=none", "optim.warmup_steps=0", "train.steps=2", "preference=none", "generation.max_new_tokens=8"]
    assert cli.main([*suggested, *more, "data.columns.label=probability", f"run.dir={after}"]) == 0
    summary = json.loads((after / "summary.json").read_text())
    assert summary["step"] == 2
    assert 0 <= summary["accuracy"] <= 1
    overrides = (after / "config.yaml").read_text()
    assert f"path: {run}" in overrides, "its reference is the policy that the pairs come from"


def test_a_judge_that_fails_keeps_what_was_judged(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["generate", str(run), "format=pairs", "prompts=6", "samples=2", "batch_size=2", "out=p.jsonl"]
    asked = fails_once(monkeypatch)
    assert cli.main(arguments) == 1
    assert cli.main(arguments) == 0
    assert len(asked) == 4, "the first batch is not judged again"
    assert len({prompt for prompts in asked for prompt in prompts}) == 6


def test_all_ties_are_an_error_and_no_empty_file(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "compare", lambda _, prompts, *__: np.full((len(prompts), 1, 4, 1, 4), 0.5))
    assert cli.main(["generate", str(run), "format=pairs", "prompts=3", "out=p.jsonl"]) == 1
    assert "none of 3 prompts has two completions of which one is preferred" in capsys.readouterr().err
    assert not Path("p.jsonl").exists()


def test_dollars_in_a_judges_template_are_text(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    judge = ["preference=judge", "preference.url=http://127.0.0.1:9", "preference.model=m", "preference.retries=0"]
    template = r"preference.template='\${{prompt}} {first} {second}'"
    assert (
        cli.main(["generate", str(run), "format=pairs", "out=d.jsonl", "prompts=1", "samples=2", *judge, template]) == 1
    )
    assert "preference=judge: http://127.0.0.1:9/chat/completions failed 1 times" in capsys.readouterr().err


def test_one_of_several_completions_is_chosen(
    run: Path, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the share of letters, which is known: what is chosen has more of them than a plain sample."""
    data = ["data=jsonl", f"data.path={questions}", "max_new_tokens=4", "samples=4"]
    judged = [*data, "preference=letters", "candidates=6"]
    assert cli.main(["generate", f"borda:{run}", "out=b.jsonl", *judged]) == 0
    assert "selector: function" in capsys.readouterr().out
    assert cli.main(["generate", str(run), "out=c.jsonl", *data]) == 0
    chosen, plain = (written(Path(name)) for name in ("b.jsonl", "c.jsonl"))
    assert [row.keys() for row in chosen] == [row.keys() for row in plain]
    assert [(row["prompt"], row["sample"]) for row in chosen] == [(row["prompt"], row["sample"]) for row in plain]
    best, usual = (np.mean(letters([], [row["completion"] for row in rows])) for rows in (chosen, plain))
    assert best > usual + 0.1
    assert cli.main(["generate", f"borda:{run}", "out=d.jsonl", *judged, "batch_size=12"]) == 0
    assert len(written(Path("d.jsonl"))) == len(chosen)
    assert cli.main(["generate", f"best_of_nash:{run}", "--reference", "out=e.json", "format=alpaca_eval", *judged[:-3],
                     "preference=letters", "candidates=2"]) == 0  # fmt: skip
    capsys.readouterr()
    for words, reason in (
        ([f"mirror:{run}", "out=x", "format=pairs"], "format=pairs takes the best and the worst of all samples"),
        ([f"mirror:{run}", "out=x", "mirror_eta=0"], "mirror_eta must be positive"),
        ([f"nash:{run}", "out=x"], f"nash:{run}"),
    ):
        assert cli.main(["generate", *words]) == 2
        assert reason in capsys.readouterr().err
    assert cli.main(["chat", f"mirror:{run}"]) == 2
    assert "which only `alignrun eval` and `alignrun generate` do" in capsys.readouterr().err
