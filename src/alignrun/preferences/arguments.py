"""What a user's function asks for: the texts, and by name the columns of their rows."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from alignrun.types import Prompt, as_prompt

ROWS, MESSAGES = "rows", "messages"
"""Parameters with a meaning of their own: the other columns of each row together, and its conversation."""


class Arguments:
    """The parameters of a function of prompts and completions.

    The texts go to the parameters of their names, else to the first ones in their order. Every further parameter is
    the name of a column; `rows`, `messages` and `**columns` are given all of them, the conversations, and the columns
    that no parameter names. One that has a default and no column keeps its default.
    """

    def __init__(self, function: Callable[..., Any], texts: Sequence[str]) -> None:
        """`texts` are the names of what is always given, `prompts` and then the completions."""
        try:
            parameters = list(inspect.signature(function).parameters.values())
        except (TypeError, ValueError):  # some builtins have no signature
            parameters = []
        keywords = [each.name for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
        self._any = any(each.kind is each.VAR_KEYWORD for each in parameters)
        self._texts = tuple(texts)
        named = set(texts[1:]) <= set(keywords)
        self._by_name = [name for name in texts if name in keywords or self._any] if named else []
        placed = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        positional = [each.name for each in parameters if each.kind in placed]
        taken = texts if named else positional[: len(texts)]
        self._further = [name for name in keywords if name not in taken]
        optional = {ROWS, MESSAGES, *(each.name for each in parameters if each.default is not each.empty)}
        self.needed = [name for name in self._further if name not in optional]
        """The columns that every row must have."""

    @property
    def columns(self) -> frozenset[str] | None:
        """The columns that it is given; None for all of them."""
        return None if self._any or ROWS in self._further else frozenset(self._further) - {MESSAGES}

    def call(self, function: Callable[..., Any], texts: Sequence[Sequence[str]]) -> Any:
        """What the function returns for prompts and completions, each [B]."""
        prompts = [as_prompt(prompt) for prompt in texts[0]]
        given = [[str(text) for text in side] for side in texts]
        further = self._columns(prompts)
        if not self._by_name:
            return function(*given, **further)
        named = {name: side for name, side in zip(self._texts, given, strict=True) if name in self._by_name}
        return function(**named, **further)

    def _columns(self, prompts: Sequence[Prompt]) -> dict[str, list[Any]]:
        rows = [prompt.columns for prompt in prompts]
        everywhere = set(rows[0]).intersection(*rows) if rows else set()
        special: dict[str, list[Any]] = {
            ROWS: [dict(row) for row in rows],
            MESSAGES: [list(prompt.turns) for prompt in prompts],
        }
        given = {name: special[name] for name in self._further if name in special}
        named = [name for name in self._further if name not in special]
        if self._any:
            named += [name for name in dict.fromkeys(name for row in rows for name in row) if name not in named]
        for name in named:
            if name in everywhere or self._any:
                given[name] = [row.get(name) for row in rows]
        return given
