"""Low-rank products in bfloat16: the policy of sampling is that of training, and float32's up to rounding."""

from pathlib import Path

import pytest
import torch
from helpers import load_policy, random_batch, refused_smoke

from alignrun.config import AdapterConfig, Precision
from alignrun.models.adapters import POLICY, computed_in, forwards_as, forwards_on_rows, products_dtype
from alignrun.models.decoding.decoder import CachedDecoder
from alignrun.models.decoding.factors import RolloutFactors
from alignrun.models.policy import Policy
from alignrun.types import Role


def moved(policy: Policy) -> None:
    """Add an anchor that differs from the policy."""
    policy.snapshot(Role.anchor)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in policy.trainable().values():
            weight += 0.1 * torch.randn(weight.shape, generator=generator)


@torch.no_grad()
def test_stacked_factors_give_the_rows_of_each_adapter() -> None:
    policy, _ = load_policy("model.dtype=float32")
    moved(policy)
    model, layers = policy.model, policy.backbone.layers
    ids = torch.randint(0, 200, (6, 5), generator=torch.Generator().manual_seed(0))
    spans = [(POLICY, slice(0, 3)), (Role.anchor, slice(3, 5))]
    factors = RolloutFactors(model, [POLICY, Role.anchor], torch.float32)
    with forwards_as(layers, forwards_on_rows(layers, spans, 6)):
        expected = model(input_ids=ids).logits
    for _ in range(2):  # what the layers of a group share is forgotten after each pass
        with forwards_as(layers, factors.forwards(spans, 6)):
            torch.testing.assert_close(model(input_ids=ids).logits, expected, atol=1e-5, rtol=1e-5)
    with forwards_as(layers, factors.forwards([], 6)):
        plain = model(input_ids=ids).logits
    assert (plain - expected).abs()[:5].amax((1, 2)).min() > 1e-2
    torch.testing.assert_close(plain[5], expected[5], atol=1e-5, rtol=1e-5)


def test_layers_of_a_group_that_read_other_tensors_are_right_too() -> None:
    policy, _ = load_policy("model.dtype=float32")
    attention = policy.model.model.layers[0].self_attn
    together = [attention.q_proj, attention.k_proj, attention.v_proj]
    forwards = dict(
        zip(
            policy.backbone.layers,
            RolloutFactors(policy.model, [POLICY], torch.float32).forwards([(POLICY, slice(0, 2))], 2),
            strict=True,
        )
    )
    inputs = [torch.randn(2, 1, attention.q_proj.in_features) for _ in together]
    with torch.no_grad():
        for layer, x in zip(together, inputs, strict=True):
            torch.testing.assert_close(forwards[layer](x), layer(x), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_bfloat16_decoding_is_the_policy_that_is_trained() -> None:
    """Log-probabilities of decoding against those of a training pass: both round the same factors."""
    policy, _ = load_policy("model.dtype=bfloat16", "adapter.compute_dtype=bfloat16")
    exact, _ = load_policy("model.dtype=bfloat16", "adapter.compute_dtype=float32")
    assert computed_in(policy.backbone.layers) is torch.bfloat16
    assert computed_in(exact.backbone.layers) is torch.float32
    prompts, completions = random_batch(policy)
    found = {}
    for name, one in (("bfloat16", policy), ("float32", exact)):
        decoder = CachedDecoder(one.model, prompts, [POLICY, None])
        logits = [decoder.prefill()]
        logits += [decoder.step(tokens.repeat(2)) for tokens in completions.tokens.T[:-1]]
        drawn = torch.stack(logits, 1)[: len(prompts)].float().log_softmax(-1)
        found[name] = drawn.gather(2, completions.tokens[..., None])[..., 0] * completions.mask
        trained = one.log_probs(Role.policy, prompts, completions)
        torch.testing.assert_close(found[name], trained, atol=0.1, rtol=0.02)
    assert 0 < (found["bfloat16"] - found["float32"]).abs().mean() < 0.05


def test_gradients_of_bfloat16_products_are_those_of_float32_up_to_rounding() -> None:
    gradients = []
    for dtype in ("float32", "bfloat16"):
        policy, _ = load_policy("model.dtype=float32", f"adapter.compute_dtype={dtype}")
        layer = policy.backbone.layers[0]
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(2, 3, layer.in_features, generator=generator, requires_grad=True)
        output = layer(x)
        (output * torch.randn(output.shape, generator=generator)).sum().backward()
        weights = (x, layer.lora_A[POLICY].weight, layer.lora_B[POLICY].weight)
        assert all(weight.grad is not None and weight.grad.dtype is torch.float32 for weight in weights)
        gradients.append([weight.grad for weight in weights])
    for exact, rounded in zip(*gradients, strict=True):
        assert exact is not None
        assert rounded is not None
        assert 0 < (rounded - exact).norm() / exact.norm() < 0.01


@pytest.mark.parametrize(
    ("wanted", "base", "device", "expected"),
    [
        ("auto", torch.bfloat16, "cuda", torch.bfloat16),
        ("auto", torch.bfloat16, "cpu", torch.float32),
        ("auto", torch.float32, "cuda", torch.float32),
        ("auto", torch.float16, "cuda", torch.float32),
        ("float32", torch.bfloat16, "cuda", torch.float32),
        ("bfloat16", torch.float32, "cpu", torch.bfloat16),
    ],
)
def test_auto_follows_base_and_device(wanted: str, base: torch.dtype, device: str, expected: torch.dtype) -> None:
    assert products_dtype(AdapterConfig(compute_dtype=Precision(wanted)), base, torch.device(device)) is expected


def test_float16_products_are_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "adapter.compute_dtype must be auto, float32 or bfloat16" in refused_smoke(
        capsys, tmp_path, "adapter.compute_dtype=float16"
    )
