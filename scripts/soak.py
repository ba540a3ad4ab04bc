"""Runs that are killed, stopped, starved and damaged at random moments, resumed until they end, and compared.

    python scripts/soak.py --minutes 60            # or --faults 50; --seed 0 for the same plan again

First one run on the tiny model is made without faults. Then the same run is repeated: each attempt is a real process,
forked from one that has imported everything, with one fault at a random moment. The run is resumed until it has ended;
then its metrics, samples and weights must equal those of the first one, byte for byte.

Faults: SIGKILL; SIGTERM and SIGINT, after which the process must have saved and exited with 143 or 130; a full disk (a
limit on the size of a file, which a checkpoint exceeds); the newest checkpoint cut short, or with a bit flipped.
In addition, one process makes whole runs in a row while its memory and open files are watched.
"""

import argparse
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

SETTINGS = (
    "experiment=smoke",
    "train.steps=12",
    "train.checkpoint_every=1",
    "train.keep_checkpoints=3",
    "evaluation.every=4",
)
STOPPED = {signal.SIGKILL: {-9}, signal.SIGTERM: {0, 143}, signal.SIGINT: {0, 130}}
"""Exit codes after a signal; 0 where the run was done already."""
CLOCK = ("seconds", "tokens_per_second")
GROWTH = 1.1
"""How much more memory the last of many runs in a process may need than its third."""


def start(arguments: Sequence[str], log: Path, most_bytes: int | None = None) -> int:
    """Run `alignrun` in a process of its own; its pid."""
    usual = signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # in the child, until the command has begun
    pid = os.fork()
    if pid:
        signal.signal(signal.SIGINT, usual)
        return pid
    code = 70
    try:
        code = _child(arguments, log, most_bytes)
    except KeyboardInterrupt:  # just before the command has begun, or after it has ended
        code = 130
    finally:
        os._exit(code)


def _child(arguments: Sequence[str], log: Path, most_bytes: int | None) -> int:
    try:
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        if most_bytes is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # and so writing fails instead
            resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
        signal.signal(signal.SIGINT, signal.default_int_handler)  # from here on it is the command's to answer
        return alignrun(arguments)
    except Exception:
        traceback.print_exc()  # nothing may leave the command in this way
        return 70
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        sys.stdout.flush()
        sys.stderr.flush()


def alignrun(arguments: Sequence[str]) -> int:
    from alignrun import cli

    return cli.main(list(arguments))


def wait(pid: int) -> int:
    """The exit code; of a killed process the negative signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


class Soak:
    """The faults, and what came of them."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.log = folder, folder / "log.txt"
        self.random = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.runs = self.resumes = 0
        self.whole = folder / "whole"
        began = time.monotonic()
        self.expect(wait(start(self.command(self.whole), self.log)), {0}, "a run in peace")
        self.seconds = self.patience = time.monotonic() - began
        largest = max(file.stat().st_size for file in self.whole.rglob("*.safetensors"))
        self.too_small = largest // 2

    @staticmethod
    def command(run: Path) -> list[str]:
        """The command that starts or resumes a run."""
        return ["resume", str(run)] if (run / "config.yaml").is_file() else [*SETTINGS, f"run.dir={run}"]

    def expect(self, code: int, allowed: set[int], what: str) -> None:
        if code not in allowed:
            tail = self.log.read_text(errors="replace")[-2000:]
            sys.exit(f"{what} ended with {code} and not with {' or '.join(map(str, sorted(allowed)))}:\n{tail}")

    def again(self, enough: Callable[[], bool]) -> None:
        """Make the run once more, with a fault in every attempt until there have been enough."""
        run = self.folder / f"run-{self.runs}"
        self.log.unlink()  # or it would itself become larger than a full disk lets a file be
        faults = (self.signal, self.signal, self.full_disk, self.damage)
        for attempt in range(1000):
            self.resumes += (run / "config.yaml").is_file()
            self.patience = self.seconds * (0.5 + attempt / 100)  # the machine may have become slower
            code = wait(start(self.command(run), self.log)) if enough() else self.random.choice(faults)(run)
            if code == 0:
                break
            if attempt == 999:
                sys.exit(f"{run} does not end")
        self.compare(run)
        self.runs += 1
        shutil.rmtree(run)

    def signal(self, run: Path) -> int:
        sent = self.random.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT))
        pid = start(self.command(run), self.log)
        time.sleep(self.random.uniform(0, self.patience))
        os.kill(pid, sent)
        code = wait(pid)
        self.counts[sent.name] += 1
        # A signal before the loop begins finds nothing to save, and Python's own way to end.
        early = {-int(sent)} | ({130} if sent is signal.SIGINT else set())
        self.expect(code, STOPPED[sent] | early | {0}, sent.name)
        return code

    def full_disk(self, run: Path) -> int:
        code = wait(start(self.command(run), self.log, most_bytes=self.too_small))
        self.counts["full disk"] += 1
        self.expect(code, {0, 1}, "a full disk")  # 0 where nothing was left to write
        return code

    def damage(self, run: Path) -> int:
        """Of the newest of two or more checkpoints: with a single one, nothing would be left to go back to."""
        from alignrun.training.checkpoint import list_checkpoints

        found = [path for _, path in list_checkpoints(run / "checkpoints")]
        if len(found) > 1 and not (run / "summary.json").is_file():
            file = self.random.choice(sorted(found[-1].iterdir()))
            content = bytearray(file.read_bytes())
            if self.random.random() < 0.5:
                del content[self.random.randrange(len(content)) :]
                self.counts["cut short"] += 1
            else:
                content[self.random.randrange(len(content))] ^= 1 << self.random.randrange(8)
                self.counts["bit flipped"] += 1
            file.write_bytes(content)
        return self.signal(run)

    def compare(self, run: Path) -> None:
        for name in ("metrics.jsonl", "samples.jsonl"):
            if records(run / name) != records(self.whole / name):
                sys.exit(f"{run / name} is not what it is in peace")
        for file in sorted(self.whole.rglob("*.safetensors")):
            if file.read_bytes() != (run / file.relative_to(self.whole)).read_bytes():
                sys.exit(f"{run / file.relative_to(self.whole)} is not what it is in peace")


