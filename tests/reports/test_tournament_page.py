"""The page of a tournament: its numbers, its words, and in which direction it reads."""

import dataclasses
import io
import math

import numpy as np
import pytest
from reports.checks import Page, check
from reports.examples import answers, bound, crowd, exactly, judged, near, player, rock_paper_scissors, tournament
from rich.cells import cell_len
from rich.console import Console

from alignrun.evaluation.completions import Drawn
from alignrun.evaluation.results import Bound, Estimate, Judge, PlayerResult, SeparatingPrompt, TournamentResult
from alignrun.evaluation.tournament_results import answers as answers_of
from alignrun.reports.browsing import MARKUP, browsable, hidden_note
from alignrun.reports.headline import headline
from alignrun.reports.tournament_page import tournament_page
from alignrun.tournament.scoreboard import show


def page_of(result: TournamentResult) -> Page:
    return check(tournament_page(result))


def test_the_matrix_holds_every_probability_where_it_belongs() -> None:
    header, *rows = page_of(tournament()).rows("matrix")
    assert header[0] == "row beats ↓ column →"
    assert header[1:] == ["1 nash_md", "2 ipo", "3 dpo", "4 reference"]
    assert rows[0] == ["1 nash_md", "½", "▲ 0.570 [0.510, 0.630]", "▲ 0.620 [0.560, 0.680]", "▲ 0.680 [0.620, 0.740]"]
    assert rows[1] == ["2 ipo", "▼ 0.430 [0.370, 0.490]", "½", "0.530 [0.470, 0.590]", "▲ 0.610 [0.550, 0.670]"]
    assert rows[3][1:] == ["▼ 0.320 [0.260, 0.380]", "▼ 0.390 [0.330, 0.450]", "▼ 0.420 [0.360, 0.480]", "½"]


def test_the_reading_direction_stands_on_the_table_itself() -> None:
    page = page_of(tournament())
    table = page.html[page.html.index('<table class="matrix sortable">') : page.html.index("</table>")]
    assert "<caption>P(row ≻ column): <b>row beats column</b></caption>" in table
    assert "(arXiv 2312.00886) prints the transpose" in page.text


def test_shades_grow_with_the_probability() -> None:
    page = page_of(tournament())
    shades = [
        float(style.removeprefix("--shade:")) for style in page.attributes("style") if style.startswith("--shade")
    ]
    values = [0.57, 0.62, 0.68, 0.43, 0.53, 0.61, 0.38, 0.47, 0.58, 0.32, 0.39, 0.42]
    assert [shade for _, shade in sorted(zip(values, shades, strict=True))] == sorted(shades)
    assert len(set(shades)) == len(values)
    assert "none at 0.300, full at 0.700" in page.text


def test_abilities_and_separating_prompts_are_listed() -> None:
    judges = (Judge("helpful", near(1.4)), Judge("<b>brief</b>", near(0.6)))
    prompts = (SeparatingPrompt("Why is the sky blue?", 0.75), SeparatingPrompt("<i>x</i>", 0.25))
    result = tournament(judges=judges, separating=prompts)
    rated = tuple(dataclasses.replace(one, by_ability=near(80, 20)) for one in result.players)
    page = page_of(dataclasses.replace(result, players=rated))
    assert "1 on average: helpful 1.40 [1.34, 1.46] and <b>brief</b> 0.600 [0.540, 0.660]." in page.text
    assert "Elo, judges weighed by ability" in page.text
    assert "Why is the sky blue? 0.750" in page.text
    assert "abilities" not in page_of(tournament()).text
    console = Console(file=io.StringIO(), width=200)
    show(result, console)
    assert "helpful 1.40 [1.34, 1.46]" in console.file.getvalue()


def test_the_headline_names_the_winner() -> None:
    assert list(headline(tournament())) == [
        "nash_md is the most preferred: it beats the others 63.0% (57.0% to 69.0%) of the time.",
        "It is preferred to every other policy, at 95% confidence.",
        "The equilibrium of the win matrix mixes nash_md 91.0% (83.0% to 99.0%) and ipo 9.0% (0.0% to 20.0%).",
        "The best of 16 responses to nash_md beats it 55.6% (53.6% to 57.6%) of the time: "
        "it is at least that exploitable.",
    ]
    assert " ".join(headline(tournament())) in page_of(tournament()).text


