"""Train reward and preference models on people's pairs, and compare them and what they choose.

    python scripts/people.py run --people pandalm --data FILE [--folder runs/people] [--seeds 0,1,2] [--at-once 2]
    python scripts/people.py write

`run` trains and asks what --results, by default docs/people/, has no measurements of; an interrupted run is resumed.
`write` makes RESULTS.md from the measurements, without a model.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from studies import people, people_report
from studies.arguments import add_running

from alignrun.errors import AlignrunError


def main() -> None:
    """Do what the command says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("run", "write"))
    parser.add_argument("--people", choices=list(people.PEOPLE), help="the data set")
    parser.add_argument("--data", type=Path, help="its file")
    add_running(parser, "runs/people", Path(__file__).parents[1] / "docs/people")
    given = parser.parse_args()
    if given.command == "run" and (given.people is None or given.data is None):
        parser.error("run needs --people and --data")
    try:
        if given.command == "run":
            people.run(given.people, given.data, given.folder, given.results, given.seeds, given.at_once)
        else:
            people_report.write(given.results)
    except AlignrunError as error:
        parser.exit(error.exit_code, f"{parser.prog}: error: {error}\n")


if __name__ == "__main__":
    main()
