"""Fills in templates: the only place where text becomes HTML."""

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
"""The maximum number of characters shown of a prompt and of a completion."""


@cache
def script() -> Markup:
    """The script of every page, verbatim."""
    return Markup(files("alignrun.reports").joinpath("templates/script.js").read_text(encoding="utf-8"))


@cache
def script_hash() -> str:
    """The page's content security policy: only this script may run (CSP level 2, base64 SHA-256)."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script().encode()).digest()).decode()}"


def render(template: str, **values: Any) -> str:
    """The page from a template and its values."""
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
    """Make control characters visible in every string that a template writes."""
    if value is None:
        return ABSENT
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value
