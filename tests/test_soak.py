"""Fifty faults at random moments of real processes; what is resumed ends as a run in peace, byte for byte."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "soak.py"


@pytest.mark.slow
def test_nothing_is_lost() -> None:
    done = subprocess.run([sys.executable, SCRIPT, "--faults", "50"], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    assert " in one process: " in done.stdout
    *_, faults, _ = done.stdout.strip().splitlines()
    assert int(faults.split()[0]) >= 50
    assert faults.endswith("nothing lost")
