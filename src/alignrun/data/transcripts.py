"""Conversations written as one text of Human and Assistant turns, as in HH-RLHF."""

import re

from alignrun.data.values import Turns
from alignrun.errors import InputError
from alignrun.types import Message, message_text

_SPEAKERS = {"Human": "user", "Assistant": "assistant"}
_SPEAKER = re.compile(r"\n\n(Human|Assistant):")


def parse_transcript(text: str, origin: str, likely: str = "...") -> Turns:
    """The turns of "\\n\\nHuman: ...\\n\\nAssistant: ...", each stripped.

    Raises InputError for any other text; `likely` is the column in which its prompt may be.
    """
    head, *pieces = _SPEAKER.split("\n\n" + text.lstrip())
    if head.strip() or not pieces:
        raise InputError(
            f"data: {origin} has no prompt column, and its pair is no transcript of Human: and Assistant: turns; "
            f"name the prompt with data.columns.prompt={likely}"
        )
    turns: list[Message] = []
    for speaker, content in zip(pieces[::2], pieces[1::2], strict=True):
        role = _SPEAKERS[speaker]
        # In some HH-RLHF rows one side speaks twice; most chat templates require alternating roles.
        if turns and turns[-1]["role"] == role:
            content = f"{turns.pop()['content']}\n\n{content.strip()}"
        turns.append({"role": role, "content": content.strip()})
    return tuple(turns)


def completion_text(turns: Turns) -> str:
    """A completion; if two conversations diverge early, the later turns were judged with it and stay in its text."""
    names = {role: speaker for speaker, role in _SPEAKERS.items()}
    later = (f"{names.get(turn['role'], turn['role'])}: {message_text(turn)}" for turn in turns[1:])
    return "\n\n".join((message_text(turns[0]), *later))
