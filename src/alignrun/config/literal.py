"""Plain values for OmegaConf, which would otherwise take `${…}` in a text for the value of another key."""

import re
from typing import Any


def literal(value: Any) -> Any:
    """Escape `${` and the backslashes before it in every text, so that OmegaConf reads plain text."""
    if isinstance(value, dict):
        return {key: literal(child) for key, child in value.items()}
    if isinstance(value, list):
        return [literal(child) for child in value]
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    return value