def records(file: Path) -> list[dict[str, object]]:
    """The rows, but for the clock."""
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in CLOCK} for row in rows]


def in_a_row(
    folder: Path, most: int, stop: "multiprocessing.synchronize.Event", found: "multiprocessing.Queue[object]"
) -> None:
    """Whole runs in one process, and at the end what it was after each: its memory in MiB and its open files."""
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    measured = []
    for number in range(most):
        run = folder / f"row-{number}"
        code = alignrun([*SETTINGS, f"run.dir={run}"])
        shutil.rmtree(run)
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        measured.append((code, pages * resource.getpagesize() / 2**20, len(list(Path("/proc/self/fd").iterdir()))))
        if stop.is_set() and number >= 3:
            break
    found.put(measured)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, help="how long new faults are made")
    parser.add_argument("--faults", type=int, help="how many are made, where no time is given")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--most-in-a-row", type=int, default=1_000_000, help="runs of the one process, at least 4")
    options = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    import alignrun.cli
    import alignrun.launch.build
    import alignrun.launch.train  # noqa: F401 - for all that are forked from here

    deadline = None if options.minutes is None else time.monotonic() + 60 * options.minutes
    wanted = options.faults or 50
    with tempfile.TemporaryDirectory(prefix="alignrun-soak-") as name:
        folder = Path(name)
        context = multiprocessing.get_context("fork")
        stop, found = context.Event(), context.Queue()
        row = context.Process(target=in_a_row, args=(folder, options.most_in_a_row, stop, found), daemon=True)
        row.start()
        soak = Soak(folder, options.seed)

        def enough() -> bool:
            if deadline is None:
                return soak.counts.total() >= wanted
            return time.monotonic() > deadline

        while not enough():
            soak.again(enough)
            done = ", ".join(f"{count} {kind}" for kind, count in sorted(soak.counts.items()))
            print(f"{soak.runs} runs, {soak.resumes} resumes; {done}", flush=True)
        stop.set()
        while row.is_alive() and found.empty():
            time.sleep(0.1)
        if found.empty() and row.exitcode:
            sys.exit(f"the process that makes many runs ended with {row.exitcode}")
        measured = found.get()
    codes, memory, files = zip(*measured, strict=True)
    print(f"{soak.counts.total()} faults in {soak.runs} runs, nothing lost")
    grown = f"{memory[2]:.0f} to {memory[-1]:.0f} MiB, {files[2]} to {files[-1]} open files"
    print(f"{len(codes)} runs in one process: {grown}")
    if any(codes) or memory[-1] > GROWTH * memory[2] or files[-1] > files[2]:
        sys.exit("a process that makes many runs does not stay as it was")


if __name__ == "__main__":
    main()
