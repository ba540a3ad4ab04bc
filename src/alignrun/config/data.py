"""Where prompts and preference pairs come from, and what becomes of rows that cannot be used."""

from dataclasses import field
from enum import Enum

from omegaconf import MISSING

from alignrun.config.schema import require, schema


class TooLong(str, Enum):
    """What to do with a prompt or completion that does not fit."""

    error = "error"
    """Refuse the data set."""
    skip = "skip"
    """Leave it out, and report how many were."""


class BadRows(str, Enum):
    """What to do with a row that cannot be used: a missing or empty text, two equal completions, an unknown vote."""

    error = "error"
    """Refuse the data set."""
    skip = "skip"
    """Leave it out, and report how many were."""


@schema
class ColumnsConfig:
    """The names of the columns in a data set, and how its votes are spelled."""

    prompt: str = "prompt"
    """The prompt."""
    input: str | None = None
    """A column that is appended to the prompt, where it is not empty (Alpaca's `input`)."""
    chosen: str = "chosen"
    """The preferred completion, or the first of two where votes or a label say which is better."""
    rejected: str = "rejected"
    """The other completion."""
    completion: str = "completion"
    """The one completion of a demonstration."""
    messages: str = "messages"
    """A demonstration as one conversation that ends with the assistant; without it, `conversations`."""
    system: str | None = "system"
    """The system prompt of a row, where it has one."""
    tools: str | None = "tools"
    """The tools that the assistant may call, where a row has them: for the chat template."""
    label: str | None = None
    """P(chosen ≻ rejected), a number in [0, 1]; of a demonstration, whether people liked it."""
    votes: list[str] = field(default_factory=list)
    """One column for each annotator; the share of votes for a completion is its probability, a tie being half a
    vote."""
    vote_chosen: str = "1"
    """What a vote for the completion in `chosen` is written as; compared as text."""
    vote_rejected: str = "2"
    """What a vote for the completion in `rejected` is written as."""
    vote_tie: str = "0"
    """What a vote for neither is written as."""
    ignored: list[str] = field(default_factory=list)
    """Columns to leave aside although their names say that they change what a row means, such as `context`."""

    def __post_init__(self) -> None:
        require(not (self.label and self.votes), "data.columns.label", "and data.columns.votes exclude each other")
        spellings = {self.vote_chosen, self.vote_rejected, self.vote_tie}
        require(len(spellings) == 3, "data.columns.vote_*", "must be three different values")


@schema
class DataConfig:
    """Prompts or pairs to train on, and held-out ones to evaluate on."""

    name: str = MISSING
    source: str = "bundled"
    """Where the rows come from: bundled, jsonl, hub, inline, game, or a source of your own."""
    path: str | None = None
    """A .jsonl, .json, .csv, .tsv (also .gz) or .parquet file (source=jsonl); a data set id or folder (source=hub)."""
    eval_path: str | None = None
    """A second file of held-out rows (source=jsonl)."""
    subset: str | None = None
    """The configuration of the data set, where it has several (source=hub)."""
    split: str = "train"
    """The split to train on (source=hub)."""
    eval_split: str | None = None
    """The held-out split (source=hub)."""
    prompts: list[str] = field(default_factory=list)
    """The prompts themselves (source=inline); they are trained on and evaluated on. `\\${` stands for the text `${`."""
    eval_fraction: float = 0.1
    """Share of rows held out, chosen by a hash of the prompt, where no held-out file or split is named."""
    eval_size: int | None = 2000
    """Evaluate on no more than the first so many held-out rows; null for all of them."""
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    game: str | None = None
    """The matrix game whose actions are compared (source=game)."""
    max_prompt_tokens: int | None = None
    """Longest prompt in tokens; by default what the completion leaves of the model's context."""
    max_completion_tokens: int | None = None
    """Longest completion of a pair or a demonstration, in tokens; by default what the context leaves."""
    max_row_mb: float = 4.0
    """The largest row in megabytes of text; encoding takes about 200 times as much memory."""
    too_long: TooLong = TooLong.error
    bad_rows: BadRows = BadRows.error

    def __post_init__(self) -> None:
        require(0 < self.eval_fraction < 1, "data.eval_fraction", f"must lie in (0, 1), not {self.eval_fraction}")
        require(self.eval_size is None or self.eval_size >= 1, "data.eval_size", "must be at least 1")
        require(self.max_row_mb > 0, "data.max_row_mb", f"must be above 0, not {self.max_row_mb}")
        for key in ("max_prompt_tokens", "max_completion_tokens"):
            limit = getattr(self, key)
            require(limit is None or limit >= 1, f"data.{key}", "must be at least 1")
