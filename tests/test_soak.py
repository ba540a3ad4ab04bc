"""Faults at random moments of real processes; what is resumed ends as an undisturbed run, byte for byte."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "soak.py"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "runs"), [(10, 4), pytest.param(50, 1000, marks=[pytest.mark.nightly, pytest.mark.timeout(1000)])]
)
def test_nothing_is_lost(count: int, runs: int) -> None:
    command = [sys.executable, SCRIPT, "--faults", str(count), "--most-in-a-row", str(runs)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    assert " in one process: " in done.stdout
    *_, faults, _ = done.stdout.strip().splitlines()
    assert int(faults.split()[0]) >= count
    assert faults.endswith("nothing lost")
