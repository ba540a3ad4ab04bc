"""What the pages' own script does, in a browser."""

import json
import re
from pathlib import Path

import pytest
from reports.browser import CHROMIUM, ask, dump
from reports.checks import SCRIPT
from reports.examples import sweep

from alignrun.reports.sweep import sweep_page


def test_the_script_writes_nothing_as_html() -> None:
    forbidden = "innerHTML|outerHTML|insertAdjacentHTML|document.write|DOMParser|createContextualFragment"
    assert not re.search(rf"{forbidden}|\beval\b|Function\(|setAttribute\(.on|fetch|XMLHttp|import\(|srcdoc", SCRIPT)
    assert "</" not in SCRIPT, "nothing in it ends the script"


browsed = pytest.mark.skipif(CHROMIUM is None, reason="no browser")


@browsed
@pytest.mark.slow
def test_a_click_on_a_heading_sorts(tmp_path: Path) -> None:
    question = """
      const table = document.querySelectorAll("table.sortable")[1];
      const names = () => [...table.tBodies[0].rows].map((row) => row.cells[0].textContent.trim()[0]).join("");
      const click = (column) => {
        table.tHead.rows[0].cells[column].querySelector("button").click();
        return names() + (table.tHead.rows[0].cells[column].getAttribute("aria-sort") || "");
      };
      return [names(), click(4), click(4), click(4), click(0), click(0)];
    """
    kls = {run.name: run.summary["kl"] for run in sweep().runs if run.summary}
    down = "".join(sorted(kls, key=lambda name: -kls[name]))
    assert json.loads(ask(sweep_page(sweep()), question, tmp_path)) == [
        "012345", f"{down}5descending", f"{down[::-1]}5ascending", "012345", "012345ascending", "543210descending",
    ]  # fmt: skip


@browsed
@pytest.mark.slow
def test_the_policy_of_a_page_lets_its_script_run_and_no_other(tmp_path: Path) -> None:
    html = sweep_page(sweep()).replace("</body>", "<script>document.title = 'other'</script></body>")
    (tmp_path / "page.html").write_text(html, encoding="utf-8")
    dom = dump(tmp_path / "page.html", tmp_path / "profile")
    assert 'class="sort"' in dom, "its own script ran"
    assert "<title>Sweep" in dom, "another did not"
