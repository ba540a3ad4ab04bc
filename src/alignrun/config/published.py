"""How a published model is loaded to judge: what all preferences with a `path` on the hub share."""

from enum import Enum

from omegaconf import MISSING

from alignrun.config.model import Attention, Precision
from alignrun.config.schema import require, schema


class Quantize(str, Enum):
    """How the weights are held; `int8` and `nf4` need CUDA and bitsandbytes."""

    none = "none"
    """As they are."""
    int8 = "int8"
    """In 8 bits."""
    nf4 = "nf4"
    """In 4 bits, as in QLoRA."""


class LongText(str, Enum):
    """What to do with a text that is longer than the model reads. No text is ever cut."""

    error = "error"
    """The run stops."""
    skip = "skip"
    """It is not judged, but counted: its pairs are ½, and its reward is the mean of its prompt's others."""


@schema
class PublishedConfig:
    """Which model, and how it is held in memory."""

    name: str = MISSING
    path: str | None = None
    """A hub id or a local folder with weights in safetensors, a tokenizer and, where it has one, a chat template."""
    revision: str | None = None
    """A branch, tag or commit of the hub's repository; null is its main branch."""
    trust_remote_code: bool = False
    """Whether to run code that comes with the model."""
    chat_template: str | None = None
    """A Jinja template instead of the tokenizer's own, or a file that holds one."""
    dtype: Precision = Precision.auto
    """The precision of the weights."""
    attention: Attention | None = None
    """The attention implementation; null leaves it to the model."""
    quantize: Quantize = Quantize.none
    """How the weights are held in memory."""
    device: str = "auto"
    """`auto` is the device of the policy; else `cpu`, `cuda`, `cuda:1`."""
    batch_tokens: int = 16384
    """Tokens read at once, padding included."""
    too_long: LongText = LongText.error
    """What to do with a text that is longer than the model reads; it is never cut."""
    temperature: float = 1.0
    """Divides the log-odds: P = σ(log-odds / temperature)."""

    def __post_init__(self) -> None:
        require(bool(self.path), "preference.path", "is missing: name a hub id or a local folder")
        require(self.batch_tokens >= 1, "preference.batch_tokens", "must be at least 1")
        require(self.temperature > 0, "preference.temperature", f"must be positive, not {self.temperature}")
