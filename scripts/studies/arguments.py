"""Arguments that the scripts share."""

import argparse
from pathlib import Path


def seeds(text: str) -> list[int]:
    """Different seeds, as 0,1,2."""
    parts = text.split(",")
    if not all(part.isdecimal() for part in parts) or len(set(parts)) < len(parts):
        raise argparse.ArgumentTypeError(f"must be different numbers, as 0,1,2, not {text}")
    return list(map(int, parts))


def positive(text: str) -> int:
    """A number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a number of at least 1, not {text}")
    return int(text)


def add_running(parser: argparse.ArgumentParser, folder: str, results: Path) -> None:
    """The options of what trains and measures."""
    parser.add_argument("--folder", type=Path, default=Path(folder), help="of the runs")
    parser.add_argument("--results", type=Path, default=results, help="of the measurements")
    parser.add_argument("--seeds", type=seeds, default=[0, 1, 2])
    parser.add_argument("--at-once", type=positive, default=2, help="runs at a time")