def test_few_prompts_claim_nothing() -> None:
    result = tournament(prompts=7)
    matrix = tuple(
        tuple(dataclasses.replace(entry, prompts=None if row == column else 7) for column, entry in enumerate(entries))
        for row, entries in enumerate(result.matrix)
    )
    best, *others = result.players
    assert best.exploitability is not None
    gain = dataclasses.replace(best.exploitability.gain, prompts=7)
    best = dataclasses.replace(best, exploitability=dataclasses.replace(best.exploitability, gain=gain))
    few = dataclasses.replace(result, matrix=matrix, players=(best, *others))
    assert list(headline(few)) == [
        "nash_md wins most often in this sample: it beats the others 63.0% (57.0% to 69.0%) of the time.",
        "No policy is preferred to every other at 95% confidence: fewer than 8 prompts settle no difference.",
        "The equilibrium of the win matrix mixes nash_md 91.0% (83.0% to 99.0%) and ipo 9.0% (0.0% to 20.0%).",
        "The best of 16 responses to nash_md beats it 55.6% (53.6% to 57.6%) of the time, "
        "which does not show that it is exploitable.",
    ]
    cells = [cell for row in page_of(few).rows("matrix")[1:] for cell in row]
    assert not any("▲" in cell or "▼" in cell for cell in cells)
    shown = io.StringIO()
    show(few, Console(file=shown, width=200))
    assert "*" not in shown.getvalue()
    assert "fewer than 8 prompts settle no difference" in shown.getvalue()


def test_the_headline_says_where_there_is_no_winner() -> None:
    result = tournament()
    (half, _, *rest), *others = result.matrix
    unsure = dataclasses.replace(
        result, matrix=((half, near(0.52), *rest), *others), cycles=(("nash_md", "ipo", "dpo"),)
    )
    assert "No policy is preferred to every other at 95% confidence: nash_md is to 2 of 3, and not to ipo." in headline(
        unsure
    )
    assert (
        "Cyclic at 95% confidence, which no rating can express: nash_md ≻ ipo ≻ dpo ≻ nash_md." in page_of(unsure).text
    )


def test_a_winner_need_not_be_the_favourite() -> None:
    """Beating everyone by a little is not winning the most on average."""
    result = tournament()
    first, second, *rest = result.players
    swapped = dataclasses.replace(result, players=(first, dataclasses.replace(second, average=near(0.9)), *rest))
    assert list(headline(swapped))[:2] == [
        "ipo is the most preferred: it beats the others 90.0% (84.0% to 96.0%) of the time.",
        "nash_md is preferred to every other policy, at 95% confidence.",
    ]


def test_no_lead_claims_more_than_its_intervals() -> None:
    """Who is ahead within the noise is not called the most preferred."""
    (half, *rest), *others = tournament().matrix
    level = ((half, near(0.52), *rest[1:]), *others)
    first, second, *last = tournament().players

    def lead(*players: PlayerResult) -> str:
        return next(iter(headline(tournament(players=players, matrix=level))))

    ahead = "nash_md beats the others most often, 63.0% (57.0% to 69.0%) of the time, but the intervals do not show"
    assert lead(first, second, *last).startswith(ahead), "within the interval of another, and not preferred to it"
    low = [dataclasses.replace(one, average=near(0.4)) for one in (second, *last)]
    assert lead(first, *low).startswith("nash_md is the most preferred")
    unsure = dataclasses.replace(first, average=near(0.52))
    assert lead(unsure, *[dataclasses.replace(one, average=near(0.5)) for one in low]).startswith(
        "No policy is distinguishable"
    )
    pair = tournament(
        players=(dataclasses.replace(unsure, average=Estimate(0.551, 0.395, 0.684)), last[-1]),
        matrix=((half, near(0.551, 0.2)), (near(0.449, 0.2), half)),
    )
    assert next(iter(headline(pair))) == (
        "nash_md is indistinguishable from reference: it is preferred 55.1% (39.5% to 68.4%) of the time."
    )
    assert next(iter(headline(rock_paper_scissors()))) == (
        "rock, paper and scissors win equally often: each beats the others 50.0% of the time."
    )


