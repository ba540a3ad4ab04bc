"""The processes that train one policy together: which one this is, whose rows are whose, and what all of them know.

`accelerate launch` or `torchrun` starts them. Every one holds the trained weights and sees the whole batch of a step;
what is dear, decoding, judging and the passes through the model, is shared out by rows, and what comes of it goes to
all. So a step is the same for any number of processes, up to the order of sums. Without a launcher there is a single
process, and nothing here waits.
"""

import atexit
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from itertools import islice
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from alignrun.errors import AlignrunError, InputError, RunError, one_line

Item = TypeVar("Item")

GONE = ("gloo", "connection closed", "connection reset", "broken pipe", "nccl", "socket timeout")
"""What errors of torch say where another process cannot be reached."""


LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What every launcher sets."""


def launched() -> int:
    """How many processes a launcher has started for this job; 1 without one.

    Raises:
        InputError: the environment is that of no launcher: one variable without the other, or no number.
    """
    rank, world = (os.environ.get(name) for name in ("RANK", "WORLD_SIZE"))
    if rank is None and world in (None, "1"):
        return 1
    if rank is None or world is None:
        missing, given = ("WORLD_SIZE", "RANK") if world is None else ("RANK", "WORLD_SIZE")
        raise InputError(
            f"{given} is set and {missing} is not: start the processes of a job with accelerate launch or torchrun, or "
            f"a single one with env -u {given} alignrun …"
        )
    if not (rank.isdecimal() and world.isdecimal() and int(rank) < int(world)):
        raise InputError(
            f"RANK={rank} and WORLD_SIZE={world} are no rank and size of a job: start its processes with accelerate "
            "launch or torchrun, or a single one with env -u RANK -u WORLD_SIZE alignrun …"
        )
    return int(world)


def start(device: torch.device) -> None:
    """Join the other processes of the job; with a single process, nothing.

    Raises:
        InputError: the launcher asks for what does not go with this, or the others cannot be reached.
    """
    _check_launcher()
    if launched() == 1 or dist.is_initialized():
        return
    if device.index is not None:
        raise InputError(
            f"model.device={device} names one device for {launched()} processes: use auto, which gives each its own"
        )
    missing = [name for name in LAUNCHER if not os.environ.get(name)]
    if missing:
        raise InputError(
            f"WORLD_SIZE={launched()} is set and {', '.join(missing)} not: start the processes of a job with "
            "accelerate launch or torchrun, or a single one with env -u RANK -u WORLD_SIZE alignrun …"
        )
    from accelerate import PartialState  # here, since a single process does without it

    try:
        minutes = float(os.environ.get("ALIGNRUN_TIMEOUT_MINUTES", "30"))
        # It picks the backend, and the GPU of this process.
        PartialState(cpu=device.type == "cpu", timeout=timedelta(minutes=minutes))
    except (RuntimeError, ValueError, NotImplementedError, ImportError) as error:
        raise InputError(f"the {launched()} processes of this job do not find each other: {one_line(error)}") from None


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Within the context the processes of the job work together, and leave when all are done. Raises as `start`."""
    start(device)
    together = False
    try:
        yield
        together = True
    except AlignrunError as error:
        together = error.raised_together
        raise
    finally:
        if together and dist.is_initialized():
            with others_there():
                dist.barrier()


def leave(code: int) -> None:
    """End this process where it is one of several; a single one returns.

    What Python has to do at its exit is done. torch is not asked to take down its group of processes: that aborts now
    and then, when the others do the same.
    """
    if not dist.is_initialized():
        return
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is, from 0."""
    if dist.is_initialized():
        return dist.get_rank()
    return int(os.environ["RANK"]) if launched() > 1 else 0


def is_main() -> bool:
    """Whether this is the one that writes files and speaks to the user."""
    return launched() == 1 or rank() == 0


def sharded() -> bool:
    """Whether the base is split among the processes, which then pass through it in step."""
    return launched() > 1 and _flag("ACCELERATE_USE_FSDP")


def share(count: int) -> list[int]:
    """Which of so many rows are computed here; as many for each process, and so the last may be given some again."""
    each = -(-count // size())
    return [min(row, count - 1) for row in range(rank() * each, (rank() + 1) * each)]


def owned_rows(count: int) -> int:
    """How many rows of `share` no other process has: those that are to be counted, the first of them."""
    each = -(-count // size())
    return max(0, min(each, count - rank() * each))


def by_share(count: int, compute: Callable[[list[int]], Tensor]) -> Tensor:
    """[count, …] from `compute`, which each process calls for the rows of its share; what fails on one fails on all.

    What it gives has one shape everywhere, but for the rows.
    """
    if size() == 1:
        return compute(list(range(count)))
    with raise_together():
        part = compute(share(count))
    return gather(part, count)


def round_robin(items: Iterable[Item]) -> Iterator[tuple[Item, bool]]:
    """Every process its turn: one item of each `size()`, and whether it counts.

    Where they do not come out even, the last one is given to several and counts once: all take as many steps.
    """
    rest = iter(items)
    while group := list(islice(rest, size())):
        yield group[min(rank(), len(group) - 1)], rank() < len(group)


def gather(part: Tensor, count: int) -> Tensor:
    """[count, …] the rows of all processes in order, from those of each one's `share`, of one shape everywhere."""
    if size() == 1:
        return part
    sent = part.to(_wire()).contiguous()
    if part.dtype is torch.bool:  # which gloo does not know
        sent = sent.to(torch.uint8)
    parts = [torch.empty_like(sent) for _ in range(size())]
    with others_there():
        dist.all_gather(parts, sent)
    return torch.cat(parts)[:count].to(part)


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """The sum of a tensor over the processes, to the last bit the same on all of them."""
    if size() == 1:
        return tensor
    sent = tensor.to(_wire(), copy=True)
    _reduce(sent)
    return sent.to(tensor)


