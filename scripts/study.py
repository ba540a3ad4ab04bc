"""Train every method on a preference that has cycles, and write what came of it.

    python scripts/study.py teach --folder runs/styles
    python scripts/study.py run --folder runs/styles [--methods ppo,nash_md] [--seeds 0,1,2] [--at-once 2] [key=value …]
    python scripts/study.py write

`teach` trains a small student of SmolLM2 on which a run takes minutes, and prints the settings that `run` takes for
it. `run` trains and measures what --results, by default docs/styles/, has no measurements of; an interrupted run is
resumed. Each machine trains a different student: repeat the study with `--results FOLDER`. The overrides are those of
`alignrun` and hold for all methods. `write` makes RESULTS.md and RESULTS.svg from the measurements, without a model.
"""

import argparse
import shlex
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from studies import panel_report, style_report, sweep
from studies.arguments import add_running
from studies.methods import METHODS
from studies.records import read

from alignrun.errors import AlignrunError


def main() -> None:
    """Do what the command says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("teach", "run", "write"))
    add_running(parser, "runs/styles", Path(__file__).parents[1] / "docs/styles")
    parser.add_argument("--methods", type=lambda text: text.split(","), default=list(METHODS))
    given, overrides = parser.parse_known_args()
    if unknown := [name for name in given.methods if name not in METHODS]:
        parser.error(f"unknown method {unknown[0]}: choose from {', '.join(METHODS)}")
    if unknown := [text for text in overrides if "=" not in text]:
        parser.error(f"unknown argument {unknown[0]}")
    if overrides and given.command != "run":
        parser.error(f"{given.command} takes no settings: leave out {overrides[0]}")
    try:
        if given.command == "teach":
            print(shlex.join(sweep.teach(given.folder)))
        elif given.command == "run":
            sweep.run(given.folder, given.results, given.methods, given.seeds, given.at_once, overrides)
        else:
            report = style_report if "counts" in read(given.results / "reference.json") else panel_report
            report.write(given.results)
    except AlignrunError as error:
        parser.exit(error.exit_code, f"{parser.prog}: error: {error}\n")


if __name__ == "__main__":
    main()
