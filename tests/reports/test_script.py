"""What the pages' own script does, in a browser."""

import json
import random
import re
from pathlib import Path

import pytest
from reports.browser import CHROMIUM, ask, dump
from reports.checks import SCRIPT
from reports.examples import HOSTILE, answers, judged, sample, sweep, tournament, training, write_run

from alignrun.reports.run import run_page
from alignrun.reports.sweep import sweep_page
from alignrun.reports.tournament_page import tournament_page
from alignrun.security.text import visible


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
def test_the_win_matrix_is_sorted_by_its_numbers(tmp_path: Path) -> None:
    question = """
      const table = document.querySelector("table.matrix");
      const names = () => [...table.tBodies[0].rows].map((row) => row.cells[0].querySelector(".name").textContent);
      table.tHead.rows[0].cells[1].querySelector("button").click();
      return names();
    """
    result = tournament()
    against_first = {player.name: row[0].value for player, row in zip(result.players, result.matrix, strict=True)}
    expected = sorted(against_first, key=lambda name: -against_first[name])
    assert json.loads(ask(tournament_page(result), question, tmp_path)) == expected


@browsed
@pytest.mark.slow
def test_the_policy_of_a_page_lets_its_script_run_and_no_other(tmp_path: Path) -> None:
    html = sweep_page(sweep()).replace("</body>", "<script>document.title = 'other'</script></body>")
    (tmp_path / "page.html").write_text(html, encoding="utf-8")
    dom = dump(tmp_path / "page.html", tmp_path / "profile")
    assert 'class="sort"' in dom, "its own script ran"
    assert "<title>Sweep" in dom, "another did not"


LOOK = """
  const browse = document.querySelector(".browse");
  const controls = document.querySelector(".controls");
  const [first, second, order] = controls.querySelectorAll("select");
  const [filter, differences, cut] = controls.querySelectorAll("input");
  const set = (control, value) => {
    control[control.type === "checkbox" ? "checked" : "value"] = value;
    ["input", "change"].forEach((name) => control.dispatchEvent(new Event(name)));
  };
  const samples = () => [...browse.querySelectorAll(".sample")].filter((sample) => !sample.hidden);
  const text = (sample) => [...sample.querySelectorAll(".text-block")].map((block) => block.textContent);
  const p = (sample) => sample.dataset.p;
"""


@browsed
@pytest.mark.slow
def test_every_pair_of_policies_can_be_browsed(tmp_path: Path) -> None:
    """Chosen, filtered, sorted, limited to what is cut off, and compared."""
    question = """
      const start = [p(samples()[0]), samples().length, controls.querySelector("output").textContent];
      set(first, 1); set(second, 2);
      const chosen = samples().map(p);
      const says = samples()[0].querySelector(".verdict").textContent;
      set(order, 1);
      const down = samples().map(p);
      set(order, 3);
      const lengths = samples().map((sample) => text(sample)[1].length);
      set(order, 0); set(filter, "PROMPT 1");
      const found = samples().map((sample) => text(sample)[0]);
      set(filter, ""); set(cut, true);
      const cutOff = samples().map((sample) => sample.querySelectorAll(".cut").length);
      set(cut, false);
      showDifference(samples()[0]);
      const marked = [...samples()[0].querySelectorAll("mark")].map((mark) => mark.textContent);
      const kept = text(samples()[0]);
      hideDifference(samples()[0]);
      const left = samples()[0].querySelectorAll("mark").length;
      set(second, 1);
      const own = [samples()[0].querySelector(".verdict") === null, text(samples()[0])];
      return [start, chosen, says, down, lengths, found, cutOff, marked, kept, left, own];
    """
    html = tournament_page(tournament(), answers())
    found = json.loads(ask(html, LOOK + question, tmp_path))
    start, chosen, says, down, lengths, filtered, cut_off, marked, kept, left, own = found
    assert start == [f"{judged(0, 0, 3, 0):.4f}", 6, "6 of 6"], "the first and the last, to begin with"
    rates = [f"{judged(x, 1, 2, k):.4f}" for x in range(3) for k in range(2)]
    assert chosen == rates
    assert says == f"P(2 ipo ≻ 3 dpo) = {judged(0, 1, 2, 0):.3f}"
    assert down == sorted(rates, reverse=True)
    written = [len(one.text) for each in answers() for one in each.completions if one.player == 1]
    assert lengths == sorted(written, reverse=True)
    assert filtered == ["Prompt 1?"] * 2
    assert cut_off == [2, 2, 2], "the second completion of each is"
    assert "".join(marked) == "12. More", "the second says more, and has another number"
    assert kept == [
        "Prompt 0?",
        "Answer 0 of player 1 to prompt 0. More.",
        "Answer 0 of player 2 to prompt 0. More. More.",
    ]
    assert left == 0
    assert own == [True, ["Prompt 0?", *(f"Answer {k} of player 1 to prompt 0. More." for k in range(2))]]


