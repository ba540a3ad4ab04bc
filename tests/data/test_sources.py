import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from alignrun.config import BadRows, ColumnsConfig, DataConfig
from alignrun.data.loading import Loaded, load_examples
from alignrun.errors import InputError
from alignrun.types import Example


def jsonl(path: Path, prompts: list[str], column: str = "prompt") -> str:
    path.write_text("".join(json.dumps({column: prompt}) + "\n" for prompt in prompts))
    return str(path)


def config(source: str, **fields: Any) -> DataConfig:
    return DataConfig(name=source, source=source, **fields)


def sides(loaded: Loaded) -> tuple[list[Example], list[Example]]:
    return list(loaded.train), list(loaded.heldout)


def texts(examples: Iterable[Example]) -> list[str]:
    return [example.text for example in examples]


def words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


class TestBundled:
    def test_counts_lengths_and_duplicates(self) -> None:
        train, heldout = sides(load_examples(config("bundled")))
        assert (len(train), len(heldout)) == (256, 96)
        prompts = texts(train + heldout)
        assert len({" ".join(sorted(words(prompt))) for prompt in prompts}) == len(prompts)
        assert all(6 <= len(prompt.split()) <= 25 for prompt in prompts)

    def test_no_heldout_prompt_is_close_to_a_train_prompt(self) -> None:
        train, heldout = sides(load_examples(config("bundled")))
        for ours in texts(heldout):
            for theirs in texts(train):
                assert len(words(ours) & words(theirs)) / len(words(ours) | words(theirs)) < 0.7, (ours, theirs)

    def test_a_share_that_is_not_used_is_noted(self) -> None:
        (note,) = load_examples(config("bundled", eval_fraction=0.3)).notes
        assert note == "data.eval_fraction=0.3 is not used: all rows are trained on, and others are held out already"
        assert load_examples(config("bundled")).notes == ()

    def test_columns_are_those_of_the_bundled_files(self) -> None:
        with pytest.raises(
            InputError, match=r"data\.columns is not valid with data=bundled: choose data=hub or data=jsonl"
        ):
            load_examples(config("bundled", columns=ColumnsConfig(prompt="question")))


