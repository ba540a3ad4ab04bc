"""Commands of alignrun in processes of their own, forked from one that has imported everything.

A process that imports torch, transformers and PEFT for itself takes many seconds to start.
"""

import functools
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path

import quick
import torch

from alignrun.cli import entry

CONTEXT = multiprocessing.get_context("forkserver")


@functools.cache
def start_server() -> None:
    """Before Python 3.12.4 a fork server takes its path from PYTHONPATH alone, and skips what it cannot find."""
    CONTEXT.set_forkserver_preload(["warm"])
    given = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parent), *sys.path, given]))
    forkserver.ensure_running()
    os.environ.pop("PYTHONPATH") if given is None else os.environ.update(PYTHONPATH=given)


class Job:
    """A command in a process of its own or, with a number of ranks, in as many as a launcher would start."""

    def __init__(
        self,
        *arguments: str,
        ranks: int = 0,
        cwd: Path | None = None,
        main: Callable[[], None] = entry,
        **environment: str,
    ) -> None:
        start_server()
        self.log = Path(tempfile.mkstemp(prefix="alignrun-job-")[1])
        self.processes: list[BaseProcess] = []
        port = str(free_port())
        for rank in range(ranks or 1):
            launcher = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "MASTER_PORT": port}
            launcher |= {"LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1"}
            variables = {**os.environ, **(launcher if ranks else {}), **environment}
            process = CONTEXT.Process(target=run, args=(main, arguments, variables, cwd or Path.cwd(), self.log))
            process.start()
            self.processes.append(process)

    def running(self) -> bool:
        return all(process.is_alive() for process in self.processes)

    def send(self, number: signal.Signals) -> None:
        """A signal to every process, as a launcher passes it on."""
        for process in self.processes:
            os.kill(process.pid, number)

    def wait(self, timeout: float = 120) -> tuple[list[int], str]:
        """The exit codes, and what all the processes wrote to both streams."""
        deadline = time.monotonic() + timeout
        try:
            for process in self.processes:
                process.join(max(0, deadline - time.monotonic()))
            codes = [process.exitcode for process in self.processes]
            assert None not in codes, f"{codes} after {timeout} s: {self.log.read_text()}"
            return codes, self.log.read_text()
        finally:
            for process in self.processes:
                process.kill()
            self.log.unlink()


class Popen:
    """What a sweep asks of `subprocess.Popen`, for the runs that it starts."""

    def __init__(self, command: Sequence[str]) -> None:
        assert list(command[:3]) == [sys.executable, "-m", "alignrun"]
        self.job = Job(*command[3:])

    def terminate(self) -> None:
        self.job.send(signal.SIGTERM)

    def wait(self, timeout: float | None = None) -> int:
        (process,) = self.job.processes
        process.join(timeout)
        if process.exitcode is None:
            raise subprocess.TimeoutExpired("alignrun", timeout or 0)
        self.job.log.unlink(missing_ok=True)
        return process.exitcode


def run(main: Callable[[], None], arguments: Sequence[str], variables: dict[str, str], cwd: Path, log: Path) -> None:
    """The whole of such a process."""
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(cwd)
    out = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    quick.install()
    sys.argv = ["alignrun", *arguments]
    main()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
