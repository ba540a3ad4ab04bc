import builtins
import hashlib
import io
import json
import multiprocessing
import os
import random
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import quick
import torch
from torch import Tensor

from alignrun.errors import InputError, RunError
from alignrun.training.checkpoint import latest_checkpoint, list_checkpoints, load_checkpoint, save_checkpoint
from alignrun.training.optim import flatten_optimizer, restore_optimizer

OS_CHANGES = ("mkdir", "rename", "replace", "unlink", "rmdir")
FORK = multiprocessing.get_context("fork")


def save(folder: Path, step: int, keep: int = 2, fill: float | None = None, size: int = 64) -> Path:
    value = float(step) if fill is None else fill
    tensors = {"policy": {"w": torch.full((size,), value)}, "optimizer": {"w.step": torch.tensor(value)}}
    return save_checkpoint(folder, step, tensors, {"fill": value}, keep)


def steps(folder: Path) -> list[int]:
    return [step for step, _ in list_checkpoints(folder)]


def test_round_trip(tmp_path: Path) -> None:
    base = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    tensors = {
        "policy": {
            "plain": base,
            "shared": base,
            "transposed": base.T,
            "slice": base[1:, 1:3],
            "bf16": torch.randn(5).to(torch.bfloat16),
            "scalar": torch.tensor(3.5),
            "empty": torch.zeros(0, 3),
            "grad": torch.ones(2, requires_grad=True),
            "rng": torch.get_rng_state(),
        },
        "nothing": {},
    }
    state = {"step": 7, "lr": 0.1 + 0.2, "text": "é", "nested": {"list": [1, None, True]}}
    path = save_checkpoint(tmp_path / "checkpoints", 7, tensors, state, keep=1)
    assert path == tmp_path / "checkpoints" / "step-7" == latest_checkpoint(tmp_path / "checkpoints")
    loaded = load_checkpoint(path)
    assert (loaded.path, loaded.step, loaded.state) == (path, 7, state)
    assert loaded.tensors.keys() == tensors.keys()
    assert loaded.tensors["policy"].keys() == tensors["policy"].keys()
    for name, value in tensors["policy"].items():
        found = loaded.tensors["policy"][name]
        assert found.dtype == value.dtype
        assert found.shape == value.shape
        assert torch.equal(found, value)
    modes = {file.stat().st_mode for file in path.iterdir()}
    assert len(modes) == 1  # the weights are as readable as the rest


def test_the_newest_are_kept(tmp_path: Path) -> None:
    assert list_checkpoints(tmp_path / "none") == []
    assert latest_checkpoint(tmp_path / "none") is None
    for step in (8, 9, 10, 11):
        save(tmp_path, step, keep=2)
    assert steps(tmp_path) == [10, 11]
    save(tmp_path, 11, keep=2, fill=0.5)
    assert load_checkpoint(tmp_path / "step-11").state == {"fill": 0.5}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-10", "step-11"]


