"""How the protocols of vLLM and SGLang differ, and what they do not take."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from alignrun.config import ServerKind


@dataclass(frozen=True, slots=True)
class Dialect:
    """The protocol of one kind of server."""

    name: str
    version: str
    """The oldest version that returns token ids."""
    load: str
    """The path that loads an adapter; both take `lora_name` and `lora_path`."""
    unload: str
    start: str
    """What lets the server load adapters."""
    context: str
    """The option for the longest text."""
    log_probs: str
    """What makes its log-probabilities those of the distribution that it draws from."""
    stopped_at: str
    """The field of a completion that names its end token."""
    all_tokens: int
    """The `top_k` that keeps all tokens."""
    ends: Mapping[str, Any] = field(default_factory=dict)
    """Fields of a request that make `stop_token_ids` the end tokens."""
    base_and_adapter: bool = False
    """Whether an adapter is asked for as `BASE:ADAPTER`, rather than by its name alone."""
    one_by_one: bool = False
    """Whether all samples of a request get the same seed, so that each needs a request of its own."""
    hottest: float | None = None
    """The highest temperature; None is no limit."""
    ranks: tuple[int, ...] = ()
    """What --max-lora-rank can be; an adapter may have any lower rank. Empty is no limit."""


VLLM = Dialect(
    name="vLLM",
    version="vLLM 0.10.2 or newer",
    load="/v1/load_lora_adapter",
    unload="/v1/unload_lora_adapter",
    start="--enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True in its environment",
    context="--max-model-len",
    log_probs="start vLLM with --logprobs-mode processed_logprobs",
    stopped_at="stop_reason",
    all_tokens=0,
    ends={"ignore_eos": True},
    hottest=2.0,
    ranks=(8, 16, 32, 64, 128, 256, 320, 512),
)
SGLANG = Dialect(
    name="SGLang",
    version="SGLang 0.5 or newer",
    load="/load_lora_adapter",
    unload="/unload_lora_adapter",
    start="--enable-lora --max-lora-rank RANK --lora-target-modules all",
    context="--context-length",
    log_probs="start SGLang without SGLANG_RETURN_ORIGINAL_LOGPROB",
    stopped_at="matched_stop",
    all_tokens=-1,
    # With ignore_eos, SGLang ignores stop_token_ids too. Its own end tokens are among the policy's; another is refused.
    ends={"ignore_eos": False, "no_stop_trim": True},
    base_and_adapter=True,
    one_by_one=True,
)


def dialect_of(kind: ServerKind, owner: str) -> Dialect:
    """The protocol that is configured, or that of the server whose list of models names this owner."""
    sglang = owner == "sglang" if kind is ServerKind.auto else kind is ServerKind.sglang
    return SGLANG if sglang else VLLM


def supported_rank(rank: int, dialect: Dialect) -> int | None:
    """The lowest --max-lora-rank for adapters of this rank; None if the server takes none so high."""
    return next((most for most in dialect.ranks or (rank,) if most >= rank), None)
