"""The pages of the studies are those of the measurements next to them, which CI writes again."""

from pathlib import Path
from typing import Any

import pytest
from studies import panel_report, people_report, style_report

ROOT = Path(__file__).parents[2]
PAGES = {
    "styles": (style_report, "study.py write"),
    "panel": (panel_report, "study.py write --results docs/panel"),
    "people": (people_report, "people.py write"),
}


@pytest.mark.parametrize(("name", "report", "command"), [(name, *page) for name, page in PAGES.items()])
def test_the_page_is_that_of_the_measurements(name: str, report: Any, command: str, tmp_path: Path) -> None:
    results = tmp_path / name
    results.symlink_to(ROOT / "docs" / name)
    report.write(results)
    page = f"{name}.md"
    written, kept = ((folder / page).read_text("utf-8") for folder in (tmp_path, ROOT / "docs"))
    assert written == kept, f"run `python scripts/{command}`"
    if name == "styles":
        figure = (tmp_path / "styles.svg").read_text("utf-8")
        for method in style_report.compared(style_report.load(results).played):
            assert f">{style_report.METHODS[method].label}<" in figure
