"""A tournament on a real, offline wandb run, read back from its files."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
from reports.examples import HOSTILE, player, rock_paper_scissors, tournament

from alignrun.evaluation.results import TournamentResult
from alignrun.reports.panels import log_tournament


@pytest.fixture(autouse=True)
def private_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    wandb.teardown()
    yield
    wandb.teardown()


def logged(result: TournamentResult, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tables by name, and the summary."""
    run = wandb.init(
        mode="offline", dir=str(folder), project="test", settings=wandb.Settings(console="off", silent=True)
    )
    log_tournament(run, result)
    files, summary = Path(run.dir), {key: run.summary[key] for key in run.summary.keys()}  # noqa: SIM118
    run.finish()
    tables = {}
    for file in files.rglob("*.table.json"):
        name = file.relative_to(files / "media" / "table").as_posix().rsplit("_", 2)[0]
        tables[name] = json.loads(file.read_text())
    return tables, summary


def test_everything_of_the_page_is_in_wandb(tmp_path: Path) -> None:
    tables, summary = logged(tournament(), tmp_path)
    matrix = tables["tournament/row_beats_column"]
    assert matrix["columns"] == ["row beats column", "nash_md", "ipo", "dpo", "reference"]
    assert matrix["data"][0] == ["nash_md", 0.5, 0.57, 0.62, 0.68]
    intervals = tables["tournament/row_beats_column_intervals"]
    assert intervals["columns"] == ["row", "beats column", "P", "low", "high"]
    assert ["ipo", "reference", 0.61, 0.61 - 0.06, 0.61 + 0.06] in intervals["data"]
    assert len(intervals["data"]) == 12
    players = tables["tournament/players"]
    by_name = {row[0]: dict(zip(players["columns"], row, strict=True)) for row in players["data"]}
    assert by_name["nash_md"]["win_rate"] == 0.68
    assert by_name["nash_md"]["exploitability_proposals"] == 16
    assert by_name["reference"]["win_rate"] is None
    assert by_name["dpo"]["distinct_3"] == 0.914
    comparisons = tables["tournament/comparisons"]
    assert comparisons["columns"] == [
        "prompt", "player", "player's completion", "opponent", "opponent's completion", "P(player beats opponent)",
    ]  # fmt: skip
    assert comparisons["data"][0][1] == "nash_md"
    assert comparisons["data"][0][-1] == 0.871
    charts = {name for name in summary if name.startswith("tournament/")}
    assert charts >= {"tournament/most_preferred", "tournament/win_rate/ipo", "tournament/exploitability/nash_md"}
    assert summary["tournament/most_preferred"] == "nash_md"
    assert summary["tournament/misfit"] == 0.023
    ratings = next(table for name, table in tables.items() if "ratings" in name)
    assert ratings["columns"] == ["player", "Elo"]
    assert ratings["data"][-1] == ["reference", 0.0]
    frontier = next(table for name, table in tables.items() if "frontier" in name)
    assert [row[0] for row in frontier["data"]] == ["nash_md", "ipo", "dpo"]
    assert any("bounds" in name for name in tables)


def test_an_exact_game_and_hostile_names_are_no_trouble(tmp_path: Path) -> None:
    tables, _ = logged(rock_paper_scissors(), tmp_path / "game")
    assert "tournament/comparisons" not in tables
    assert not any("frontier" in name or "bounds" in name for name in tables)
    players = (player(f"a{HOSTILE}", 0.6), *tournament().players[1:])
    tables, _ = logged(tournament(players=players), tmp_path / "hostile")
    assert "\ud800" not in json.dumps(tables, ensure_ascii=False)
