"""Hostile inputs against every command, as real processes; `scripts/hostile.py` alone plays more than `--quick`."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "hostile.py"


@pytest.mark.slow
@pytest.mark.parametrize("chosen", [["--quick"], pytest.param([], marks=pytest.mark.nightly)], ids=["quick", "all"])
def test_everything_holds(chosen: list[str]) -> None:
    done = subprocess.run([sys.executable, SCRIPT, *chosen], capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    assert done.stdout.rstrip().endswith(": all held")
