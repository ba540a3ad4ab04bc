"""The tests that need a device."""

import re
import subprocess
import sys
from pathlib import Path

from gpu_checks.report import Section
from gpu_checks.subject import Subject

ROOT = Path(__file__).parents[2]


def run(subject: Subject, section: Section, left: float) -> None:
    """`pytest -m gpu`: all pass. Without a device it only counts them."""
    collect = [] if subject.device.type == "cuda" else ["--collect-only"]
    files = [] if subject.device.type == "cuda" else ["tests/test_gpu.py"]
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", *collect, *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=max(60.0, left))
    counts = {
        name: int(number) for number, name in re.findall(r"(\d+) (passed|failed|error|skipped|tests?)", done.stdout)
    }
    section.check("exit code of pytest -m gpu", done.returncode, "0", done.returncode == 0)
    section.check("tests", counts, "more than 10", sum(counts.values()) > 10)
    for line in re.findall(r"^(?:FAILED|ERROR) .*$", done.stdout, re.MULTILINE):
        section.check(line[:160], "failed", "passed", False)
