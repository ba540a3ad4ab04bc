"""The base model, the adapter to train on it, and the frozen reference policy."""

from dataclasses import field
from enum import Enum
from typing import Any

from omegaconf import MISSING

from alignrun.config.schema import AUTO, require, require_switch, schema


class ModelSource(str, Enum):
    """Where the weights of a model come from."""

    hub = "hub"
    """A Hugging Face id or a local folder."""
    package = "package"
    """A GGUF file inside an installed Python package, or the hub id if the package is missing."""
    random = "random"
    """Random weights with a byte tokenizer, for tests."""
    game = "game"
    """A tiny model whose completions are the actions of a matrix game."""


class Precision(str, Enum):
    """The floating-point type of the base weights; adapters are always float32."""

    auto = "auto"
    """bfloat16 on CUDA and on CPUs that multiply it natively and faster, else float32."""
    float32 = "float32"
    """32 bits."""
    bfloat16 = "bfloat16"
    """16 bits with the range of float32."""
    float16 = "float16"
    """16 bits with a small range."""


class Attention(str, Enum):
    """The attention kernel that transformers uses."""

    sdpa = "sdpa"
    """PyTorch's scaled dot-product attention."""
    eager = "eager"
    """Plain matrix products."""
    flash_attention_2 = "flash_attention_2"
    """The package flash-attn; CUDA only."""


class Kernels(str, Enum):
    """What computes norms and gated activations."""

    torch = "torch"
    """PyTorch's operations, as in transformers."""
    liger = "liger"
    """Fused kernels (the package liger-kernel; CUDA only)."""


_GIVEN = ("messages", "tools", "documents", "add_generation_prompt", "continue_final_message")
"""The variables that every rendering passes to a chat template."""


@schema
class ModelConfig:
    """The base model, and how it is loaded."""

    name: str = MISSING
    source: ModelSource = ModelSource.hub
    path: str | None = None
    """Hub id or local folder (source=hub)."""
    revision: str | None = None
    """Branch, tag or commit of the hub repository; by default its main branch."""
    trust_remote_code: bool = False
    """Run model code from the hub repository."""
    package: str | None = None
    """Python package that contains `package_file` (source=package)."""
    package_file: str | None = None
    """The GGUF file in that package (source=package)."""
    fallback: str | None = None
    """Hub id to use if the package is not installed (source=package)."""
    architecture: dict[str, Any] = field(default_factory=dict)
    """Fields of the transformers configuration: what to build (source=random), or to plan with when offline."""
    dtype: Precision = Precision.auto
    attention: Attention = Attention.sdpa
    device: str = "auto"
    """`auto` (CUDA if available), `cpu`, `cuda`, `cuda:1`."""
    cuda_graphs: Any = AUTO
    """On CUDA, record a decoding step once and replay it for every token. One of auto, true, false.

    It needs sdpa attention over all previous tokens (a sliding window must hold prompt and completion) and otherwise
    has no effect. If the base is sharded or the replayed step differs, `auto` decodes without graphs and `true` refuses
    to run. `false` never records.
    """
    kernels: Kernels = Kernels.torch
    tf32: bool = False
    """On CUDA, multiply float32 matrices in TF32, with 10 bits of precision: faster, less exact."""
    gradient_checkpointing: Any = AUTO
    """Recompute activations: less memory, a third more time; auto: where a GPU needs it. One of auto, true, false.

    A prompt is then read once for each of its completions.
    """
    system_prompt: str | None = None
    """System prompt of every conversation, if the chat template supports one."""
    chat_template: str | None = None
    """A Jinja template instead of the tokenizer's own, or a file that holds one."""
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    """Values of variables of the chat template, such as `{enable_thinking: false}`."""

    def __post_init__(self) -> None:
        require_switch(self.cuda_graphs, "model.cuda_graphs")
        require_switch(self.gradient_checkpointing, "model.gradient_checkpointing")
        for name in self.chat_template_kwargs:
            known = not name.isidentifier() or name in _GIVEN or name.endswith("_token")
            require(not known, "model.chat_template_kwargs", f"cannot set {name}: name a variable of the template")
        if self.source is not ModelSource.hub:
            require(self.path is None, "model.path", f"is not valid with model={self.name}: choose model=path")

    @property
    def checkpointing(self) -> bool:
        """Whether activations are recomputed; not while `auto` is open."""
        return self.gradient_checkpointing is True


class AdapterKind(str, Enum):
    """The weights to train."""

    lora = "lora"
    """A LoRA adapter on the unquantised base."""
    qlora = "qlora"
    """A LoRA adapter on a 4-bit base."""
    none = "none"
    """All weights."""


@schema
class AdapterConfig:
    """The trained part of the policy: a LoRA adapter (arXiv 2106.09685), QLoRA (arXiv 2305.14314), or all weights."""

    name: AdapterKind = AdapterKind.lora
    rank: int = 16
    """Rank of the low-rank product."""
    alpha: float = 32.0
    """The low-rank product is scaled by alpha / rank."""
    compute_dtype: Precision = Precision.auto
    """Precision of the low-rank products: `auto` (bfloat16 on CUDA with a bfloat16 base), float32 or bfloat16.

    The adapter's weights, their gradients' sums and AdamW's moments are float32 in any case.
    """
    target_modules: list[str] = field(default_factory=lambda: ["all-linear"])
    """Names of linear layers, or `all-linear` for every supported layer except the vocabulary head.

    In models with experts or state-space mixers, some linear layers cannot be adapted.
    """

    def __post_init__(self) -> None:
        require(self.rank >= 1, "adapter.rank", f"must be at least 1, not {self.rank}")
        require(self.alpha > 0, "adapter.alpha", f"must be positive, not {self.alpha}")
        require(
            self.compute_dtype is not Precision.float16,
            "adapter.compute_dtype",
            "must be auto, float32 or bfloat16: float16's range is too small for gradients",
        )
        require(len(self.target_modules) > 0, "adapter.target_modules", "is empty: name layers, or all-linear")


class ReferenceKind(str, Enum):
    """Which frozen policy is the reference μ."""

    base = "base"
    """The base model with no adapter."""
    adapter = "adapter"
    """The base with a frozen adapter, such as one from SFT; the policy starts as a copy, with its rank and layers."""


@schema
class ReferenceConfig:
    """The reference policy μ of the KL penalty and the mixture."""

    name: ReferenceKind = ReferenceKind.base
    path: str | None = None
    """A run directory or a PEFT adapter folder (reference=adapter)."""

    def __post_init__(self) -> None:
        if self.name is ReferenceKind.adapter:
            require(bool(self.path), "reference.path", "is missing: name a run or an adapter folder")
        else:
            require(self.path is None, "reference.path", "is not valid with reference=base: choose reference=adapter")
