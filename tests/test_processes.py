"""Several processes train what one would: data-parallel and with the base split, here on the CPU over gloo."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import several
import torch
from forked import Job
from helpers import OFFLINE, ONLINE, offline_arguments, refused_smoke
from safetensors.torch import load_file

from alignrun import cli, distributed
from alignrun.distributed import group
from alignrun.training.accumulate import micro_batches

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
SPLIT = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
"""What `accelerate launch --use_fsdp --fsdp_version 2` puts into the environment of a process."""
SMOKE = (
    "experiment=smoke",
    "model.device=cpu",
    "train.steps=2",
    "train.checkpoint_every=0",
    "train.micro_batch_size=null",
    "generation.max_new_tokens=4",
    "data.eval_size=4",
    "optim.learning_rate=0.001",  # with more, sums in another order may end in another token
    "optim.epsilon=1e-4",  # with less, Adam makes a step of the rounding error of a gradient that is zero
)
CONFIGS = Path(__file__).parents[1] / "scripts" / "accelerate"
CLOCK = ("seconds", "tokens_per_second")


def accelerate(kind: str, *arguments: str, machine: int | None = None) -> subprocess.Popen[str]:
    """Two processes under one of the configurations in scripts/accelerate, on one machine or, as if, on two."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / f"{kind}.yaml")]
    launcher += ["--num_processes", "2"]
    if machine is not None:
        launcher += ["--main_process_ip", "127.0.0.1", "--machine_rank", str(machine), "--main_process_port", "29517"]
    else:
        launcher += ["--main_process_port", "0"]  # any that is free
    return subprocess.Popen(
        [*launcher, "-m", "alignrun", *arguments],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def together(folder: Path, count: int, commands: list[list[str]], **environment: str) -> None:
    """All commands in one job."""
    file = folder / "commands.json"
    file.write_text(json.dumps(commands))
    codes, said = Job(str(file), ranks=count, main=several.all_commands, cwd=folder, **environment).wait(300)
    assert codes == [0] * count, said


def measured(run: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: row[key] for key in row if key not in CLOCK} for row in rows]


def weights(run: Path) -> dict[str, torch.Tensor]:
    (last,) = (run / "checkpoints").iterdir()
    files = {file.stem: load_file(file) for file in last.glob("*.safetensors")}
    return {f"{stem}.{name}": value for stem, tensors in files.items() for name, value in tensors.items()}


def samples(run: Path) -> str:
    file = run / "samples.jsonl"
    return file.read_text() if file.is_file() else ""


