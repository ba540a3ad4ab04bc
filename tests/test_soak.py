"""Faults at random moments of real processes; what is resumed ends as an undisturbed run, byte for byte."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "soak.py"


@pytest.mark.slow
@pytest.mark.parametrize("count", [10, pytest.param(50, marks=pytest.mark.nightly)])
def test_nothing_is_lost(count: int) -> None:
    done = subprocess.run([sys.executable, SCRIPT, "--faults", str(count)], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    assert " in one process: " in done.stdout
    *_, faults, _ = done.stdout.strip().splitlines()
    assert int(faults.split()[0]) >= count
    assert faults.endswith("nothing lost")
