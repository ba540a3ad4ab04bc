"""The pairs that come with alignrun: what algorithms that learn from data train on where no file is named."""

import json
from pathlib import Path

import pytest
import yaml

from alignrun import cli
from alignrun.algorithms.base import discover
from alignrun.config import DataConfig, FromData
from alignrun.data.loading import load_examples
from alignrun.data.sources.bundled import FOLDER
from alignrun.discovery import config_classes
from alignrun.launch.compose import compose

ROWS = [json.loads(line) for line in (FOLDER / "pairs.jsonl").read_text().splitlines()]


def test_each_pair_has_a_reason_and_a_prompt_of_its_own() -> None:
    assert len(ROWS) >= 120
    assert len({row["prompt"].casefold() for row in ROWS}) == len(ROWS)
    assert all(row.keys() == {"prompt", "chosen", "rejected", "reason"} for row in ROWS)
    assert all(text == text.strip() and text for row in ROWS for text in row.values())
    assert len({row["reason"] for row in ROWS}) > 20
    shorter = sum(len(row["chosen"]) < len(row["rejected"]) for row in ROWS)
    assert 0.35 < shorter / len(ROWS) < 0.65  # no length tells which is better


def test_they_are_read_as_pairs_and_shared_out() -> None:
    loaded = load_examples(DataConfig(name="x", source="bundled_pairs"))
    assert (len(loaded.train), len(loaded.heldout), loaded.skipped, loaded.notes) == (100, 20, 0, ())
    read = {(example.text, example.chosen, example.rejected) for example in [*loaded.train, *loaded.heldout]}
    assert read == {(row["prompt"], row["chosen"], row["rejected"]) for row in ROWS}


def test_algorithms_that_learn_from_data_take_them() -> None:
    for kind in discover().values():
        assert issubclass(kind.config_class, FromData) is not kind.online
    assert len(discover()) == len(config_classes("algo"))
    assert compose([]).data.source == "bundled"
    assert compose(["algo=dpo", "data=jsonl", "data.path=x.jsonl"]).data.source == "jsonl"
    assert compose(["algo=dpo", "data.eval_size=7"]).data.eval_size == 7


@pytest.mark.parametrize("name", ["dpo", "sft", "reward_model", "preference_model"])
def test_a_run_needs_no_file(name: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    short = ["train.steps=1", "train.batch_size=2", "data.eval_size=2", "tracker=none", "generation.max_new_tokens=4"]
    assert cli.main([f"algo={name}", "model=tiny", "optim.warmup_steps=0", *short, f"run.dir={run}"]) == 0
    stored = yaml.safe_load((run / "config.yaml").read_text())["data"]
    assert (stored["name"], stored["source"]) == ("bundled_pairs", "bundled_pairs")
