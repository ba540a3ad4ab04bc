"""Where prompts and preference pairs come from, and what becomes of rows that cannot be used."""

from dataclasses import field
from enum import Enum

from omegaconf import MISSING

from alignrun.config.schema import require, schema


class DataSource(str, Enum):
    """Where examples come from."""

    bundled = "bundled"
    jsonl = "jsonl"
    hub = "hub"
    inline = "inline"
    game = "game"
    """Every pair of a matrix game's actions, each with the game's own probability."""


class TooLong(str, Enum):
    """What to do with a prompt or completion that does not fit."""

    error = "error"
    skip = "skip"


class BadRows(str, Enum):
    """What to do with a row that cannot be used: a missing or empty text, two equal completions, an unknown vote."""

    error = "error"
    skip = "skip"
    """Leave it out, and say how many were."""


@schema
class ColumnsConfig:
    """The names of the columns in a data set, and how its votes are spelled."""

    prompt: str = "prompt"
    input: str | None = None
    """A column that goes on after the prompt, where it is not empty (Alpaca's `input`)."""
    chosen: str = "chosen"
    """The preferred completion, or the first of two where votes or a label say which is better."""
    rejected: str = "rejected"
    """The other completion."""
    completion: str = "completion"
    """The one completion of a demonstration."""
    messages: str = "messages"
    """A demonstration as one conversation that ends with the assistant; also `conversations`, where it is not there."""
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
    vote_tie: str = "0"
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
    source: DataSource = DataSource.bundled
    path: str | None = None
    """A .jsonl, .json, .csv, .tsv or .parquet file, or such a text file with .gz after its name (source=jsonl); a data
    set id or a folder (source=hub)."""
    eval_path: str | None = None
    """A second file of held-out rows (source=jsonl)."""
    subset: str | None = None
    """The configuration of the data set, where it has several (source=hub)."""
    split: str = "train"
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
    """Longest prompt in tokens; by default what the model's context leaves beside the completion."""
    max_completion_tokens: int | None = None
    """Longest completion of a pair or a demonstration, in tokens; by default what the context leaves."""
    max_row_mb: float = 4.0
    """The largest row, in megabytes of its text; encoding takes some 200 times as much memory. A larger one is
    refused, or with `too_long=skip` left out."""
    too_long: TooLong = TooLong.error
    bad_rows: BadRows = BadRows.error

    def __post_init__(self) -> None:
        if self.source in (DataSource.jsonl, DataSource.hub):
            wanted = "a file" if self.source is DataSource.jsonl else "a data set id"
            require(bool(self.path), "data.path", f"is missing: name {wanted}, as in data.path=...")
        else:
            require(
                self.path is None, "data.path", f"is of no use with data={self.name}: choose data=jsonl or data=hub"
            )
        for name, value, source in (
            ("prompts", self.prompts, DataSource.inline),
            ("eval_path", self.eval_path, DataSource.jsonl),
            ("eval_split", self.eval_split, DataSource.hub),
            ("subset", self.subset, DataSource.hub),
            ("game", self.game, DataSource.game),
        ):
            require(not value or self.source is source, f"data.{name}", f"is of no use without data={source.value}")
        if self.source is DataSource.inline:
            require(len(self.prompts) > 0, "data.prompts", "is empty: give at least one, as in data.prompts='[Hello]'")
        require(0 < self.eval_fraction < 1, "data.eval_fraction", f"must lie in (0, 1), not {self.eval_fraction}")
        require(self.eval_size is None or self.eval_size >= 1, "data.eval_size", "must be at least 1")
        require(self.max_row_mb > 0, "data.max_row_mb", f"must be above 0, not {self.max_row_mb}")
        for key in ("max_prompt_tokens", "max_completion_tokens"):
            limit = getattr(self, key)
            require(limit is None or limit >= 1, f"data.{key}", "must be at least 1")