@browsed
@pytest.mark.slow
def test_samples_of_a_run_are_sorted_and_hostile_text_stays_text(tmp_path: Path) -> None:
    rows = [
        sample(2, HOSTILE, prompt=HOSTILE, second=f"{HOSTILE} and more", preference=0.2, first_ended=False),
        sample(2, "short", preference=0.9),
        sample(2, "nothing judged this", preference=None),
    ]
    html = run_page(write_run(tmp_path / "run", [training(1), training(2)], rows))
    question = (
        LOOK.replace("[first, second, order]", "[order]")
        + """
      const count = () => document.querySelectorAll("img, svg, script").length;
      const before = count();
      set(order, 1);
      const sorted = samples().map((sample) => p(sample) || null);
      showDifference(samples()[1]);
      const marks = [...samples()[1].querySelectorAll("mark")].map((mark) => mark.textContent).join("");
      const kept = text(samples()[1]);
      hideDifference(samples()[1]);
      return [sorted, marks, kept, text(samples()[1]), samples()[1].querySelectorAll(".cut").length, count() - before];
    """
    )
    found = json.loads(ask(html, question, tmp_path))
    whole = [visible(HOSTILE), visible(HOSTILE), f"{visible(HOSTILE)} and more"]
    assert found == [["0.9000", "0.2000", None], " and more", whole, whole, 1, 0]


@browsed
@pytest.mark.slow
def test_differences_are_a_longest_common_subsequence(tmp_path: Path) -> None:
    """Against Python's own search on random words: what is left of both texts is equal, and as long as can be."""
    rng = random.Random(0)
    pairs = [["".join(rng.choices("abc", k=rng.randrange(12))) for _ in range(2)] for _ in range(60)]
    question = f"""
      const left = (text, gone) => [...text].filter((_, place) => !gone.has(place)).join("");
      return {json.dumps(pairs)}.map(([one, other]) => {{
        const [first, second] = difference([...one], [...other]);
        return [left(one, first), left(other, second)];
      }}).concat([difference(Array(3000).fill("a"), Array(3000).fill("b"))]);
    """
    *found, too_long = json.loads(ask(sweep_page(sweep()), question, tmp_path))
    assert too_long is None
    for (one, other), (first, second) in zip(pairs, found, strict=True):
        assert first == second
        lengths = [[0] * (len(other) + 1) for _ in range(len(one) + 1)]
        for i, a in enumerate(one):
            for j, b in enumerate(other):
                lengths[i + 1][j + 1] = lengths[i][j] + 1 if a == b else max(lengths[i][j + 1], lengths[i + 1][j])
        assert len(first) == lengths[-1][-1]


@browsed
@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 1000])
def test_policies_are_rows_on_a_phone(width: int, tmp_path: Path) -> None:
    """Where the cells of the table stand: a policy's next to each other on a phone, below each other elsewhere."""
    place = """
      const cells = (row) => [...row.cells].map((cell) => cell.getBoundingClientRect());
      const rows = [...document.querySelectorAll(".policies tr")].map(cells);
      const near = (one, other) => Math.abs(one - other) < 1;
      const across = (cut, side) => cut.every((cell) => near(cell[side], cut[0][side]));
      const policy = (place) => rows.map((row) => row[place]);
      return [1, 2, 3, 4].map((at) => [across(policy(at), "top"), across(policy(at), "left")]).concat(
        [[rows.every((row) => across(row, "left")), rows.every((row) => across(row, "top"))]]);
    """
    html = re.sub(r"<meta http-equiv[^>]*>", "", tournament_page(tournament()))
    tell = f"<script>parent.postMessage(JSON.stringify((() => {{ {place} }})()), '*')</script>"
    (tmp_path / "report.html").write_text(html.replace("</body>", f"{tell}</body>"), encoding="utf-8")
    frame = tmp_path / "frame.html"  # a browser's window cannot be as narrow as a frame
    frame.write_text(
        "<title>-</title><script>addEventListener('message', e => document.title = e.data)</script>"
        f"<iframe src='report.html' style='width:{width}px;height:800px;border:0'></iframe>"
    )
    found = re.search(r"<title>(.*?)</title>", dump(frame, tmp_path / "profile"))
    assert found
    phone = width < 640
    assert json.loads(found[1]) == [[phone, not phone]] * 4 + [[phone, not phone]]