def all_reduce_sum_each(tensors: Sequence[Tensor]) -> None:
    """The same for many tensors, in place and together."""
    if size() == 1:
        return
    for kind in dict.fromkeys(tensor.dtype for tensor in tensors):  # in one order everywhere
        group = [tensor for tensor in tensors if tensor.dtype is kind]
        total = torch.cat([tensor.flatten() for tensor in group])
        _reduce(total)
        for tensor, part in zip(group, total.split([tensor.numel() for tensor in group]), strict=True):
            tensor.copy_(part.view_as(tensor))


def largest(value: int) -> int:
    """The largest of a number over the processes."""
    return max(_all(value)) if size() > 1 else value


def all_done(done: bool) -> bool:
    """Whether this process is done and, where all pass through one base in step, all the others are too."""
    return all(_all(done)) if sharded() else done


def broadcast(value: Any) -> Any:
    """What the main process has."""
    if size() == 1:
        return value
    values = [value]
    with others_there():
        dist.broadcast_object_list(values, src=0)
    return values[0]


def all_equal(value: Any) -> bool:
    """Whether all processes have the same."""
    return size() == 1 or len(set(_all(value))) == 1


def should_report(error: AlignrunError) -> bool:
    """Whether this process tells the user of an error; before they join, the first one of each machine does."""
    if dist.is_initialized():
        return is_main() or not error.raised_together
    with suppress(InputError):  # of an environment that no launcher made, where each speaks for itself
        return launched() == 1 or os.environ.get("LOCAL_RANK", "0") == "0"
    return True


@contextmanager
def raise_together() -> Iterator[None]:
    """What fails within the context on one process fails on all of them, and is told once.

    Inside, processes wait for each other in such a context again or not at all: one that fails goes to its end at once.

    Raises:
        AlignrunError: that of the first process that has one. One that has failed in another way raises what it has.
    """
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        # In a split base the others wait inside a layer, and learn of it when this process is gone.
        apart = sharded() and not isinstance(error, AlignrunError)
        if size() == 1 or isinstance(error, Lost) or apart:
            raise
        failure = error
    if size() == 1:
        return
    said = None
    if isinstance(failure, AlignrunError):
        said = type(failure), str(failure), True
    elif failure is not None:
        said = RunError, f"process {rank()} of {size()} failed, {type(failure).__name__}: {one_line(failure)}", False
    failures = [found for found in _all(said) if found is not None]
    if failure is not None and not isinstance(failure, AlignrunError):
        raise failure
    if failures:
        kind, text, _ = failures[0]
        ours: AlignrunError = failure if failure is not None and str(failure) == text else kind(text)
        ours.raised_together = all(known for *_, known in failures)
        raise ours


class Lost(RunError):
    """Another process of the job is gone."""


@contextmanager
def others_there() -> Iterator[None]:
    """Turn torch's errors about processes that are gone into one line.

    Raises:
        Lost: another process cannot be reached.
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error).lower()
        if size() == 1 or not (isinstance(error, dist.DistError) or any(word in text for word in GONE)):
            raise
        raise Lost(
            f"process {rank()} of {size()} has lost another one ({one_line(error, 120)}): see what that one said, then "
            "go on from the last checkpoint with `alignrun resume RUN`, with as many processes as you like"
        ) from None


def _all(value: Any) -> list[Any]:
    values: list[Any] = [None] * size()
    with others_there():
        dist.all_gather_object(values, value)
    return values


def _reduce(tensor: Tensor) -> None:
    with others_there():
        dist.all_reduce(tensor)


def _wire() -> torch.device:
    """Where tensors must be to be sent."""
    from accelerate import PartialState

    device: torch.device = PartialState().device
    return device


def _check_launcher() -> None:
    """Refuse what `accelerate launch` offers and this does not take."""
    if _flag("ACCELERATE_USE_DEEPSPEED"):
        raise InputError(
            "accelerate launch --use_deepspeed is not supported: --use_fsdp --fsdp_version 2 splits the frozen base too"
        )
    if not _flag("ACCELERATE_USE_FSDP"):
        return
    if launched() == 1:
        raise InputError(
            "accelerate launch --use_fsdp: a single process has none to share its base with: add --num_processes, or "
            "launch without it"
        )
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise InputError("accelerate launch --use_fsdp: add --fsdp_version 2, the first version is not supported")


def _flag(name: str) -> bool:
    return os.environ.get(name, "false").lower() in ("1", "true")