def test_resuming_from_an_older_one_gives_up_the_later_ones(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        save(tmp_path, step, keep=3)
    save(tmp_path, 15, keep=3)
    assert steps(tmp_path) == [10, 15]


def test_only_leftovers_of_dead_processes_are_removed(tmp_path: Path) -> None:
    gone = FORK.Process(target=int)
    gone.start()
    gone.join()
    mine, dead, alive = (tmp_path / f"step-1.tmp-{pid}" for pid in (os.getpid(), gone.pid, os.getppid()))
    for folder in (mine, dead, alive):
        folder.mkdir()
        (folder / "state.json").write_text("{}")
    save(tmp_path, 2)
    assert {path.name for path in tmp_path.iterdir()} == {"step-2", alive.name}


def test_a_failed_save_leaves_no_trace(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(RunError, match=r"could not write .*/step-3: File too large; check the disk"):
            save(tmp_path, 3, size=100_000)
        with pytest.raises(RunError, match="step-2: File too large"):
            save(tmp_path, 2, size=100_000, fill=9.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-1", "step-2"]
    assert load_checkpoint(tmp_path / "step-2").state == {"fill": 2.0}
    with pytest.raises(TypeError):
        save_checkpoint(tmp_path, 3, {}, {"not json": object()}, keep=2)
    with pytest.raises(ValueError, match="cannot be the name of a file"):
        save_checkpoint(tmp_path, 3, {"../policy": {}}, {}, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-1", "step-2"]


def save_for_ever(folder: Path) -> None:
    os.fsync = quick.fsync  # a write takes its time, in which the kill may fall
    for step in range(1, 1_000_000):
        for fill in (0.25, 0.75):  # the second replaces the first
            save(folder, step, fill=fill, size=20_000)


def test_a_kill_at_any_time_leaves_only_complete_checkpoints(tmp_path: Path) -> None:
    timing = random.Random(0)
    interrupted = 0
    for attempt in range(8):
        folder = tmp_path / str(attempt)
        child = FORK.Process(target=save_for_ever, args=(folder,), daemon=True)
        child.start()
        while not list_checkpoints(folder):
            time.sleep(0.002)
        time.sleep(timing.uniform(0.01, 0.06))
        os.kill(child.pid or 0, signal.SIGKILL)
        child.join()
        assert child.exitcode == -signal.SIGKILL
        interrupted += bool(list(folder.glob("*.tmp-*")))
        found = list_checkpoints(folder)
        assert found
        for step, path in found:
            loaded = load_checkpoint(path)
            assert loaded.step == step
            assert torch.equal(loaded.tensors["policy"]["w"], torch.full((20_000,), loaded.state["fill"]))
        after = found[-1][0] + 1
        save(folder, after, keep=1)
        assert [path.name for path in folder.iterdir()] == [f"step-{after}"]
    assert interrupted > 0


def save_and_die(folder: Path, survived: int) -> None:
    """Replace step 2, and die when the folder has been changed `survived` times."""
    left = survived

    def counted(change: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            if left == 0:
                os._exit(9)
            left -= 1
            return change(*arguments, **options)

        return call

    for module, name in ((io, "open"), (builtins, "open"), *((os, name) for name in OS_CHANGES)):
        setattr(module, name, counted(getattr(module, name)))
    save(folder, 2, keep=1, fill=0.5)
    os._exit(0)


def test_a_death_between_any_two_changes_loses_nothing(tmp_path: Path) -> None:
    seen = []
    code: int | None = 9
    while code:
        folder = tmp_path / str(len(seen))
        save(folder, 1)
        save(folder, 2, fill=0.25)
        child = FORK.Process(target=save_and_die, args=(folder, len(seen)))
        child.start()
        child.join()
        code = child.exitcode
        loaded = [load_checkpoint(path) for _, path in list_checkpoints(folder)]
        assert loaded[-1].step == 2
        seen.append(loaded[-1].state["fill"])
        save(folder, 3, keep=1)
        assert [path.name for path in folder.iterdir()] == ["step-3"]
    assert seen == sorted(seen)
    assert (seen[0], seen[-1]) == (0.25, 0.5)
    assert len(seen) > 20


@pytest.mark.parametrize("name", ["policy.safetensors", "optimizer.safetensors", "state.json", "manifest.json"])
def test_a_flipped_bit_is_caught_in_every_byte(tmp_path: Path, name: str) -> None:
    path = save(tmp_path, 1, size=8)
    original = (path / name).read_bytes()
    for position in range(len(original)):
        flipped = bytearray(original)
        flipped[position] ^= 1 << position % 8
        (path / name).write_bytes(flipped)
        with pytest.raises(InputError, match=r"step-1: .*; start again$") as caught:
            load_checkpoint(path)
        assert name in str(caught.value)
    (path / name).write_bytes(original)
    load_checkpoint(path)


def rewrite_manifest(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a manifest as a forger would: with a digest that fits."""
    body = json.loads((path / "manifest.json").read_text())
    del body["sha256"]
    change(body)
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    text = json.dumps(body | {"sha256": digest}, indent=2, sort_keys=True) + "\n"
    (path / "manifest.json").write_text(text)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "..", "a/b.safetensors", "x.pt", ""])
def test_a_manifest_that_names_a_file_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    path = save(tmp_path / "checkpoints", 1)
    (tmp_path / "checkpoints" / "x").write_text("")
    rewrite_manifest(path, lambda _: None)
    load_checkpoint(path)
    empty = {"bytes": 0, "sha256": hashlib.sha256(b"").hexdigest()}
    rewrite_manifest(path, lambda body: body["files"].update({name: empty}))
    with pytest.raises(InputError, match=r"manifest.json names '.*', which is not a file of a checkpoint"):
        load_checkpoint(path)


def damage_cut(path: Path) -> None:
    file = path / "policy.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def damage_format(path: Path) -> None:
    rewrite_manifest(path, lambda body: body.update(format=2))


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (damage_cut, "policy.safetensors was changed or truncated"),
        (damage_format, "manifest.json has format 2, and this version reads format 1"),
        (lambda path: (path / "policy.safetensors").unlink(), "policy.safetensors is missing"),
        (lambda path: (path / "state.json").unlink(), "state.json is missing"),
        (lambda path: (path / "manifest.json").unlink(), "manifest.json is missing"),
        (lambda path: (path / "extra.safetensors").write_text(""), "extra.safetensors does not belong to it"),
        (lambda path: (path / "folder").mkdir(), "folder does not belong to it"),
        (lambda path: path.rename(path.with_name("elsewhere")), "does not exist"),
    ],
)
def test_damage_names_the_file_and_the_checkpoint_to_go_back_to(
    tmp_path: Path, damage: Callable[[Path], Any], problem: str
) -> None:
    folder = tmp_path / "run" / "checkpoints"
    save(folder, 4)
    path = save(folder, 5)
    damage(path)
    with pytest.raises(InputError) as caught:
        load_checkpoint(path)
    fix = f"resume from step 4: `alignrun resume {tmp_path / 'run'} --step 4`"
    assert str(caught.value) == f"checkpoint {path}: {problem}; {fix}"


class Model(torch.nn.Module):
    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = torch.nn.Linear(4, 3, dtype=dtype)
        self.second = torch.nn.Linear(3, 1, dtype=dtype)
        self.unused = torch.nn.Parameter(torch.zeros(2, dtype=dtype))

    def optimizer(self, **settings: Any) -> tuple[torch.optim.AdamW, list[str]]:
        named = list(self.named_parameters())
        groups = [
            {"params": [value for name, value in named if name.endswith("weight")], "weight_decay": 0.1},
            {"params": [value for name, value in named if not name.endswith("weight")]},
        ]
        names = [name for name, _ in named if name.endswith("weight")]
        names += [name for name, _ in named if not name.endswith("weight")]
        return torch.optim.AdamW(groups, lr=0.01, betas=(0.8, 0.95), **settings), names

    def train_steps(self, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
        for step in range(first, last):
            inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(step)).to(self.unused.dtype)
            for group in optimizer.param_groups:
                group["lr"] = 0.01 / (1 + step)
            optimizer.zero_grad()
            self.second(torch.tanh(self.first(inputs))).square().mean().backward()
            optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("amsgrad", [False, True])
def test_adamw_continues_bit_for_bit(tmp_path: Path, dtype: torch.dtype, amsgrad: bool) -> None:
    model = Model(dtype)
    optimizer, names = model.optimizer(amsgrad=amsgrad)
    model.train_steps(optimizer, 0, 3)
    tensors, state = flatten_optimizer(optimizer, names)
    weights: dict[str, Tensor] = model.state_dict()
    path = save_checkpoint(tmp_path, 3, {"optimizer": tensors, "policy": weights}, {"optimizer": state}, keep=1)
    model.train_steps(optimizer, 3, 6)

    loaded = load_checkpoint(path)
    again = Model(dtype)
    again.load_state_dict(loaded.tensors["policy"])
    fresh, names = again.optimizer(amsgrad=amsgrad)
    restore_optimizer(fresh, names, loaded.tensors["optimizer"], loaded.state["optimizer"])
    assert fresh.state_dict()["param_groups"][0]["betas"] == (0.8, 0.95)
    again.train_steps(fresh, 3, 6)
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    # The checkpoint in memory is not the one that is trained on.
    assert torch.equal(loaded.tensors["optimizer"]["first.bias.step"], torch.tensor(3.0))


def test_adamw_refuses_what_does_not_fit() -> None:
    model = Model()
    optimizer, names = model.optimizer()
    model.train_steps(optimizer, 0, 1)
    tensors, state = flatten_optimizer(optimizer, names)
    state = json.loads(json.dumps(state))
    tensors = {name: value.clone() for name, value in tensors.items()}
    fresh, _ = Model().optimizer()

    def refuses(match: str, names: list[str] = names, tensors: dict[str, Tensor] = tensors) -> None:
        with pytest.raises(InputError, match=match):
            restore_optimizer(fresh, names, tensors, state)
        assert not fresh.state

    refuses("not this model's .*first.other is in only one", [names[0].replace("weight", "other"), *names[1:]])
    refuses("order or groups differ", [names[1], names[0], *names[2:]])
    refuses("lacks tensors that it lists", tensors={k: v for k, v in tensors.items() if "second" not in k})
    wrong = tensors | {"first.weight.exp_avg": torch.zeros(5, 5)}
    refuses(r"first.weight.exp_avg has shape \[5, 5\] in the checkpoint and \[3, 4\]", tensors=wrong)
    with pytest.raises(ValueError, match="5 parameters need as many distinct names, not 4"):
        flatten_optimizer(optimizer, names[:-1])
    restore_optimizer(fresh, names, tensors, state)
