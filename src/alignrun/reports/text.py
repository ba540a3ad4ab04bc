"""Numbers and strings as pages, figures and tables show them."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

from alignrun.evaluation.results import Estimate
from alignrun.security.text import visible

ABSENT = "–"
EXACT = 1e-9
"""Ends of an interval that are closer than this are the same number."""

Form = Callable[[float], str]


@dataclass(frozen=True, slots=True)
class Shown:
    """A number as text, and its interval if it has one."""

    value: str
    interval: str = ""

    def __str__(self) -> str:
        return f"{self.value} {self.interval}".rstrip()


def shown(measured: Estimate | float | None, form: Form) -> Shown:
    """A number for a table: a dash if there is none, and no interval if it is exact."""
    if measured is None:
        return Shown(ABSENT)
    if not isinstance(measured, Estimate):
        return Shown(form(measured))
    if not measured.high - measured.low > EXACT:  # also where an end is not a number
        return Shown(form(measured.value))
    return Shown(form(measured.value), f"[{form(measured.low)}, {form(measured.high)}]")


def rate(value: float) -> str:
    """A probability, or a difference of two."""
    return _minus(f"{value:z.3f}") if math.isfinite(value) else ABSENT


def percent(value: float) -> str:
    """A probability in a sentence."""
    return f"{value:.1%}" if math.isfinite(value) else ABSENT


def number(value: float) -> str:
    """Any other quantity, to three significant digits; from a thousand on, to the unit."""
    if not math.isfinite(value):
        return ABSENT
    whole = value == round(value) or abs(value) >= 999.5
    return _minus(f"{value:,.0f}" if whole and abs(value) < 1e15 else f"{value:#.3g}".rstrip("."))


def signed(value: float) -> str:
    """A signed quantity, to the unit."""
    return _minus(f"{value:+.0f}") if math.isfinite(value) else ABSENT


def _minus(digits: str) -> str:
    return "0" if re.fullmatch(r"[-+]0", digits) else re.sub(r"(?<!e)-", "\u2212", digits)


def clip(text: str, limit: int) -> str:
    """A name in one line, without its middle if it is too long: long names differ at their ends."""
    text = " ".join(visible(text).split())
    tail = limit // 2
    return text if len(text) <= limit else f"{text[: limit - tail - 1]}…{text[-tail:]}"


def and_list(items: list[str]) -> str:
    """`a, b and c`."""
    return " and ".join([", ".join(items[:-1]), items[-1]]) if len(items) > 1 else "".join(items)
