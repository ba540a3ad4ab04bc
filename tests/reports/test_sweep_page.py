"""The page of a sweep: its order, its failures, its links."""

import dataclasses
import io
from typing import Any

import pytest
from reports.checks import check
from reports.examples import near, sweep
from rich.cells import cell_len
from rich.console import Console

from alignrun.reports.settings import common_to_all, own
from alignrun.reports.sweep import sweep_page
from alignrun.sweeps.table import COLUMNS, print_ranking


def test_settings_are_shown_in_the_order_given() -> None:
    page = check(sweep_page(sweep()))
    header, *rows = page.rows()[:4]
    assert header == [
        "setting", "seeds", "win rate at the matched KL", "win rate against the reference",
        "KL(policy ‖ reference), nats", "length, tokens a completion",
    ]  # fmt: skip
    assert rows[0] == [
        "1 algo.kl_tau=0.01", "1, 2", "0.588 [0.573, 0.603]", "0.590 [0.570, 0.610]",
        "2.15 [2.05, 2.25]", "53.5 [52.5, 54.5]",
    ]  # fmt: skip
    assert rows[2] == ["3 algo.kl_tau=0.2", "1, 2; 1 failed", "0.571", "0.563", "0.700", "53.5"]
    assert (
        "Of 3 settings, algo.kl_tau=0.01 comes first, with a win rate of 58.8% (57.3% to 60.3%) at the matched KL."
        in page.text
    )
    assert "Ranked by win rate at the matched KL." in page.text
    assert "0.680 nats" in page.text


def test_failed_runs_are_named_and_not_linked() -> None:
    page = check(sweep_page(sweep()))
    assert "Failed, and excluded: 5 (algo.kl_tau=0.2, exit code 1)." in page.text
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    assert links == [f"{number}/report.html" for number in range(5)]


def test_a_single_setting_is_not_said_to_win() -> None:
    page = check(sweep_page(dataclasses.replace(sweep(), settings=sweep().settings[:1], runs=sweep().runs[:2])))
    assert (
        "The only setting is algo.kl_tau=0.01, with a win rate of 58.8% (57.3% to 60.3%) at the matched KL."
        in page.text
    )
    assert "2 runs of 1 setting " in page.text


def test_what_rests_on_one_evaluation_is_marked_and_nothing_claimed_that_seeds_do_not_settle() -> None:
    first, *others = sweep().settings
    result = dataclasses.replace(
        sweep(), settings=(dataclasses.replace(first, single=1), *others), notes=("† Based on a single evaluation.",)
    )
    page = check(sweep_page(result))
    assert page.rows()[1][2] == "0.588 † [0.573, 0.603]"
    assert "† Based on a single evaluation." in page.text
    assert "do not show that it is the best" in page.text
    assert "do not settle" not in check(sweep_page(dataclasses.replace(result, settled=True))).text


def test_links_are_quoted() -> None:
    run = dataclasses.replace(sweep().runs[0], name="tau=0.1,data.path='a b' #2?/ü\udcff")
    page = check(sweep_page(dataclasses.replace(sweep(), runs=(run,))))
    assert page.attributes("href")[0] == "tau%3D0.1%2Cdata.path%3D%27a%20b%27%20%232%3F/%C3%BC%3F/report.html"


def test_every_trajectory_is_drawn() -> None:
    page = check(sweep_page(sweep()))
    (label,) = [label for label in page.attributes("aria-label") if label.startswith("Win rate")]
    assert [f"{number} (setting {number // 2 + 1})" in label for number in range(6)] == [True] * 5 + [False]
    svg = page.html[page.html.index("<svg") : page.html.index("</svg>")]
    assert "matched KL" in svg
    without = sweep_page(dataclasses.replace(sweep(), matched_kl=None))
    assert "matched KL</text>" not in without


def test_a_sweep_that_judged_nothing_or_failed_altogether() -> None:
    runs = tuple(dataclasses.replace(run, trajectory=(), summary={"loss": 0.7}) for run in sweep().runs)
    settings = tuple(
        dataclasses.replace(each, matched=None, metrics={"loss": each.metrics["kl"]}) for each in sweep().settings
    )
    offline = check(sweep_page(dataclasses.replace(sweep(), runs=runs, settings=settings, matched_kl=None)))
    assert "matched" not in offline.text.replace("Ranked by win rate at the matched KL", "")
    assert "<svg" not in offline.html
    failed = tuple(dataclasses.replace(run, trajectory=(), summary={}, exit_code=1) for run in runs)
    empty = tuple(dataclasses.replace(each, metrics={}, failed=2, matched=None) for each in settings)
    page = check(sweep_page(dataclasses.replace(sweep(), runs=failed, settings=empty, matched_kl=None)))
    assert "None of the 6 runs has finished." in page.text


def test_what_all_settings_share_is_said_once() -> None:
    taus = ("algo.kl_tau=0.01", "algo.kl_tau=0.05", "algo.kl_tau=0.2")

    def together(tau: str) -> dict[str, Any]:
        words = ("algo=nash_md", "prompts.path='my prompts'", tau)
        return {"setting": " ".join(words), "overrides": words}

    pairs = zip(sweep().settings, taus, strict=True)
    settings = tuple(dataclasses.replace(each, **together(tau)) for each, tau in pairs)
    runs = tuple(dataclasses.replace(each, **together(each.setting)) for each in sweep().runs)
    page = check(sweep_page(dataclasses.replace(sweep(), settings=settings, runs=runs)))
    assert page.text.count("algo=nash_md") == 1
    assert "all settings algo=nash_md prompts.path='my prompts'" in page.text
    rows = page.rows("sortable")
    assert [row[0] for row in rows[1:4]] == [f"{place} {tau}" for place, tau in enumerate(taus, start=1)]
    assert [row[1] for row in rows[5:]] == [taus[number // 2] for number in range(6)]
    assert "Of 3 settings, algo.kl_tau=0.01 comes first" in page.text
    alone = check(sweep_page(dataclasses.replace(sweep(), settings=settings[:1], runs=runs[:2])))
    assert "The only setting is algo=nash_md prompts.path='my prompts' algo.kl_tau=0.01" in alone.text
    default = dataclasses.replace(settings[0], setting="algo=nash_md", overrides=("algo=nash_md",))
    assert common_to_all([default, settings[1]]) == ("algo=nash_md",)
    two = dataclasses.replace(settings[1], overrides=("algo=nash_md", taus[1]))
    assert common_to_all([*settings[:1], two, settings[2]]) == ("algo=nash_md",), "two of three is not all"
    assert own(default.setting, default.overrides, ("algo=nash_md",)) == ""


@pytest.mark.parametrize("width", [80, 50])
def test_the_table_of_the_terminal_fits_and_loses_no_digit(width: int) -> None:
    many = {name: near(0.123, 0.011) for name in COLUMNS}
    settings = tuple(dataclasses.replace(each, metrics=many, overrides=(each.setting,)) for each in sweep().settings)
    shown = io.StringIO()
    print_ranking(dataclasses.replace(sweep(), settings=settings), Console(file=shown, width=width))
    tables = [line for line in shown.getvalue().splitlines() if line[:1] in "┏┃┡│├└"]
    assert max(map(cell_len, tables)) <= width
    assert shown.getvalue().count("0.123 [0.112, 0.134]") == len(settings) * len(COLUMNS)
    assert "…" not in shown.getvalue()
    assert "1 failed (exit code 1)" in shown.getvalue()
