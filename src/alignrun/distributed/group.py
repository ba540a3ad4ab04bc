"""The process group: the launcher's environment, rank and size, joining and leaving."""

import atexit
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from alignrun.errors import AlignrunError, InputError, RunError, one_line

LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""The environment variables that every launcher sets."""

UNREACHABLE = ("gloo", "connection closed", "connection reset", "broken pipe", "nccl", "socket timeout")
"""Words in torch's errors when another process cannot be reached."""


class Lost(RunError):
    """Another process of the job has died."""


def launched() -> int:
    """Number of processes a launcher has started for this job; 1 without a launcher.

    Raises:
        InputError: RANK and WORLD_SIZE are not both set, or are not a valid rank and size.
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
            f"RANK={rank} and WORLD_SIZE={world} are not a valid rank and size: start the processes of a job with "
            "accelerate launch or torchrun, or a single one with env -u RANK -u WORLD_SIZE alignrun …"
        )
    return int(world)


def start(device: torch.device) -> None:
    """Join the other processes of the job; a single process has nothing to do.

    Raises:
        InputError: the launcher's settings are not supported, or the other processes cannot be reached.
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
    from accelerate import PartialState  # imported here because a single process does not need it

    try:
        minutes = float(os.environ.get("ALIGNRUN_TIMEOUT_MINUTES", "30"))
        # This chooses the backend and this process's GPU.
        PartialState(cpu=device.type == "cpu", timeout=timedelta(minutes=minutes))
    except (RuntimeError, ValueError, NotImplementedError, ImportError) as error:
        raise InputError(f"the {launched()} processes of this job cannot connect: {one_line(error)}") from None


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Within the context the processes of the job work together; all leave it at the same time. Raises as `start`."""
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
            with report_lost():
                dist.barrier()


def leave(code: int) -> None:
    """End this process if it is one of several; a single process returns.

    Python's exit handlers run, but torch's process group is not destroyed: that sometimes aborts when the other
    processes destroy theirs at the same time.
    """
    if not dist.is_initialized():
        return
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Rank of this process, from 0."""
    if dist.is_initialized():
        return dist.get_rank()
    return int(os.environ["RANK"]) if launched() > 1 else 0


def is_main() -> bool:
    """Whether this is the process that writes files and prints."""
    return launched() == 1 or rank() == 0


def sharded() -> bool:
    """Whether the base is sharded over the processes, which must then run its forward passes in step."""
    return launched() > 1 and _flag("ACCELERATE_USE_FSDP")


@contextmanager
def report_lost() -> Iterator[None]:
    """Turn torch's errors about dead processes into one line.

    Raises:
        Lost: another process cannot be reached.
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error).lower()
        if size() == 1 or not (isinstance(error, dist.DistError) or any(word in text for word in UNREACHABLE)):
            raise
        raise Lost(
            f"process {rank()} of {size()} has lost another one ({one_line(error, 120)}): read the other one's error, "
            "then continue from the last checkpoint with `alignrun resume RUN`, with any number of processes"
        ) from None


def _check_launcher() -> None:
    """Refuse the options of `accelerate launch` that are not supported."""
    if _flag("ACCELERATE_USE_DEEPSPEED"):
        raise InputError(
            "accelerate launch --use_deepspeed is not supported: --use_fsdp --fsdp_version 2 shards the frozen base too"
        )
    if not _flag("ACCELERATE_USE_FSDP"):
        return
    if launched() == 1:
        raise InputError(
            "accelerate launch --use_fsdp needs several processes to shard the base over: add --num_processes, or "
            "launch without it"
        )
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise InputError("accelerate launch --use_fsdp: add --fsdp_version 2, version 1 is not supported")


def _flag(name: str) -> bool:
    return os.environ.get(name, "false").lower() in ("1", "true")
