"""Ten minutes on one GPU: is what was built and tested without one right there, and how fast is it?

    python scripts/gpu_check.py [--minutes 10] [--only decoding waits] [--json gpu_check.json] [--small]

Sections, in this order: `suite` runs the tests marked gpu; `decoding` times a random 8B model at 768 and 96 rows with
and without CUDA graphs; `attention` compares kernels; `training` runs one pass with and without gradient checkpointing
and TF32 and compares its memory with the plan; `waits` counts how often a step waits for the device; `headline` takes
three steps of `algo=nash_md model=llama-8b`; `server` compares vLLM with the native engine, where vLLM is installed.
Every value stands next to the expected one, in a table and in one JSON. A section that fails does not stop the others;
the exit code is 1 if one failed or if there was no time left for it. On a CPU, and with `--small`, the model is tiny.
"""

import argparse
import importlib
import platform
import time
import traceback
from pathlib import Path
from typing import Any

import torch
import transformers
from gpu_checks.report import FAILED, LATE, SKIPPED, Report, Section, Skip
from gpu_checks.subject import SMALL, Scale, Subject
from rich.console import Console

SECTIONS = ("suite", "decoding", "attention", "training", "waits", "headline", "server")


def main(arguments: list[str] | None = None) -> int:
    """Run the sections; 0 if all passed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="no section starts later than this")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS, metavar="SECTION")
    parser.add_argument("--json", type=Path, default=Path("gpu_check.json"), help="the file to write")
    parser.add_argument("--small", action="store_true", help="a tiny model, also on a GPU")
    parser.add_argument("--cpu", action="store_true", help="on the CPU, also where there is a GPU")
    options = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() and not options.cpu else "cpu")
    small = options.small or device.type == "cpu"
    console = Console()
    if not console.is_terminal:
        console = Console(width=150)
    end = time.monotonic() + 60 * options.minutes
    subject = Subject(device, SMALL if small else Scale())
    report = Report(describe(device))
    try:
        for name in (name for name in SECTIONS if name in options.only):
            section = Section(name)
            report.sections.append(section)
            console.print(f"{name} …", highlight=False)
            attempt(section, subject, end - time.monotonic())
            report.write(options.json)  # after each, so that a killed run loses nothing
    finally:
        subject.close()
    report.show(console)
    console.print(f"{'passed' if report.passed else 'FAILED'}: {options.json}", markup=False, highlight=False)
    return 0 if report.passed else 1


def attempt(section: Section, subject: Subject, left: float) -> None:
    """Run one section; whatever it raises is its result."""
    if left <= 0:
        section.status, section.reason = LATE, "--minutes is over"
        return
    start = time.monotonic()
    try:
        importlib.import_module(f"gpu_checks.{section.name}").run(subject, section, left)
    except Skip as reason:
        section.status, section.reason = SKIPPED, str(reason)
    except Exception as error:  # any failure of one section is a result, and the others still run
        traceback.print_exc()
        section.fail(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200])
    section.seconds = time.monotonic() - start
    if section.status == FAILED:
        subject.release()


def describe(device: torch.device) -> dict[str, Any]:
    """Where it ran."""
    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if cuda else platform.processor() or platform.machine(),
        "memory_gib": torch.cuda.get_device_properties(device).total_memory / 2**30 if cuda else None,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "cuda": torch.version.cuda,
        "date": time.strftime("%Y-%m-%d"),
    }


if __name__ == "__main__":
    raise SystemExit(main())
