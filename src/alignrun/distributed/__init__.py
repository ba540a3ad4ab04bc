"""The processes that train one policy together (data-parallel).

`accelerate launch` or `torchrun` starts them. Every process holds the trained weights and sees the whole batch of a
step. The expensive work (decoding, judging, forward and backward passes) is split by rows, and the results are gathered
on every process. A step is therefore the same for any number of processes, up to the order of sums. Without a launcher
there is a single process, and nothing here waits.
"""

from alignrun.distributed.collectives import (
    all_done,
    all_equal,
    all_reduce_sum,
    all_reduce_sum_each,
    broadcast,
    gather,
    largest,
)
from alignrun.distributed.errors import raise_together, should_report
from alignrun.distributed.group import (
    Lost,
    is_main,
    joined,
    launched,
    leave,
    rank,
    report_lost,
    sharded,
    size,
    start,
)
from alignrun.distributed.shares import by_share, owned_rows, round_robin, share

__all__ = [
    "Lost",
    "all_done",
    "all_equal",
    "all_reduce_sum",
    "all_reduce_sum_each",
    "broadcast",
    "by_share",
    "gather",
    "is_main",
    "joined",
    "largest",
    "launched",
    "leave",
    "owned_rows",
    "raise_together",
    "rank",
    "report_lost",
    "round_robin",
    "sharded",
    "share",
    "should_report",
    "size",
    "start",
]
