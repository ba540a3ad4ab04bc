"""The picture of a report that the README shows: `scripts/picture.py`."""

import io
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw
from reports.browser import CHROMIUM
from reports.examples import answers, tournament

from alignrun.reports.tournament_page import tournament_page

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "picture.py"


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT))


def run(monkeypatch: pytest.MonkeyPatch, *arguments: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["picture.py", *map(str, arguments)])
    runpy.run_path(str(SCRIPT), run_name="__main__")


def refusal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: Path) -> str:
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, *arguments)
    assert ended.value.code == 2
    return capsys.readouterr().err


@pytest.fixture
def report(tmp_path: Path) -> Path:
    file = tmp_path / "report.html"
    file.write_text(tournament_page(tournament(), answers()), encoding="utf-8")
    return file


def test_what_is_missing_is_named_in_one_line(
    report: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    picture = tmp_path / "picture.png"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "install Chromium" in refusal(monkeypatch, capsys, report, picture)
    assert "cannot be read" in refusal(monkeypatch, capsys, tmp_path / "none.html", picture)
    other = tmp_path / "run.html"
    other.write_text("<head></head><p>A run.</p>", encoding="utf-8")
    assert refusal(monkeypatch, capsys, other, picture).splitlines() == [
        f"picture: {other}: has no win matrix; take the report.html of `alignrun eval`"
    ]
    assert not picture.exists()


def test_empty_paper_is_cut_off_up_to_a_margin(script: dict[str, Any]) -> None:
    margin = script["MARGIN"] * script["SCALE"]
    image = Image.new("RGB", (900, 1000), "white")
    ImageDraw.Draw(image).rectangle((50, 200, 400, 499), fill="black")
    cut = script["cropped"](image)
    assert cut.size == (401 + margin, 300 + 2 * margin)
    assert cut.getpixel((50, margin)) == (0, 0, 0)
    with pytest.raises(script["PictureError"], match="empty page"):
        script["cropped"](Image.new("RGB", (10, 10), "white"))
    ImageDraw.Draw(image).rectangle((50, 200, 400, 999), fill="black")
    with pytest.raises(script["PictureError"], match="fewer policies"):
        script["cropped"](image)


def test_colours_are_given_up_until_the_picture_is_small_enough(
    script: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    image = Image.effect_noise((100, 100), 200).convert("RGB")
    names = script["compressed"].__globals__
    assert len(Image.open(io.BytesIO(script["compressed"](image))).convert("RGB").getcolors()) > 128
    monkeypatch.setitem(names, "LARGEST", 6000)
    small = script["compressed"](image)
    assert len(small) <= 6000
    assert 16 <= len(Image.open(io.BytesIO(small)).convert("RGB").getcolors()) <= 32
    monkeypatch.setitem(names, "LARGEST", 1000)
    with pytest.raises(script["PictureError"], match="larger than 1000 bytes"):
        script["compressed"](image)


def test_the_pictures_of_the_documents_load_quickly(script: dict[str, Any]) -> None:
    pictures = list((ROOT / "docs").glob("*.png"))
    assert pictures
    for picture in pictures:
        assert picture.stat().st_size <= script["LARGEST"], picture.name


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no browser")
def test_the_picture_ends_below_the_win_matrix(
    report: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    picture = tmp_path / "picture.png"
    try:
        run(monkeypatch, report, picture)
    except SystemExit:
        error = capsys.readouterr().err
        assert "took no picture" in error
        pytest.skip(f"the browser does not start here: {error}")
    width, height = Image.open(picture).size
    assert 1000 < width <= 2200
    assert 1000 < height < 2200, "the rest of the page is several times as high"
    assert f"{width} × {height} pixels" in capsys.readouterr().out
