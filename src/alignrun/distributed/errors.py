"""Errors of several processes: all of them fail together, and one reports it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch.distributed as dist

from alignrun.distributed import group
from alignrun.distributed.collectives import gather_objects
from alignrun.errors import AlignrunError, InputError, RunError, one_line


def should_report(error: AlignrunError) -> bool:
    """Whether this process prints an error; before the group exists, local rank 0 of each machine does."""
    if dist.is_initialized():
        return group.is_main() or not error.raised_together
    with suppress(InputError):  # an environment that no launcher made: every process reports its own errors
        return group.launched() == 1 or os.environ.get("LOCAL_RANK", "0") == "0"
    return True


@contextmanager
def raise_together() -> Iterator[None]:
    """Raise on every process what fails on one of them within the context, and report it once.

    Inside, processes may wait for each other only in another such context: a process that fails jumps to the end of
    its context.

    Raises:
        AlignrunError: that of the first process that has one. A process with any other exception raises its own.
    """
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        # With a sharded base the others wait inside a layer. They notice only once this process has died.
        alone = group.sharded() and not isinstance(error, AlignrunError)
        if group.size() == 1 or isinstance(error, group.Lost) or alone:
            raise
        failure = error
    if group.size() == 1:
        return
    sent = None
    if isinstance(failure, AlignrunError):
        sent = type(failure), str(failure), True
    elif failure is not None:
        process = f"process {group.rank()} of {group.size()}"
        sent = RunError, f"{process} failed, {type(failure).__name__}: {one_line(failure)}", False
    failures = [found for found in gather_objects(sent) if found is not None]
    if failure is not None and not isinstance(failure, AlignrunError):
        raise failure
    if failures:
        kind, text, _ = failures[0]
        raised: AlignrunError = failure if failure is not None and str(failure) == text else kind(text)
        raised.raised_together = all(expected for *_, expected in failures)
        raise raised
