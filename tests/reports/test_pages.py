"""Every page, whatever it is of: well-formed, self-contained, safe against what models write, the same each time."""

import dataclasses
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from reports.browser import CHROMIUM, dump
from reports.checks import Page, check
from reports.examples import (
    COMPARISONS,
    HOSTILE,
    answers,
    crowd,
    player,
    rock_paper_scissors,
    sample,
    sweep,
    tournament,
    training,
    whole_run,
    write_run,
)

from alignrun.evaluation.results import Answers
from alignrun.reports.run import run_page
from alignrun.reports.sweep import sweep_page
from alignrun.reports.tournament_page import tournament_page
from alignrun.security.text import visible

PAGES: dict[str, Callable[[Path], str]] = {
    "run": lambda folder: run_page(whole_run(folder / "run")),
    "tournament": lambda _: tournament_page(tournament()),
    "browsed": lambda _: tournament_page(tournament(), answers()),
    "exact": lambda _: tournament_page(rock_paper_scissors()),
    "crowd": lambda _: tournament_page(crowd()),
    "sweep": lambda _: sweep_page(sweep()),
}


NAME = "url(#x) #010100 #010199 $x_1$ <b> & \u202e"
"""A name that a figure must not take for one of its own colours or references."""


def hostile_run(folder: Path) -> str:
    run = write_run(
        folder / NAME,
        [training(1) | {HOSTILE: 1.0, NAME: 1.0}, training(2) | {HOSTILE: 2.0, NAME: 1.0}],
        [sample(2, HOSTILE, prompt=HOSTILE, second=HOSTILE)],
        {"step": 2, "win_rate": 0.5, HOSTILE: 1.0},
        overrides=[f"x={HOSTILE}"],
    )
    run.config_file.write_text(HOSTILE, errors="replace")
    (run.path / "evil'\".svg").write_text(
        "<svg onload='document.title=1'><script>document.title='pwned'</script></svg>"
    )
    return run_page(run)


def hostile_tournament(browsed: Sequence[Answers] = ()) -> str:
    players = (
        player(f"a{NAME}{HOSTILE}", 0.6, source=HOSTILE, training_preference=HOSTILE),
        player(f"b{HOSTILE}", None),
    )
    comparison = dataclasses.replace(
        COMPARISONS[0], prompt=HOSTILE, first=HOSTILE, second=HOSTILE, first_player=HOSTILE
    )
    half = tournament().matrix[0][0]
    return tournament_page(
        tournament(
            players=players,
            matrix=((half, half), (half, half)),
            reference=players[1].name,
            preference=HOSTILE,
            comparisons=(comparison,),
            notes=(HOSTILE,),
            command=HOSTILE,
            config=HOSTILE,
            versions={HOSTILE: HOSTILE},
        ),
        browsed,
    )


def hostile_sweep() -> str:
    run = dataclasses.replace(sweep().runs[0], name="//host/javascript:alert(1)\"'><b>", setting=HOSTILE)
    setting = dataclasses.replace(
        sweep().settings[0], setting=HOSTILE, runs=(run.name,), metrics={HOSTILE: sweep().settings[0].metrics["kl"]}
    )
    return sweep_page(
        dataclasses.replace(
            sweep(), runs=(run,), settings=(setting,), directory=HOSTILE, ranked_by=HOSTILE, command=HOSTILE
        )
    )


HOSTILE_PAGES: dict[str, Callable[[Path], str]] = {
    "run": hostile_run,
    "tournament": lambda _: hostile_tournament(),
    "browsed": lambda _: hostile_tournament(answers(2, lambda *_: HOSTILE, players=2)),
    "sweep": lambda _: hostile_sweep(),
}


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_whole_and_needs_nothing_else(name: str, tmp_path: Path) -> None:
    page = check(PAGES[name](tmp_path))
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in page.tags


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_the_same_each_time(name: str, tmp_path: Path) -> None:
    assert PAGES[name](tmp_path) == PAGES[name](tmp_path)