def assert_the_same(one: Path, other: Path) -> None:
    """Up to the order of sums, which Adam carries on: it divides by the size of gradients that may be tiny."""
    for ours, theirs in zip(measured(one), measured(other), strict=True):
        if ours["step"] == 1 and one.name not in ("reward_model", "preference_model"):
            # The policy is the reference yet: this counts the signs of margins that are zero up to rounding.
            ours.pop("accuracy", None), theirs.pop("accuracy", None)
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=1e-4, atol=1e-5)
    assert samples(one) == samples(other)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Arguments by name: every algorithm, and what else passes through a model."""
    folder = tmp_path_factory.mktemp("data")
    found = {name: [f"algo={name}"] for name in ONLINE}
    # A split base draws opponents independently, and so must the run of one process that it is compared with.
    found["nash_md"].append("generation.opponents=independent")
    found["rebel"].append("optim.epsilon=1e-3")  # its gradients are small; rounding must not turn their signs
    found |= {name: offline_arguments(name, folder) for name in OFFLINE}
    found["dpo with the reference ahead"] = [*found["dpo"], "algo.precompute_reference=true"]
    found["minibatches"] = ["algo=ppo", "algo.minibatches=2", "algo.epochs=2", "algo.kl_target=1.0"]
    found["uneven"] = ["algo=ppo", "train.batch_size=5", "data.eval_size=5", "train.micro_batch_size=1"]
    # Completions end at different times in the two, and so one must wait for the other.
    found["uneven self_play"] = ["algo=self_play", *found["uneven"][1:]]
    found["early"] = ["generation.max_new_tokens=160", "algo.samples_per_prompt=1", "evaluation.batch_size=2"]
    found["early"] += ["train.batch_size=2", "data.eval_size=2"]
    found["drafted"] = ["algo=nash_md", "generation.opponents=drafted", "algo.mix_beta=0.5"]
    found["checkpointing"] = [*found["nash_md"], "model.gradient_checkpointing=true"]
    feedback = folder / "feedback"
    assert cli.main([*SMOKE, *found["reward_model"], f"run.dir={feedback}"]) == 0
    found["learned"] = ["algo=nash_md", "preference=bradley_terry", f"preference.path={feedback}"]
    found |= {f"{name}, all weights": [*found[name], "adapter=none"] for name in WHOLE_CASES}
    # With seed 0, one token is drawn so near the border of another that rounding decides.
    found["early, all weights"] += ["generation.opponents=independent", "seed=1"]
    return found


CASES = [
    *ONLINE,
    *OFFLINE,
    "dpo with the reference ahead",
    "minibatches",
    "uneven",
    "early",
    "checkpointing",
    "learned",
    "drafted",
]
WHOLE_CASES = [
    *("sft", "dpo", "ipo", "dpo with the reference ahead"),
    *("nash_md", "nash_mp", "nash_ema", "uneven self_play", "early", "checkpointing"),
]
"""Which of them also train all weights with the base split: frozen copies, half-steps and averages among them."""
SPLIT_CASES = ["nash_md", "nash_mp", "ppo", "dpo", "reward_model", "checkpointing"]
"""Which of them also run with the base split: each kind of pass through a model once."""
SPLIT_CASES += [f"{name}, all weights" for name in WHOLE_CASES]


@pytest.fixture(scope="module")
def alone(cases: dict[str, list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the runs of one process are, each under the name of its case."""
    folder = tmp_path_factory.mktemp("alone")
    for name, arguments in cases.items():
        assert cli.main([*SMOKE, *arguments, f"run.dir='{folder / name}'"]) == 0
    return folder


