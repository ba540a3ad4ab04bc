"""Columns that change what a row means: each is used or refused."""

from collections.abc import Collection, Iterable
from dataclasses import replace

from alignrun.config import ColumnsConfig
from alignrun.data.values import Row
from alignrun.errors import InputError

CONVERSATIONS = "conversations"
"""ShareGPT's name for the messages of a demonstration, and for the prompt of a pair."""
LIKED = ("label", "kto_tag")
"""The name in KTO data sets of the column that says whether people liked a completion."""
Wanted = Collection[str] | None
"""The columns that a preference reads besides the texts; None for all of them."""
_CHANGE_MEANING = {
    **dict.fromkeys(("image", "images", "audio", "audios", "video", "videos"), "a language model reads text"),
    **dict.fromkeys(("weight", "weights", "sample_weight"), "every row has the same weight"),
    **dict.fromkeys(("context", "input"), "it belongs to the prompt: name it with data.columns.input={}"),
    **dict.fromkeys(
        ("system", "system_prompt", "system_message"), "it is a system prompt: name it with data.columns.system={}"
    ),
    **dict.fromkeys(("tools", "functions"), "it offers tools: name it with data.columns.tools={}"),
    "history": "the turns before the prompt belong in it, as messages",
    "chat_template_kwargs": "every row uses the same template",
}
"""Column names with a meaning in other trainers, and why they are refused if not read."""
_METADATA = frozenset(
    [
        "id",
        "uuid",
        "index",
        "idx",
        "source",
        "dataset",
        "subset",
        "split",
        "category",
        "topic",
        "language",
        "lang",
        "license",
        "url",
        "title",
        "timestamp",
        "date",
        "model",
        "score",
        "scores",
        "metadata",
        "meta",
        "reason",
        "turn",
    ]
)
"""Column names of a row's origin."""


def with_layout(names: Collection[str], columns: ColumnsConfig) -> ColumnsConfig:
    """The columns, with Alpaca's names if rows have those and the configuration names no others."""
    if "instruction" not in names or columns.prompt in names or columns.prompt != ColumnsConfig.prompt:
        return columns
    completed = columns.completion in names or columns.completion != ColumnsConfig.completion or "output" not in names
    return replace(
        columns,
        prompt="instruction",
        input="input" if columns.input is None and "input" in names else columns.input,
        completion=columns.completion if completed else "output",
    )


def check_columns(row: Row, origin: str, columns: ColumnsConfig) -> None:
    """Raise InputError for a column that changes what the row means, is not empty, and is not read."""
    if not changes_meaning(row):
        return
    read = named_columns(columns)
    for column, why in _CHANGE_MEANING.items():
        if column in row and column not in read and not _is_neutral(column, row[column]):
            raise InputError(
                f"data: {origin} has a column '{column}', which is not read: {why.format(column)}; or ignore it "
                f"with data.columns.ignored=[{column}]"
            )


def changes_meaning(names: Iterable[str]) -> bool:
    """Whether one of the columns may change what a row means."""
    return not _CHANGE_MEANING.keys().isdisjoint(names)


def unread_columns(rows: Iterable[str], columns: ColumnsConfig) -> list[str]:
    """The columns of the rows that nothing reads and that are not metadata."""
    names = set(rows)
    known = named_columns(with_layout(names, columns)) | _METADATA | set(_CHANGE_MEANING)
    return sorted(column for column in names - known if not column.endswith(("_id", "_idx", "_score")))


def kept_columns(names: Iterable[str], texts: Collection[str], columns: ColumnsConfig, wanted: Wanted) -> list[str]:
    """A row's columns that a preference wants, besides its texts; without the ignored ones."""
    others = [name for name in names if name not in texts]
    if wanted is None:
        return [name for name in others if name not in columns.ignored]
    return [name for name in others if name in wanted]


def named_columns(columns: ColumnsConfig) -> set[str]:
    """Every column that the configuration names, and those known by default."""
    named = (columns.prompt, columns.chosen, columns.rejected, columns.completion, columns.messages)
    more = (columns.input, columns.system, columns.tools, columns.label, *columns.votes, *columns.ignored)
    return {*named, *(column for column in more if column), CONVERSATIONS, *LIKED}


def _is_neutral(column: str, value: object) -> bool:
    """Whether a value has no effect: an empty one, or a weight of one."""
    blank = value is None or value == [] or value == {} or (isinstance(value, str) and not value.strip())
    return blank or ("weight" in column and value in (1, "1", "1.0"))
