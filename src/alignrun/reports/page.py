"""Templates filled in: the one place where text becomes HTML."""

import base64
import hashlib
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from alignrun.reports.text import ABSENT, clip, number, rate
from alignrun.security.text import counted, visible

PROMPT_LIMIT, COMPLETION_LIMIT = 2000, 10_000
"""Characters of a prompt and of a completion to show."""


@cache
def script() -> Markup:
    """The script of every page, to stand as it is between the tags."""
    return Markup(files("alignrun.reports").joinpath("templates/script.js").read_text(encoding="utf-8"))


@cache
def script_hash() -> str:
    """What the page's policy allows to run: this script and nothing else, sha256 in base64 as CSP level 2 has it."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script().encode()).digest()).decode()}"


def render(template: str, **values: Any) -> str:
    """The page that a template makes of the values."""
    return _environment().get_template(template).render(values) + "\n"


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("alignrun.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"clip": clip, "counted": counted}
    environment.globals |= {
        "rate": rate,
        "number": number,
        "script": script(),
        "script_hash": script_hash(),
        "PROMPT_LIMIT": PROMPT_LIMIT,
        "COMPLETION_LIMIT": COMPLETION_LIMIT,
    }
    return environment


def _finalize(value: Any) -> Any:
    """Make every string that a template writes visible, so that no template can forget it."""
    if value is None:
        return ABSENT
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value
