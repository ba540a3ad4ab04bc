"""The table of docs/architectures.md against what its script computes."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "scripts" / "architectures.py"
spec = importlib.util.spec_from_file_location("architectures", SCRIPT)
assert spec is not None
assert spec.loader is not None
architectures = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = architectures  # dataclasses look their module up
spec.loader.exec_module(architectures)

ROWS = [line for line in architectures.PAGE.read_text().splitlines() if line.startswith("| ")][1:]


def test_the_table_has_every_family_and_nothing_wrong() -> None:
    assert [row.split(" | ")[0].removeprefix("| ") for row in ROWS] == list(architectures.FAMILIES)
    assert not [row for row in ROWS if "WRONG" in row]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split(" | ")[0].removeprefix("| "))
def test_the_table_says_what_the_script_finds(row: str) -> None:
    variants = [(torch.float32, True), (torch.bfloat16, False)]  # half of the script's, which take half the time
    assert str(architectures.check(row.split(" | ")[0].removeprefix("| "), variants)) == row
