"""Held-out measures: every pair's probability where it belongs, ties left out, long pairs not asked."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from alignrun import cli
from alignrun.algorithms.common.batches import rows
from alignrun.evaluation import human_agreement
from alignrun.evaluation.heldout import Measured, measure
from alignrun.launch.build import assemble
from alignrun.launch.compose import compose
from alignrun.types import PairBatch

ROWS = [
    {"prompt": "short", "chosen": "yes", "rejected": "no", "label": 0.9},
    {"prompt": "a much longer question than the others", "chosen": "an answer of some length", "rejected": "b"},
    {"prompt": "middle one", "chosen": "perhaps", "rejected": "perhaps so, perhaps not", "label": 0.5},
    {"prompt": "x", "chosen": "y", "rejected": "z", "label": 0.7},
    {"prompt": "the last", "chosen": "one of them", "rejected": "none of them at all", "label": 0.6},
]


def write(path: Path, rows_of_data: list[dict[str, object]]) -> Path:
    path.write_text("\n".join(json.dumps({"label": 1.0, **row}) for row in rows_of_data))
    return path


def overrides(path: Path, *more: str) -> list[str]:
    data = ["data=jsonl", f"data.path={path}", f"data.eval_path={path}", "data.columns.label=label"]
    return ["experiment=smoke", *data, "preference=none", *more]


@pytest.mark.parametrize("name", ["dpo", "reward_model", "preference_model"])
def test_probabilities_stand_in_the_order_of_the_data(name: str, tmp_path: Path) -> None:
    assembly = assemble(compose(overrides(write(tmp_path / "pairs.jsonl", ROWS), f"algo={name}")))
    with torch.no_grad():
        for weight in assembly.trained.trainable().values():
            weight += 0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(4))
    measured = measure(assembly.algorithm, assembly.data, 2, assembly.trained.device)
    alone = {}
    for batch in assembly.data.all_batches(len(ROWS)):
        assert isinstance(batch, PairBatch)
        for row, text in enumerate(batch.prompts.texts):
            with torch.no_grad():
                loss = assembly.algorithm.loss(rows(batch, slice(row, row + 1)))
            assert loss.probabilities is not None
            alone[text] = float(loss.probabilities)
    expected = [alone[str(row["prompt"])] for row in ROWS]
    assert np.ptp(expected) > 0.01
    np.testing.assert_allclose(measured.probabilities, expected, atol=2e-4)


@pytest.mark.parametrize(("name", "asked"), [("preference_model", [5, 1]), ("reward_model", [5])])
def test_pairs_that_people_judged_are_asked_once(
    name: str, asked: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two triples need one further pair; a reward has no use for it."""
    pairs = [("p", "a", "b"), ("p", "c", "b"), ("q", "x", "y"), ("q", "z", "y"), ("q", "x", "z")]
    named = [dict(zip(("prompt", "chosen", "rejected"), pair, strict=True)) for pair in pairs]
    path = write(tmp_path / "pairs.jsonl", named)
    assembly = assemble(compose(overrides(path, f"algo={name}")))
    sizes = []

    def counting(algorithm: Any, data: Any, *rest: Any) -> Measured:
        sizes.append(len(data))
        return measure(algorithm, data, *rest)

    monkeypatch.setattr(human_agreement, "measure", counting)
    assert 0 <= assembly.evaluate().metrics["intransitive"] <= 1
    assert sizes == asked


def test_only_ties_have_no_accuracy(tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", ROWS)
    ties = write(tmp_path / "ties.jsonl", [{**ROWS[0], "label": 0.5}])
    run = tmp_path / "run"
    given = [*overrides(train, "algo=dpo"), f"data.eval_path={ties}", f"run.dir={run}"]
    assert cli.main(given) == 0
    summary = json.loads((run / "summary.json").read_text())
    assert "accuracy" not in summary
    assert "loss" in summary


def test_a_pair_that_nobody_labelled_may_be_too_long(tmp_path: Path) -> None:
    """Each of two long completions fits with a short one; the two together do not, and are not judged."""
    texts = ("short", "l" * 380, "L" * 380, "brief")
    pairs = [{"prompt": "p", "chosen": a, "rejected": b} for a, b in ((texts[0], texts[1]), (texts[2], texts[3]))]
    run = tmp_path / "run"
    path = write(tmp_path / "pairs.jsonl", pairs)
    given = overrides(path, "algo=preference_model", "model.architecture.max_position_embeddings=700")
    assert cli.main([*given, f"run.dir={run}"]) == 0
    assert "intransitive" in json.loads((run / "summary.json").read_text())