@pytest.mark.parametrize("name", HOSTILE_PAGES)
def test_what_models_write_stays_text(name: str, tmp_path: Path) -> None:
    page = check(HOSTILE_PAGES[name](tmp_path))
    assert visible(HOSTILE) in "".join(text for _, text in page.texts)
    assert "{{ 7 * 7 }}" in page.text
    assert not {"\u202e", "\u2066"} & set(page.html), "text may run against its order"


def test_links_of_a_sweep_stay_below_it() -> None:
    links = [attributes["href"] for tag, attributes in check(hostile_sweep()).tags if tag == "a"]
    assert links == ["host/javascript%3Aalert%281%29%22%27%3E%3Cb%3E/report.html"]


def test_text_without_end_is_cut_and_says_so(tmp_path: Path) -> None:
    page = check(run_page(write_run(tmp_path / "run", samples=[sample(1, "W" * 100_000, prompt="é\n" * 1100)])))
    assert page.html.count("W") < 10_100
    assert "The first 10,000 of 100,000 characters." in page.text
    assert "The first 2,000 of 2,200 characters." in page.text


def test_matplotlib_is_imported_only_to_draw_and_pyplot_never(tmp_path: Path) -> None:
    code = """
import sys
from reports.examples import tournament
import alignrun.reports.run, alignrun.reports.sweep, alignrun.reports.panels
from alignrun.reports.tournament_page import tournament_page
assert "matplotlib" not in sys.modules and "wandb" not in sys.modules
tournament_page(tournament())
assert "matplotlib" in sys.modules and "matplotlib.pyplot" not in sys.modules
"""
    tests = str(Path(__file__).parents[1])
    subprocess.run([sys.executable, "-c", f"import sys; sys.path.insert(0, {tests!r}){code}"], check=True)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no browser")
@pytest.mark.parametrize("name", HOSTILE_PAGES)
def test_a_browser_executes_nothing(name: str, tmp_path: Path) -> None:
    """Not even without the policy that would forbid it."""
    html = re.sub(r"<meta http-equiv[^>]*>", "", HOSTILE_PAGES[name](tmp_path))
    file = tmp_path / "report.html"
    file.write_text(html, encoding="utf-8")
    dom = dump(file, tmp_path / "profile")
    titles = re.findall(r"<title>(.*?)</title>", dom.split("<body>")[0])
    assert len(titles) == 1
    assert titles[0].endswith(" – alignrun")
    before = Page(html)
    assert sorted(dom.count(f"<{tag}") for tag in ("img", "svg", "script")) == sorted(
        sum(tag == each for each, _ in before.tags) for tag in ("img", "svg", "script")
    )


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no browser")
@pytest.mark.parametrize("name", [*PAGES, *(f"hostile {name}" for name in HOSTILE_PAGES)])
def test_a_page_does_not_scroll_sideways_on_a_phone(name: str, tmp_path: Path) -> None:
    make = HOSTILE_PAGES[name.removeprefix("hostile ")] if name.startswith("hostile") else PAGES[name]
    html = re.sub(r"<meta http-equiv[^>]*>", "", make(tmp_path)).replace("<details>", "<details open>")
    tell = "<script>parent.postMessage(document.documentElement.scrollWidth, '*')</script>"
    (tmp_path / "report.html").write_text(html.replace("</body>", f"{tell}</body>"), encoding="utf-8")
    phone = tmp_path / "phone.html"  # a browser's window cannot be as narrow as a frame
    phone.write_text(
        "<title>-</title><script>addEventListener('message', e => document.title = e.data)</script>"
        "<iframe src='report.html' style='width:360px;height:800px;border:0'></iframe>"
    )
    found = re.search(r"<title>(\d+)</title>", dump(phone, tmp_path / "profile"))
    assert found, "the page was not measured"
    assert 300 < int(found[1]) <= 360
