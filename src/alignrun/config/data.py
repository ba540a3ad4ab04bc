"""The data source, its columns, and the handling of unusable rows."""

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


class TrainOn(str, Enum):
    """Which turns of the assistant a demonstration teaches."""

    last = "last"
    """The completion."""
    all = "all"
    """Every one of the conversation, also those in its prompt (algo=sft)."""


@schema
class ColumnsConfig:
    """The column names of a data set, and the values of its votes."""

    prompt: str = "prompt"
    """The prompt; if absent, `instruction` (Alpaca), with `output` as its completion."""
    input: str | None = None
    """A column appended to the prompt if not empty; in Alpaca's layout `input`."""
    chosen: str = "chosen"
    """The preferred completion, or the first of two if votes or a label say which is better."""
    rejected: str = "rejected"
    """The other completion."""
    completion: str = "completion"
    """The one completion of a demonstration."""
    messages: str = "messages"
    """A demonstration as a conversation that ends with the assistant; if absent, `conversations`."""
    system: str | None = "system"
    """The system prompt of a row, if it has one."""
    tools: str | None = "tools"
    """The tools that the assistant may call, if a row has them, for the chat template."""
    label: str | None = None
    """P(chosen ≻ rejected), in [0, 1]; for a demonstration, whether people liked it."""
    votes: list[str] = field(default_factory=list)
    """One column per annotator; the share of votes for a completion is its probability, with ties as half a vote."""
    vote_chosen: str = "1"
    """The value of a vote for the completion in `chosen`, compared as text."""
    vote_rejected: str = "2"
    """The value of a vote for the completion in `rejected`."""
    vote_tie: str = "0"
    """The value of a vote for neither."""
    ignored: list[str] = field(default_factory=list)
    """Columns to ignore although their names suggest that they change the meaning of a row, such as `context`."""

    def __post_init__(self) -> None:
        require(not (self.label and self.votes), "data.columns.label", "and data.columns.votes exclude each other")
        spellings = {self.vote_chosen, self.vote_rejected, self.vote_tie}
        require(len(spellings) == 3, "data.columns.vote_*", "must be three different values")


@schema
class DataConfig:
    """Prompts or pairs to train on, and held-out ones to evaluate on."""

    name: str = MISSING
    source: str = "bundled"
    """Where the rows come from: bundled, bundled_pairs, jsonl, hub, inline, game, or a source of your own."""
    path: str | None = None
    """A .jsonl, .json, .csv, .tsv (also .gz) or .parquet file or a `save_to_disk` folder (jsonl); a hub id (hub)."""
    eval_path: str | None = None
    """A second file of held-out rows (source=jsonl)."""
    subset: str | None = None
    """The configuration of the data set, if it has several (source=hub)."""
    split: str = "train"
    """The split to train on (source=hub)."""
    eval_split: str | None = None
    """The held-out split (source=hub)."""
    prompts: list[str] = field(default_factory=list)
    """The prompts (source=inline), used for both training and evaluation. Write `\\${` for a literal `${`."""
    eval_fraction: float = 0.1
    """Share of rows held out, by a hash of the prompt, if no held-out file or split is named."""
    eval_size: int | None = 2000
    """Evaluate on at most this many held-out rows, from the first; null for all."""
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    game: str | None = None
    """The matrix game (source=game)."""
    max_prompt_tokens: int | None = None
    """Longest prompt in tokens; by default the model's context minus the completion."""
    max_completion_tokens: int | None = None
    """Longest completion of a pair or demonstration, in tokens; by default what fits the context."""
    max_row_mb: float = 4.0
    """The largest row in megabytes of text; encoding takes about 200 times as much memory."""
    train_on: TrainOn = TrainOn.last
    too_long: TooLong = TooLong.error
    bad_rows: BadRows = BadRows.error

    def __post_init__(self) -> None:
        require(0 < self.eval_fraction < 1, "data.eval_fraction", f"must lie in (0, 1), not {self.eval_fraction}")
        require(self.eval_size is None or self.eval_size >= 1, "data.eval_size", "must be at least 1")
        require(self.max_row_mb > 0, "data.max_row_mb", f"must be above 0, not {self.max_row_mb}")
        for key in ("max_prompt_tokens", "max_completion_tokens"):
            limit = getattr(self, key)
            require(limit is None or limit >= 1, f"data.{key}", "must be at least 1")