@pytest.fixture(scope="module", params=["data parallel", "split"])
def two(request: pytest.FixtureRequest, cases: dict[str, list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the runs of two processes are."""
    folder = tmp_path_factory.mktemp("two")
    kind = request.param
    names = CASES if kind == "data parallel" else SPLIT_CASES
    commands = [[*SMOKE, *cases[name], f"run.dir='{folder / name}'"] for name in names]
    environment = {"ALIGNRUN_CACHE": str(folder / "cache")}
    if kind == "split":
        environment |= SPLIT
    together(folder, 2, commands, **environment)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", list(dict.fromkeys([*CASES, *SPLIT_CASES])))
def test_two_processes_train_what_one_does(name: str, alone: Path, two: Path) -> None:
    if not (two / name).is_dir():
        pytest.skip("this case runs in the other way alone")
    assert_the_same(alone / name, two / name)


@pytest.mark.slow
def test_a_split_base_is_held_in_parts(two: Path, request: pytest.FixtureRequest) -> None:
    """Adapters, embeddings and head are whole everywhere; of the layers each process has half."""
    split = request.node.callspec.params["two"] != "data parallel"
    held = [json.loads((two / "nash_md" / f"held-{rank}.json").read_text()) for rank in (0, 1)]
    assert [total for _, total in held] == [held[0][1]] * 2
    assert all(part < 0.8 * total if split else part == total for part, total in held)


def test_rows_are_split_over_the_processes_and_gathered_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    for size, count in [(1, 5), (2, 4), (2, 5), (3, 4), (4, 2)]:
        monkeypatch.setattr(group, "size", lambda size=size: size)
        parts, counted, micro = [], [], []
        for rank in range(size):
            monkeypatch.setattr(group, "rank", lambda rank=rank: rank)
            parts.append(distributed.share(count))
            counted += parts[-1][: distributed.owned_rows(count)]
            batches = [batch for batch, counts in micro_batches(Rows(torch.arange(count)), 2) if counts]
            micro += [row for batch in batches for row in batch.values.tolist()]
        assert len({len(part) for part in parts}) == 1  # equal shares, so no process waits
        assert [row for part in parts for row in part][:count] == counted == micro == list(range(count))


@dataclass(frozen=True)
class Rows:
    values: torch.Tensor


def test_round_robin_counts_every_item_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group, "size", lambda: 3)
    taken = []
    for rank in range(3):
        monkeypatch.setattr(group, "rank", lambda rank=rank: rank)
        taken.append(list(distributed.round_robin("abcd")))
    assert [len(steps) for steps in taken] == [2, 2, 2]
    assert sorted(item for steps in taken for item, counts in steps if counts) == list("abcd")


RUN = ("experiment=smoke", "model.device=cpu", "model.dtype=float32", "train.checkpoint_every=1", "evaluation.every=2")


STEPS = (
    *("train.steps=4", "train.micro_batch_size=null", "optim.epsilon=1e-4", "optim.schedule=constant"),
    "generation.opponents=independent",  # as a split base draws them
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four steps of one process."""
    run = tmp_path_factory.mktemp("whole") / "run"
    assert cli.main([*RUN, *STEPS, f"run.dir={run}"]) == 0
    return run


def assert_half_and_rest(run: Path, whole: Path, said: str) -> None:
    """After two steps of two processes, of which one has written, one process makes the rest of the run of one."""
    assert said.count("step 2/2") == 1
    assert said.count("nash_md on tiny: 2 steps") == 1
    assert cli.main(["resume", str(run), "train.steps=4"]) == 0
    for file in ("metrics.jsonl", "samples.jsonl"):
        assert len((run / file).read_text().splitlines()) >= len((whole / file).read_text().splitlines())
    rows = {(row["step"], "loss" in row): row for row in measured(run)}
    for row in measured(whole):
        assert row == pytest.approx(rows[row["step"], "loss" in row], rel=1e-4, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [
        "fsdp2",
        pytest.param("data_parallel", marks=pytest.mark.nightly),
        pytest.param("two_machines", marks=pytest.mark.nightly),
    ],
)
def test_accelerate_launch_and_resuming_under_another_number(kind: str, whole: Path, tmp_path: Path) -> None:
    given = [*RUN, *STEPS, "train.steps=2", f"run.dir={tmp_path / 'run'}"]
    jobs = (
        [accelerate(kind, *given)] if kind != "two_machines" else [accelerate(kind, *given, machine=n) for n in (0, 1)]
    )
    said = [job.communicate(timeout=300)[0] for job in jobs]
    assert [job.returncode for job in jobs] == [0] * len(jobs), said
    assert_half_and_rest(tmp_path / "run", whole, "".join(said))


def test_one_process_on_each_of_two_machines(whole: Path, tmp_path: Path) -> None:
    """Both are the first of their machine; still only one speaks and writes."""
    run = tmp_path / "run"
    given = (*RUN, *STEPS, "train.steps=2", f"run.dir={run}")
    codes, said = Job(*given, ranks=2, LOCAL_RANK="0", LOCAL_WORLD_SIZE="1").wait()
    assert codes == [0, 0], said
    assert_half_and_rest(run, whole, said)


@pytest.mark.slow
def test_one_process_resumes_as_two_and_a_stop_signal_stops_all(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert cli.main([*RUN, "train.steps=1", f"run.dir={run}"]) == 0
    job = Job("resume", str(run), "train.steps=100000", ranks=2)
    wait_for_step(run, 4, job)
    job.send(signal.SIGTERM)
    codes, said = job.wait()
    assert 0 not in codes
    assert said.count("stopped by SIGTERM") == 1
    step = int(re.search(r"stopped by SIGTERM after step (\d+)", said)[1])
    assert (run / "checkpoints" / f"step-{step}").is_dir()
    codes, said = Job("resume", str(run), f"train.steps={step + 2}", ranks=2).wait()
    assert codes == [0, 0], said


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_dies_ends_the_job_and_loses_nothing(victim: int, tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = Job(*RUN, "train.steps=100000", f"run.dir={run}", ranks=2)
    wait_for_step(run, 3, job)
    job.processes[victim].kill()
    codes, said = job.wait()
    assert codes[1 - victim] == 1
    lines = [line for line in said.splitlines() if line.startswith("alignrun: error")]
    assert len(lines) == 1
    assert f"process {1 - victim} of 2 has lost another one" in lines[0]
    assert "alignrun resume RUN" in lines[0]
    steps = max(row["step"] for row in measured(run))
    codes, said = Job("resume", str(run), f"train.steps={steps + 1}", ranks=2).wait()
    assert codes == [0, 0], said
    assert [row["step"] for row in measured(run) if "loss" in row] == list(range(1, steps + 2))


@pytest.mark.slow
def test_what_fails_in_one_process_is_reported_once(tmp_path: Path) -> None:
    """A judge that only the second process finds broken: the main one saves, and says it."""
    (tmp_path / "judging.py").write_text(
        "import os\n\ndef judge(prompts, first, second):\n"
        "    if os.environ['RANK'] == '1' and os.path.exists('broken'):\n        raise OSError('no connection')\n"
        "    return [0.5] * len(prompts)\n"
    )
    arguments = [*RUN, "preference=function", "preference.function=judging:judge", "train.steps=100000"]
    job = Job(*arguments, f"run.dir={tmp_path / 'run'}", ranks=2, cwd=tmp_path)
    wait_for_step(tmp_path / "run", 2, job)
    (tmp_path / "broken").touch()
    codes, said = job.wait()
    assert [line for line in said.splitlines() if line.startswith("alignrun: error")] == [
        "alignrun: error: preference.function=judging:judge failed: OSError: no connection (judging.py:5)"
    ]
    assert 0 not in codes
    assert (tmp_path / "run" / "checkpoints").is_dir()


@pytest.mark.slow
def test_where_one_process_alone_runs_out_of_memory_the_gradient_is_the_same(alone: Path, tmp_path: Path) -> None:
    run = tmp_path / "nash_md"
    given = (*SMOKE, "generation.opponents=independent", f"run.dir={run}")
    codes, said = Job(*given, ranks=2, main=several.out_of_memory).wait()
    assert codes == [0, 0], said
    assert_the_same(alone / "nash_md", run)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["algo=nash_mdd"], "nash_mdd"),  # before the processes have joined
        (["algo=sft", "data=inline", "data.prompts=[a]"], "a prompt without a completion"),  # and after
        (["-m", "seed=1,2"], "is one process"),
    ],
)
def test_bad_input_is_reported_once(arguments: list[str], expected: str, tmp_path: Path) -> None:
    given = [] if "-m" in arguments else [f"run.dir={tmp_path / 'run'}"]
    codes, said = Job("experiment=smoke", "model.device=cpu", *arguments, *given, ranks=2).wait()
    lines = [line for line in said.splitlines() if line.startswith("alignrun: error")]
    assert len(lines) == 1
    assert expected in lines[0]
    assert 0 not in codes
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "environment", "expected"),
    [
        (["adapter=qlora"], SPLIT, "does not shard the quantised base of adapter=qlora"),
        (["adapter=none", "tracker.artifact=best"], SPLIT, "tracker.artifact=best would gather weights"),
        (["adapter=none"], SPLIT | {"FSDP_OFFLOAD_PARAMS": "true"}, "--fsdp_offload_params true is for a frozen base"),
        (
            ["adapter=none"],
            SPLIT | {"FSDP_RESHARD_AFTER_FORWARD": "false"},
            "--fsdp_reshard_after_forward false is for a frozen base",
        ),
        ([], {"ACCELERATE_USE_FSDP": "true"}, "--fsdp_version 2"),
        ([], {"ACCELERATE_USE_DEEPSPEED": "true"}, "--use_fsdp --fsdp_version 2"),
        ([], SPLIT | {"WORLD_SIZE": "1"}, "needs several processes to shard the base over"),
        (["model.device=cpu:0"], {}, "names one device for 2 processes"),
        (["eval"], {}, "is one process"),
    ],
)
def test_what_does_not_go_with_several_processes(
    arguments: list[str],
    environment: dict[str, str],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    launcher = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for name, value in {**launcher, **environment}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("accelerate.PartialState", lambda **_: None)
    if arguments == ["eval"]:
        assert cli.main(["eval", "runs=[a,b]"]) == 2
        error = capsys.readouterr().err.strip()
    else:
        error = refused_smoke(capsys, tmp_path, *arguments)
    assert expected in error


def wait_for_step(run: Path, step: int, job: Job) -> None:
    for _ in range(1200):
        if (run / "metrics.jsonl").is_file() and any(row["step"] >= step for row in measured(run)):
            return
        assert job.running(), job.wait()
        time.sleep(0.05)
    raise AssertionError("the job does not come so far")
