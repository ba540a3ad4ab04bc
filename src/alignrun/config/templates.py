"""Templates that format prompts and completions for a model."""

import re
from collections.abc import Sequence

from alignrun.errors import InputError


def split_template(template: str, fields: Sequence[str], key: str) -> tuple[str, ...]:
    """The text before, between and after the fields of a template.

    Raises:
        InputError: naming `key`, unless the template holds every `{field}` once and in this order.
    """
    marks = [f"{{{field}}}" for field in fields]
    pattern = "|".join(map(re.escape, marks))
    if re.findall(pattern, template) != marks:
        raise InputError(f"config: {key} must hold {', '.join(marks)}, each once and in this order")
    return tuple(re.split(pattern, template))