def test_an_exact_result_has_no_intervals() -> None:
    page = page_of(rock_paper_scissors())
    assert "Every probability is exact. The reference is rock." in page.text
    assert "interval" not in page.text
    assert not [cell for row in page.rows("matrix") for cell in row if "[" in cell]
    assert page.rows("matrix")[1] == ["1 rock", "½", "▼ 0.000", "▲ 1.000"]
    assert "mixes rock 33.3%, paper 33.3% and scissors 33.3%" in page.text
    assert "A best response to rock beats it 100.0% of the time." in page.text
    assert "Cyclic exactly, which no rating can express: rock ≻ scissors ≻ paper ≻ rock." in page.text


def test_players_have_dashes_where_nothing_was_measured_and_no_row_where_nobody_has_it() -> None:
    rows = {row[0]: row[1:] for row in page_of(tournament()).rows("properties")}
    assert rows["win rate against the reference"] == [
        "0.680 [0.620, 0.740]", "0.610 [0.550, 0.670]", "0.580 [0.520, 0.640]", "–",
    ]  # fmt: skip
    assert rows["hacking gap"] == ["0.080 [0.050, 0.110]", "0.080 [0.050, 0.110]", "–", "–"]
    assert rows["Elo"] == ["+126 [+81, +171]", "+77 [+32, +122]", "+56 [+11, +101]", "0"]
    assert "regularised exploitability, at least, τ = 0.02" in rows
    exact = {row[0] for row in page_of(rock_paper_scissors()).rows("properties")}
    assert exact == {
        "", "win rate against the reference", "average over the others",
        "share in the equilibrium of the win rates (maximal lottery)", "Elo", "exploitability", "source",
    }  # fmt: skip


def test_the_figures_are_of_the_players_that_have_them() -> None:
    labels = page_of(tournament()).attributes("aria-label")
    (frontier,) = [label for label in labels if label.startswith("Win rate against the reference by KL")]
    assert "1 nash_md: 0.680 at 5.8 nats" in frontier
    assert "4 reference: 0.500 at 0 nats" in frontier
    (curves,) = [label for label in labels if label.startswith("Gain by number of proposals")]
    assert "1 nash_md 0.047 at 16" in curves
    assert not [label for label in page_of(rock_paper_scissors()).attributes("aria-label") if "KL" in label]
    players = tournament().players
    foreign = tournament(players=(dataclasses.replace(players[0], kl=None), *players[1:]))
    assert "Not placed, for want of a KL or a win rate: nash_md" in page_of(foreign).text


def test_comparisons_notes_command_and_versions_are_there() -> None:
    page = page_of(tournament())
    assert "P(nash_md ≻ dpo) = 0.871" in page.text
    assert page.text.index("The hall is calm and bright") < page.text.index("It is empty.")
    assert "2 of 98 prompts are longer" in page.text
    assert "alignrun tournament runs/nash_md runs/ipo runs/dpo prompts.path='my prompts.jsonl'" in page.text
    assert "path: my prompts.jsonl" in page.text
    assert "torch 2.13.0" in page.text
    assert "bitsandbytes" not in page.text


def test_a_pair_a_single_player_and_numbers_that_are_none() -> None:
    pair = (player("a", 0.6), player("b", None))
    page = page_of(
        tournament(players=pair, matrix=((exactly(0.5), near(0.6)), (near(0.4), exactly(0.5))), reference="b")
    )
    assert page.rows("matrix")[1] == ["1 a", "½", "▲ 0.600 [0.540, 0.660]"]
    alone = page_of(tournament(players=pair[1:], matrix=((exactly(0.5),),), reference="b", comparisons=()))
    assert "most preferred" not in alone.text
    nothing = Estimate(math.nan, math.nan, math.nan)
    broken = (dataclasses.replace(pair[0], rating=nothing, exploitability=Bound(nothing, 4)), pair[1])
    page = page_of(tournament(players=broken, matrix=((exactly(0.5), nothing), (nothing, exactly(0.5))), reference="b"))
    assert page.rows("matrix")[1] == ["1 a", "½", "–"]
    assert "nan" not in page.text


def test_twelve_players_with_long_names_can_be_distinguished() -> None:
    page = page_of(crowd())
    header, *rows = page.rows("matrix")
    assert len(rows) == 12
    assert len(set(header)) == 13
    assert len({row[0] for row in rows}) == 12
    assert rows[11][0].endswith("_$x_11$"), "no mathematics in names"