class TestJsonl:
    prompts = tuple(f"prompt {number}" for number in range(400))

    def test_split_is_a_partition_near_the_fraction(self, tmp_path: Path) -> None:
        path = jsonl(tmp_path / "p.jsonl", list(self.prompts))
        train, heldout = sides(load_examples(config("jsonl", path=path, eval_fraction=0.25)))
        assert sorted(texts(train + heldout)) == sorted(self.prompts)
        assert 70 <= len(heldout) <= 130  # binomial(400, 0.25): 100 ± 3.5 standard deviations of 8.7
        assert [int(prompt.split()[1]) for prompt in texts(train)] == sorted(
            int(prompt.split()[1]) for prompt in texts(train)
        )

    def test_split_depends_on_the_prompt_alone(self, tmp_path: Path) -> None:
        straight = jsonl(tmp_path / "a.jsonl", list(self.prompts))
        doubled = jsonl(tmp_path / "b.jsonl", list(self.prompts[::-1] + self.prompts[:100]))
        _, first = sides(load_examples(config("jsonl", path=straight)))
        train, second = sides(load_examples(config("jsonl", path=doubled)))
        assert set(texts(first)) == set(texts(second))
        assert not set(texts(train)) & set(texts(second))

    def test_split_is_fixed_for_all_time(self, tmp_path: Path) -> None:
        # sha256("prompt 19") opens with 0x0b (0.04 of the range), sha256("prompt 0") with 0x48 (0.28).
        path = jsonl(tmp_path / "p.jsonl", ["prompt 0", "prompt 19"])
        train, heldout = sides(load_examples(config("jsonl", path=path)))
        assert (texts(train), texts(heldout)) == (["prompt 0"], ["prompt 19"])

    def test_a_larger_fraction_keeps_what_was_held_out(self, tmp_path: Path) -> None:
        path = jsonl(tmp_path / "p.jsonl", list(self.prompts))
        _, few = sides(load_examples(config("jsonl", path=path, eval_fraction=0.1)))
        _, many = sides(load_examples(config("jsonl", path=path, eval_fraction=0.5)))
        assert set(texts(few)) < set(texts(many))

    @pytest.mark.parametrize(("fraction", "which"), [(1e-9, "hold out"), (1 - 1e-9, "train on")])
    def test_an_empty_side_is_refused(self, tmp_path: Path, fraction: float, which: str) -> None:
        path = jsonl(tmp_path / "p.jsonl", ["one prompt", "another prompt"])
        with pytest.raises(InputError, match=rf"no row to {which} .*add rows.*data\.eval_path"):
            load_examples(config("jsonl", path=path, eval_fraction=fraction))

    def test_eval_path_and_eval_size(self, tmp_path: Path) -> None:
        path = jsonl(tmp_path / "train.jsonl", ["a"], column="q")
        held = jsonl(tmp_path / "held.jsonl", ["b", "c", "d"], column="q")
        columns = ColumnsConfig(prompt="q")
        both = config("jsonl", path=path, eval_path=held, eval_size=2, columns=columns)
        train, heldout = sides(load_examples(both))
        assert [(example.text, example.origin) for example in train] == [("a", "train.jsonl:1")]
        assert [(example.text, example.origin) for example in heldout] == [("b", "held.jsonl:1"), ("c", "held.jsonl:2")]

    def test_home_directory(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        jsonl(tmp_path / "p.jsonl", ["a"])
        train, _ = sides(load_examples(config("jsonl", path="~/p.jsonl", eval_path="~/p.jsonl")))
        assert texts(train) == ["a"]


class TestNotes:
    def test_held_out_rows_of_the_training_file_are_named(self, tmp_path: Path) -> None:
        path = jsonl(tmp_path / "train.jsonl", ["Why not?", "When?"])
        held = jsonl(tmp_path / "held.jsonl", ["Who?", "why  NOT?", "When?"])
        assert load_examples(config("jsonl", path=path, eval_path=held)).notes == (
            "1 of 3 held-out prompts are trained on too: held.jsonl:3",
            "1 of 3 held-out prompts differ from one that is trained on in case or spaces alone: held.jsonl:2",
        )

    def test_prompts_in_a_file_are_taken_as_they_are(self, tmp_path: Path) -> None:
        path = jsonl(tmp_path / "p.jsonl", ["a ${b} ${oc.env:HOME}"])
        assert texts(load_examples(config("jsonl", path=path, eval_path=path)).train) == ["a ${b} ${oc.env:HOME}"]

    def test_rows_that_are_held_out_and_not_evaluated_on_are_counted(self, tmp_path: Path) -> None:
        path = jsonl(tmp_path / "p.jsonl", [f"prompt {number}" for number in range(5000)])
        loaded = load_examples(config("jsonl", path=path, eval_fraction=0.5))
        held = 5000 - len(loaded.train)
        assert len(loaded.heldout) == 2000
        assert loaded.notes[0].startswith(f"2000 of {held} held-out rows are evaluated on: data.eval_size=null")
        whole = load_examples(config("jsonl", path=path, eval_fraction=0.5, eval_size=None))
        assert (len(whole.heldout), whole.notes) == (held, ())
        inline = load_examples(config("inline", prompts=["a", "b"], eval_size=1))
        assert inline.notes[0].startswith("1 of 2 held-out rows are evaluated on")

    def test_no_more_than_twelve_unread_columns_are_named(self, tmp_path: Path) -> None:
        path = tmp_path / "p.jsonl"
        path.write_text(json.dumps({"prompt": "a", **{f"c{number:02}": 1 for number in range(20)}}))
        (note, *_) = load_examples(config("jsonl", path=str(path), eval_path=str(path))).notes
        assert note.endswith("c10, c11 and 8 more")

    def test_the_bundled_rows_have_none(self) -> None:
        assert load_examples(config("bundled")).notes == ()


class TestInline:
    def test_the_same_prompts_on_both_sides(self) -> None:
        train, heldout = sides(load_examples(config("inline", prompts=["a", "b", "a"], eval_size=2)))
        assert [(example.text, example.origin) for example in train] == [
            ("a", "data.prompts[0]"),
            ("b", "data.prompts[1]"),
            ("a", "data.prompts[2]"),
        ]
        assert texts(heldout) == ["a", "b"]

    def test_a_blank_prompt_is_refused(self) -> None:
        with pytest.raises(InputError, match=r"data\.prompts\[1\] has an empty prompt"):
            load_examples(config("inline", prompts=["a", " "]))


class TestBadRows:
    rows = (
        {"prompt": "prompt 0"},
        {"prompt": " "},
        {"prompt": "prompt 19"},
        {"prompt": "prompt 1", "chosen": "a", "rejected": "a"},
    )

    def file(self, path: Path, rows: Any = rows) -> str:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    def test_an_error_says_once_that_such_rows_can_be_skipped(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"p\.jsonl:2 has an empty prompt") as caught:
            load_examples(config("jsonl", path=self.file(tmp_path / "p.jsonl")))
        assert str(caught.value).count("data.bad_rows=skip") == 1
        assert "\n" not in str(caught.value)

    def test_skipped_rows_are_counted_over_both_files(self, tmp_path: Path) -> None:
        options: dict[str, Any] = {"path": self.file(tmp_path / "p.jsonl"), "bad_rows": BadRows.skip}
        loaded = load_examples(config("jsonl", **options))
        assert (texts(loaded.train), texts(loaded.heldout), loaded.skipped) == (["prompt 0"], ["prompt 19"], 2)
        held = self.file(tmp_path / "held.jsonl", self.rows[:2])
        loaded = load_examples(config("jsonl", eval_path=held, **options))
        assert texts(loaded.train) == ["prompt 0", "prompt 19"]
        assert (texts(loaded.heldout), loaded.skipped) == (["prompt 0"], 3)

    def test_origins_stay_those_of_the_file(self, tmp_path: Path) -> None:
        path = self.file(tmp_path / "p.jsonl")
        loaded = load_examples(config("jsonl", path=path, bad_rows=BadRows.skip))
        assert [example.origin for example in [*loaded.train, *loaded.heldout]] == ["p.jsonl:1", "p.jsonl:3"]

    def test_nothing_is_skipped_in_good_data(self, tmp_path: Path) -> None:
        path = self.file(tmp_path / "p.jsonl", (self.rows[0], self.rows[2]))
        assert load_examples(config("jsonl", path=path, bad_rows=BadRows.skip)).skipped == 0

    def test_a_damaged_file_is_no_bad_row(self, tmp_path: Path) -> None:
        (tmp_path / "p.jsonl").write_text('{"prompt": "prompt 0"}\n{"prompt": "prom')
        with pytest.raises(InputError, match=r"p\.jsonl:2 is not JSON") as caught:
            load_examples(config("jsonl", path=str(tmp_path / "p.jsonl"), bad_rows=BadRows.skip))
        assert "data.bad_rows" not in str(caught.value)

    def test_no_row_left_names_the_first_reason(self, tmp_path: Path) -> None:
        path = self.file(tmp_path / "p.jsonl", [{"text": "a"}] * 3)
        with pytest.raises(InputError) as caught:
            load_examples(config("jsonl", path=path, bad_rows=BadRows.skip))
        message = str(caught.value)
        assert message.startswith("data: none of the 3 rows can be used; the first: p.jsonl:1 has no column 'prompt'")
        assert message.endswith("data.columns.prompt=text")
        assert "bad_rows" not in message


class FakeHub:
    def __init__(self, monkeypatch: pytest.MonkeyPatch, splits: dict[str, list[dict[str, Any]]]) -> None:
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self.splits = splits
        exceptions = SimpleNamespace(DatasetsError=type("DatasetsError", (Exception,), {}))
        module = SimpleNamespace(load_dataset=self.load, exceptions=exceptions)
        monkeypatch.setitem(__import__("sys").modules, "datasets", module)

    def load(self, *args: Any, **options: Any) -> list[dict[str, Any]]:
        self.calls.append((args, options))
        if options["split"] not in self.splits:
            raise ValueError(f"Unknown split\n {options['split']}")
        return self.splits[options["split"]]


class TestHub:
    def test_splits_origins_and_arguments(self, monkeypatch: pytest.MonkeyPatch) -> None:
        hub = FakeHub(monkeypatch, {"train": [{"prompt": "a"}, {"prompt": "b"}], "test": [{"prompt": "c"}]})
        train, heldout = sides(load_examples(config("hub", path="org/set", subset="main", eval_split="test")))
        assert [(example.text, example.origin) for example in train] == [
            ("a", "org/set[train]:0"),
            ("b", "org/set[train]:1"),
        ]
        assert [(example.text, example.origin) for example in heldout] == [("c", "org/set[test]:0")]
        # Nothing else is passed: in particular no trust in code from the hub.
        assert hub.calls == [(("org/set", "main"), {"split": split}) for split in ("train", "test")]

    def test_without_eval_split_rows_are_held_out_by_hash(self, monkeypatch: pytest.MonkeyPatch) -> None:
        FakeHub(monkeypatch, {"train": [{"prompt": "prompt 0"}, {"prompt": "prompt 19"}]})
        train, heldout = sides(load_examples(config("hub", path="org/set")))
        assert (texts(train), texts(heldout)) == (["prompt 0"], ["prompt 19"])

    @pytest.mark.parametrize("fields", [{"split": "trian"}, {"eval_split": "trian"}])
    def test_any_failure_is_one_line(self, monkeypatch: pytest.MonkeyPatch, fields: dict[str, str]) -> None:
        FakeHub(monkeypatch, {"train": [{"prompt": "a"}]})
        with pytest.raises(InputError, match=r"'trian' of 'org/set' \(Unknown split trian\); check") as caught:
            load_examples(config("hub", path="org/set", **fields))
        assert "\n" not in str(caught.value)

    def test_rows_are_taken_one_by_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Split:
            def __iter__(self) -> Iterator[dict[str, Any]]:
                yield {"prompt": "a"}
                yield {"prompt": ""}
                raise AssertionError("a row after the bad one is read")

        FakeHub(monkeypatch, {"train": Split()})  # type: ignore[dict-item]
        with pytest.raises(InputError, match=r"org/set\[train\]:1 has an empty prompt"):
            load_examples(config("hub", path="org/set"))

    @pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt, AssertionError])
    def test_what_is_no_failure_of_the_library_is_not_taken_for_one(
        self, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
    ) -> None:
        FakeHub(monkeypatch, {})

        def fail(*_: Any, **__: Any) -> None:
            raise error

        monkeypatch.setattr(__import__("sys").modules["datasets"], "load_dataset", fail)
        with pytest.raises(error):
            load_examples(config("hub", path="org/set"))

    def test_a_folder_in_the_home_directory(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        hub = FakeHub(monkeypatch, {"train": [{"prompt": "prompt 0"}, {"prompt": "prompt 19"}]})
        load_examples(config("hub", path="~/set"))
        assert hub.calls == [((str(tmp_path / "set"), None), {"split": "train"})]

    def test_no_rows(self, monkeypatch: pytest.MonkeyPatch) -> None:
        FakeHub(monkeypatch, {"train": []})
        with pytest.raises(InputError, match="holds no rows"):
            load_examples(config("hub", path="org/set"))

    def test_a_bad_row_names_its_place(self, monkeypatch: pytest.MonkeyPatch) -> None:
        FakeHub(monkeypatch, {"train": [{"prompt": "a"}, {"prompt": None}]})
        with pytest.raises(InputError, match=r"org/set\[train\]:1, column 'prompt' is null"):
            load_examples(config("hub", path="org/set"))

    def test_the_real_library_on_a_local_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        datasets = pytest.importorskip("datasets")
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        folder = tmp_path / "set"
        folder.mkdir()
        jsonl(folder / "train.jsonl", ["a", "b"])
        jsonl(folder / "test.jsonl", ["c"])
        train, heldout = sides(load_examples(config("hub", path=str(folder), eval_split="test")))
        assert (texts(train), texts(heldout)) == (["a", "b"], ["c"])
        with pytest.raises(InputError, match="cannot load split 'none'"):
            load_examples(config("hub", path=str(folder), split="none"))
