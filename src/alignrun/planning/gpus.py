"""The GPUs that a plan is made for: by name, by size and in what number."""

import re
from collections.abc import Sequence

from alignrun.errors import InputError

GPU_SIZES = (24, 48, 80)
"""GiB"""
NAMED = {
    "t4": 15,
    "v100": 32,
    "a10": 22,
    "a10g": 22,
    "l4": 22,
    "rtx3090": 24,
    "rtx4090": 24,
    "rtx5090": 32,
    "l40s": 45,
    "a40": 45,
    "a6000": 48,
    "a100": 80,
    "h100": 80,
    "h200": 140,
    "b200": 179,
}
"""Name → GiB that its driver reports; the larger size where there are two."""


def planned_gpus(settings: Sequence[str]) -> tuple[Sequence[float], int]:
    """The sizes of `plan.gpu=24GB` or `plan.gpu=H100`, in GiB, by default the usual ones; and `plan.shards=8`.

    Raises:
        InputError: another setting, not a valid size, or not a number of processes.
    """
    sizes: list[float] = []
    if sum(setting.startswith("plan.shards=") for setting in settings) > 1:
        raise InputError("config: plan.shards is given twice: leave one out")
    shards = 1
    for setting in settings:
        key, _, value = setting.partition("=")
        if key == "plan.shards":
            if not (value.isascii() and value.isdecimal() and int(value) > 0):
                raise InputError(f"config: plan.shards={value} is not a number of processes: write for example 8")
            shards = int(value)
            continue
        if key != "plan.gpu":
            raise InputError(
                f"config: {key} is unknown: alignrun plan takes plan.gpu=24GB, plan.shards=8 and the run's settings"
            )
        name = re.sub(r"[\s_-]", "", value.lower())
        found = re.fullmatch(r"(\d+(?:\.\d+)?)(?:gi?b?)?", name)
        if name not in NAMED and (not found or float(found[1]) == 0):
            known = ", ".join(one.upper() for one in NAMED)
            raise InputError(
                f"config: plan.gpu={value} is not a memory size or a known GPU: write for example plan.gpu=24GB, or "
                f"one of {known}"
            )
        sizes.append(NAMED[name] if name in NAMED else float(found[1]))  # type: ignore[index]
    return sizes or GPU_SIZES, shards
