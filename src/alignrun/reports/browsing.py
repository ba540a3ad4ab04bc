"""The completions of a tournament on its page: as many as a browser can handle, with a note if some are missing."""

from collections.abc import Sequence

from alignrun.evaluation.results import Answers
from alignrun.reports.page import COMPLETION_LIMIT, PROMPT_LIMIT
from alignrun.security.text import counted

MOST = 8_000_000
"""Page size in characters beyond which further completions are only in completions.jsonl."""
MARKUP = 400
"""Characters of markup per completion."""


def browsable(answers: Sequence[Answers], most: int = MOST) -> Sequence[Answers]:
    """The first prompts whose completions fit on a page, at least one."""
    size = 0
    for place, one in enumerate(answers):
        size += min(len(one.prompt), PROMPT_LIMIT)
        size += sum(min(len(each.text), COMPLETION_LIMIT) + MARKUP for each in one.completions)
        if place and size > most:
            return answers[:place]
    return answers


def hidden_note(shown: Sequence[Answers], answers: Sequence[Answers]) -> str:
    """A note on what is not on the page; empty if nothing is missing."""
    if len(shown) == len(answers):
        return ""
    return f"The first {len(shown):,} of {counted(len(answers), 'prompt')}; completions.jsonl holds all."