@pytest.mark.parametrize("proposals", [0, 8])
def test_only_a_bound_is_called_one(proposals: int) -> None:
    players = tuple(
        dataclasses.replace(each, exploitability=bound(0.1, proposals), regularised=None)
        for each in tournament().players
    )
    rows = {row[0] for row in page_of(tournament(players=players)).rows("properties")}
    assert ("exploitability" in rows, "exploitability, at least" in rows) == (proposals == 0, proposals > 0)


@pytest.mark.parametrize("result", [tournament(), crowd(), rock_paper_scissors()], ids=["four", "crowd", "exact"])
def test_tables_of_the_terminal_fit_eighty_columns_and_lose_nothing(result: TournamentResult) -> None:
    shown = io.StringIO()
    show(result, Console(file=shown, width=80))
    tables = [line for line in shown.getvalue().splitlines() if line[:1] in "┏┃┡│├└"]
    assert max(map(cell_len, tables)) <= 80
    assert "…" not in "".join(tables)
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in tables if line[0] == "│"]
    cells = [cell.rstrip("*") for row in rows for cell in row]
    for row, entries in enumerate(result.matrix):
        for column, entry in enumerate(entries):
            assert row == column or f"{entry.value:.3f}" in cells
    for key, each in enumerate(result.players, start=1):
        found = each.win_rate
        assert (
            found is None
            or found.low == found.high
            or (f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f})" in cells)
        )
        assert each.name in cells or f"{key}  {each.name}" in shown.getvalue().splitlines()


def test_a_wide_terminal_has_each_table_in_one_piece() -> None:
    shown = io.StringIO()
    show(tournament(), Console(file=shown, width=220))
    assert shown.getvalue().count("┏") == 2
    header = next(line for line in shown.getvalue().splitlines() if "nash_md" in line)
    assert [cell.strip() for cell in header.strip("┃").split("┃")] == ["", "nash_md", "ipo", "dpo", "reference"]


def test_every_completion_is_on_the_page_without_a_script() -> None:
    page = check(tournament_page(tournament(), answers()))
    sides = [attributes for tag, attributes in page.tags if "data-player" in attributes]
    assert len(sides) == 3 * 4 * 2
    for each in answers():
        assert each.prompt in page.text
        for one in each.completions:
            assert one.text in page.text
    assert page.text.count("cut off") == 3 * 4, "the second of each"
    assert sides[2] == {
        "class": "side", "data-player": "1", "data-length": str(len(answers()[0].completions[2].text)),
        "data-p": f"{judged(0, 1, 0, 0):.4f},,{judged(0, 1, 2, 0):.4f},{judged(0, 1, 3, 0):.4f}",
    }  # fmt: skip
    rates = " ".join(f"{j + 1}: {judged(0, 1, j, 0):.3f}" for j in (0, 2, 3))
    assert f"P over {rates}" in page.text
    assert "Side by side" not in page.text


def test_a_page_that_would_be_too_large_says_what_is_left_out() -> None:
    many = answers(50)
    size = sum(len(one.text) + MARKUP for one in many[0].completions) + len(many[0].prompt)
    assert len(browsable(many, 10 * size)) in (9, 10)
    assert browsable(many[:3]) == many[:3]
    assert len(browsable(many, 1)) == 1, "one prompt at least"
    assert hidden_note(many[:9], many) == "The first 9 of 50 prompts; completions.jsonl holds all."
    assert hidden_note(many, many) == ""


def test_completions_are_shown_with_what_was_said_of_them() -> None:
    """Each against those of the same number: player i's k-th over player j's, read off the table by hand."""
    rng = np.random.default_rng(0)
    table = rng.random((2, 3, 2, 3, 2))
    drawn = [
        Drawn([[f"{i}{x}{k}" for k in range(2)] for x in range(2)], [], [], [[k == i for k in range(2)] for _ in "xy"])
        for i in range(3)
    ]
    shown = list(answers_of(["first", "second"], drawn, table))
    assert [one.prompt for one in shown] == ["first", "second"]
    assert [one.text for one in shown[1].completions] == ["010", "011", "110", "111", "210", "211"]
    assert [one.ended for one in shown[0].completions] == [True, False, False, True, False, False]
    assert shown[1].completions[3].preferences == (table[1, 1, 1, 0, 1], None, table[1, 1, 1, 2, 1])
