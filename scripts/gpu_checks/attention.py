"""Attention of one decoding step and of one training pass, kernel by kernel, against float32.

Shape legend: R rows, H heads, T tokens, C capacity of the cache, D head size.
"""

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from alignrun.types import Role
from gpu_checks.measure import seconds
from gpu_checks.report import Section
from gpu_checks.subject import Subject

TOLERANCE = 2e-2
"""Of attention's output, relative to its largest value, in half precision."""
REPEATS = 20
BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}


@torch.no_grad()
def run(subject: Subject, section: Section, left: float) -> None:
    """Every variant is either right or refused by torch; the time of each is reported."""
    _decoding(subject, section)
    _training(subject, section)
    _implementations(subject, section)


def _decoding(subject: Subject, section: Section) -> None:
    """One query per row: over the whole buffer with a mask, or over the used part of it."""
    rows, used = subject.scale.rows[0], subject.scale.prompt_tokens + subject.scale.new_tokens // 2
    capacity = subject.scale.prompt_tokens + 8 * subject.scale.new_tokens
    heads, shared, size = _heads(subject)
    query, keys, values = (
        _random(subject, rows, count, length, size)
        for count, length in ((heads, 1), (shared, capacity), (shared, capacity))
    )
    packed = query.view(rows, shared, heads // shared, size)  # queries that share keys, as transformers packs them
    mask = torch.zeros(rows, 1, 1, capacity, dtype=torch.bool, device=subject.device)
    mask[..., :used] = True
    exact = _exact(packed, keys[:, :, :used], values[:, :, :used])
    variants: dict[str, Callable[[], Tensor]] = {
        "whole buffer, mask": lambda: scaled_dot_product_attention(packed, keys, values, attn_mask=mask),
        "used part, mask": lambda: scaled_dot_product_attention(
            packed, keys[:, :, :used], values[:, :, :used], attn_mask=mask[..., :used]
        ),
        "used part, no mask": lambda: scaled_dot_product_attention(packed, keys[:, :, :used], values[:, :, :used]),
        "used part, no mask, queries by head": lambda: scaled_dot_product_attention(
            query, keys[:, :, :used], values[:, :, :used], enable_gqa=True
        ).view_as(packed),
    }
    for name, variant in variants.items():
        _compare(subject, section, f"decoding, {name}", variant, exact)


def _training(subject: Subject, section: Section) -> None:
    """Causal attention of whole rows, by flag and by a mask of all pairs."""
    rows, tokens = 2, 2 * subject.scale.prompt_tokens
    heads, _, size = _heads(subject)
    query, keys, values = (_random(subject, rows, heads, tokens, size) for _ in range(3))
    causal = torch.ones(tokens, tokens, dtype=torch.bool, device=subject.device).tril()
    masks = causal.expand(rows, 1, tokens, tokens)
    exact = _exact(query, keys, values, causal)
    _compare(
        subject, section, "training, causal flag",
        lambda: scaled_dot_product_attention(query, keys, values, is_causal=True), exact,
    )  # fmt: skip
    _compare(
        subject, section, "training, mask of all pairs",
        lambda: scaled_dot_product_attention(query, keys, values, attn_mask=masks), exact,
    )  # fmt: skip


def _compare(subject: Subject, section: Section, name: str, variant: Callable[[], Tensor], exact: Tensor) -> None:
    """Torch's own choice of kernel, and each kernel by name."""
    for backend in (None, *(BACKENDS if subject.device.type == "cuda" else ())):
        label = f"{name}, {backend or 'as chosen'}"
        try:
            with _only(backend):
                found = variant().float()
                spent = seconds(variant, subject.device, REPEATS)
        except RuntimeError:
            if backend is None:
                raise
            section.note(label, "not available")  # this kernel does not take these inputs
            continue
        off = float((found - exact).abs().max() / exact.abs().max())
        section.at_most(f"{label}: error after {1e6 * spent:,.0f} µs", off, TOLERANCE)


@contextlib.contextmanager
def _only(backend: str | None) -> Iterator[None]:
    with contextlib.nullcontext() if backend is None else sdpa_kernel(BACKENDS[backend]):
        yield


def _implementations(subject: Subject, section: Section) -> None:
    """Log-probabilities of the model with each of transformers' implementations, against sdpa."""
    policy, prompts = subject.policy, subject.prompts(2)
    completions = subject.completions(4, subject.scale.new_tokens)
    expected = policy.log_probs(Role.policy, prompts, completions)
    usual = policy.model.config._attn_implementation
    for name in ("eager", "flash_attention_2"):
        try:
            policy.model.set_attn_implementation(name)
        except (ImportError, ValueError) as error:
            section.note(f"model.attention={name}", str(error).splitlines()[0][:80])
            continue
        try:
            found = policy.log_probs(Role.policy, prompts, completions)
        finally:
            policy.model.set_attn_implementation(usual)
        off = float((found - expected).abs().max())
        section.at_most(f"model.attention={name}: largest difference of log-probabilities", off, 0.2)


def _exact(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q kᵀ / √D) v in float32, row by row, since all scores of a step would not fit."""
    found = []
    for q, k, v in zip(query.float(), keys, values, strict=True):
        scores = q @ k.float().transpose(-1, -2) / q.shape[-1] ** 0.5
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        found.append(scores.softmax(-1) @ v.float())
    return torch.stack(found)


def _heads(subject: Subject) -> tuple[int, int, int]:
    text = subject.policy.model.config.get_text_config()
    heads = text.num_attention_heads
    return heads, text.num_key_value_heads, getattr(text, "head_dim", None) or text.hidden_size // heads


def _random(subject: Subject, *shape: int) -> Tensor:
    generator = torch.Generator(subject.device).manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, device=subject.device).to(subject.policy.model.dtype)
