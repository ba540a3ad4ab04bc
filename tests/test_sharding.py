"""A base sharded over processes, on the CPU over gloo: who reads it, who holds what, and that nothing else changes."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import several
import torch
from forked import Job
from helpers import load_policy
from safetensors.torch import load_file

from alignrun import cli, distributed
from alignrun.distributed import sharding
from alignrun.errors import InputError
from alignrun.launch.compose import compose
from alignrun.planning.plan import resident_plan

SPLIT = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
SMOKE = (
    *("experiment=smoke", "model=path", "model.device=cpu", "model.dtype=float32", "data.eval_size=4"),
    *("train.steps=2", "train.micro_batch_size=null", "generation.max_new_tokens=4", "optim.learning_rate=0.001"),
    *("optim.epsilon=1e-4", "tracker=none", "generation.opponents=independent"),
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in a folder, with tied embeddings and settings of its own for sampling."""
    policy, _ = load_policy("+model.architecture.tie_word_embeddings=true", "adapter=none")
    policy.model.generation_config.eos_token_id = [policy.tokenizer.eos_token_id, 65]
    folder = tmp_path_factory.mktemp("base")
    policy.model.save_pretrained(folder)
    policy.tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["lora", "none"])
@pytest.mark.parametrize(("ranks", "machines"), [(2, 1), (4, 2)])
def test_one_process_reads_the_base_and_each_holds_its_part(
    ranks: int, machines: int, adapter: str, base: Path, tmp_path: Path
) -> None:
    """Four processes on two machines: halves on each machine, so that every weight is held twice in all."""
    command = [*SMOKE, f"model.path={base}", "train.batch_size=4", f"adapter={adapter}"]
    assert cli.main([*command, f"run.dir={tmp_path / 'alone'}"]) == 0
    file = tmp_path / "commands.json"
    file.write_text(json.dumps([[*command, f"run.dir={tmp_path / 'run'}"]]))
    local = {"LOCAL_WORLD_SIZE": str(ranks // machines)}
    job = Job(str(file), ranks=ranks, main=several.all_commands, cwd=tmp_path, **SPLIT, **local)
    codes, said = job.wait(200)
    assert codes == [0] * ranks, said
    readers = [int((tmp_path / f"read-{rank}").exists()) for rank in range(ranks)]
    assert readers == [1] + [0] * (ranks - 1)
    held = [json.loads((tmp_path / "run" / f"held-{rank}.json").read_text()) for rank in range(ranks)]
    assert all(part < (0.8 if adapter == "lora" else 0.51) * total for part, total in held)
    assert held == held[:2] * machines, "halves of the layers, whatever the number of machines"
    assert adapter == "lora" or held[0][0] + held[1][0] == held[0][1], "and of all weights, without a rest"
    for one, other in zip(*(rows(tmp_path / name) for name in ("alone", "run")), strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-5)
    first, second = (load_file(tmp_path / name / "checkpoints/step-2/weights.safetensors") for name in ("alone", "run"))
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_all_weights_split_resume_exactly_and_each_process_holds_half_of_all(base: Path, tmp_path: Path) -> None:
    """Weights, gradients and moments, as the plan says; what is saved is whole, and one process continues it."""
    rows = [{"prompt": f"Say {row}", "completion": "yes " * (1 + row % 4)} for row in range(9)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [*SMOKE, "adapter=none", "algo=sft", "data=jsonl", f"data.path={tmp_path / 'rows.jsonl'}"]
    command += [f"data.eval_path={tmp_path / 'rows.jsonl'}", "preference=none", f"model.path={base}", "train.steps=4"]
    command += ["optim.schedule=constant", "train.batch_size=3", "train.keep_checkpoints=2", "train.checkpoint_every=2"]
    whole, run = tmp_path / "whole", tmp_path / "run"
    file = tmp_path / "commands.json"
    first = [*command, f"run.dir={run}", "train.steps=2"]
    file.write_text(json.dumps([[*command, f"run.dir={whole}"], first, ["resume", str(run), "train.steps=4"]]))
    codes, said = Job(str(file), ranks=2, main=several.all_commands, cwd=tmp_path, **SPLIT).wait(200)
    assert codes == [0, 0], said

    for name in ("weights", "optimizer"):
        straight, resumed = (load_file(one / f"checkpoints/step-4/{name}.safetensors") for one in (whole, run))
        assert straight.keys() == resumed.keys()
        assert all(torch.equal(value, resumed[name]) for name, value in straight.items())
    weights = load_file(run / "checkpoints/step-4/weights.safetensors")
    exported = load_file(run / "adapter/model.safetensors")
    assert all(torch.equal(value, weights[name]) for name, value in exported.items())

    size = sum(value.numel() for value in weights.values())
    plan = resident_plan(compose(command), shards=2)
    held = [json.loads((run / f"held-{rank}.json").read_text())[0] for rank in (0, 1)]
    assert sum(held) == size
    assert held == pytest.approx([size / 2] * 2, rel=1e-3)  # the vocabulary is odd: one process has a row more
    for part, rank in zip(held, (0, 1), strict=True):
        state = json.loads((run / f"state-{rank}.json").read_text())
        assert state == {"gradients": [part, size], "moments": [2 * part, 2 * size]}
        assert plan.moments == pytest.approx(4 * 2 * part, rel=1e-3)

    shutil.rmtree(run / "checkpoints/step-4")
    assert cli.main(["resume", str(run), "--step", "2", "train.steps=4"]) == 0
    for name, value in load_file(run / "checkpoints/step-4/weights.safetensors").items():
        torch.testing.assert_close(value, weights[name], rtol=1e-4, atol=1e-5)


def rows(run: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: row[key] for key in row if key not in ("seconds", "tokens_per_second")} for row in found]


@pytest.mark.parametrize(
    ("size", "local", "wanted", "expected"),
    [
        (8, [8] * 8, None, 8),  # one machine
        (8, [4] * 8, None, 4),  # two
        (2, [1, 1], None, 2),  # one process on each
        (3, [2, 2, 1], None, 3),  # unequal
        (8, [4] * 8, 8, 8),  # the launcher's word
        (8, [8] * 8, 2, 2),
    ],
)
def test_a_base_is_sharded_within_a_machine(
    size: int, local: list[int], wanted: int | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "size", lambda: size)
    monkeypatch.setattr(distributed, "all_equal", lambda _: len(set(local)) == 1)
    if wanted:
        monkeypatch.setenv("PARALLELISM_CONFIG_DP_SHARD_SIZE", str(wanted))
    for here in set(local):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(here))
        assert sharding.shards() == expected


def test_a_number_that_does_not_divide_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "size", lambda: 8)
    for given, problem in (("3", "3 does not divide the 8 processes"), ("two", "=two is not a number")):
        monkeypatch.setenv("PARALLELISM_CONFIG_DP_SHARD_SIZE", given)
        with pytest.raises(InputError, match=problem):
            sharding.shards()
