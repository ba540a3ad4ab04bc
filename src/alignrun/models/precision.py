"""Which precision a CPU multiplies faster: timed once for each setup, and remembered in the user's cache.

Native bfloat16 products do not settle it: on CPUs without matrix units (AMX) they took from 0.3 to 2.5 times as long as
those in float32.
"""

import contextlib
import hashlib
import json
import os
import tempfile
import time
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F

from alignrun.errors import InputError
from alignrun.models.sources import cache_folder
from alignrun.security.files import read_json

ROWS, WIDTH = 64, 1024
"""The product that is timed: so many rows times a square matrix."""
ROUNDS, SECONDS = 12, 0.2
"""Products in each precision, and the time after which no more of them start."""
WORTH = 0.8
"""bfloat16 must take at most this share of float32's time: it rounds more, and adapters stay in float32."""


def dtype_name(dtype: torch.dtype) -> str:
    """As the configuration spells it, such as `bfloat16`."""
    return str(dtype).removeprefix("torch.")


@cache
def faster_dtype(threads: int) -> torch.dtype:
    """The dtype for base weights on this CPU, which has native bfloat16 products.

    Concurrent runs agree: the first to write the cache decides. Where it cannot be written, it is bfloat16 without
    timing, since a run and its resumption could time differently.

    Args:
        threads: how many torch uses; the result is remembered for this number.
    """
    setup = {"cpu": dict(torch.cpu.get_capabilities()), "torch": torch.__version__, "threads": threads}
    digest = hashlib.sha256(json.dumps(setup, sort_keys=True).encode()).hexdigest()[:16]
    file = cache_folder() / "precision" / f"{digest}.json"
    try:
        found = _read(file)
        if found is None:
            _write(file, json.dumps(_measured() | setup, indent=2))
            found = _read(file)
    except OSError:
        found = None
    return found or torch.bfloat16


def _measured() -> dict[str, object]:
    """Milliseconds of the product in each precision, and the one to use. Other processes delay single rounds only."""
    products = {
        dtype: (torch.ones(ROWS, WIDTH, dtype=dtype), torch.ones(WIDTH, WIDTH, dtype=dtype))
        for dtype in (torch.float32, torch.bfloat16)
    }
    least = dict.fromkeys(products, float("inf"))
    end = time.perf_counter() + SECONDS
    for number in range(ROUNDS):
        for dtype, (inputs, weight) in products.items():
            start = time.perf_counter()
            F.linear(inputs, weight)
            least[dtype] = min(least[dtype], time.perf_counter() - start)
        if number and time.perf_counter() > end:  # the first round also warms up
            break
    dtype = torch.bfloat16 if least[torch.bfloat16] <= WORTH * least[torch.float32] else torch.float32
    return {"dtype": dtype_name(dtype)} | {f"{dtype_name(timed)} ms": 1e3 * seconds for timed, seconds in least.items()}


def _read(file: Path) -> torch.dtype | None:
    """The remembered dtype; None if there is none, or the file is damaged."""
    with contextlib.suppress(InputError, LookupError, TypeError):
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[read_json(file)["dtype"]]
    return None


def _write(file: Path, text: str) -> None:
    """Write a file that is missing or damaged; one that another process has completed meanwhile stays.

    Raises OSError.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor, partial = tempfile.mkstemp(dir=file.parent)
    try:
        with os.fdopen(descriptor, "w") as opened:
            opened.write(text)
        if _read(file) is None:
            file.unlink(missing_ok=True)
        with contextlib.suppress(FileExistsError):
            os.link(partial, file)  # unlike a renaming, it replaces nothing
    finally:
        Path(partial).unlink()
