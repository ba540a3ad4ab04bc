import math

import pytest

from alignrun.evaluation.results import Estimate
from alignrun.reports.text import and_list, clip, number, percent, rate, shown, signed


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"), (147.0, "147"), (57.714, "57.7"), (0.04820, "0.0482"), (64.03, "64.0"), (-35.007, "−35.0"),
        (1234567.8, "1,234,568"), (999.96, "1,000"), (0.000436, "0.000436"), (2.34e-7, "2.34e-07"),
        (1e300, "1.00e+300"),
        (math.nan, "–"), (-math.inf, "–"),
    ],
)  # fmt: skip
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert number(value) == text


def test_other_forms() -> None:
    assert [rate(0.5555), rate(-0.0301), rate(math.nan)] == ["0.555", "−0.030", "–"]
    assert [signed(36.7), signed(-5.2), signed(0.2), signed(-0.2)] == ["+37", "−5", "0", "0"]
    assert percent(0.5556) == "55.6%"
    assert [and_list([]), and_list(["a"]), and_list(["a", "b"]), and_list(["a", "b", "c"])] == [
        "", "a", "a and b", "a, b and c",
    ]  # fmt: skip


def test_an_interval_is_shown_where_there_is_one() -> None:
    assert str(shown(Estimate(0.6, 0.51, 0.69), rate)) == "0.600 [0.510, 0.690]"
    assert str(shown(Estimate(0.6, 0.6, 0.6), rate)) == "0.600"
    assert str(shown(Estimate(0.6, math.nan, math.nan), rate)) == "0.600"
    assert str(shown(None, rate)) == "–"


def test_a_long_name_keeps_both_ends() -> None:
    assert clip("short\n name", 20) == "short name"
    assert clip("runs/2026-11-25_nash_md_tau=0.01", 16) == "runs/20…tau=0.01"
    assert len(clip("x" * 100, 17)) == 17
