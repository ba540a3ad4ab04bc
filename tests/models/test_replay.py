"""Decoding in buffers that never move, as it is recorded on a GPU: the same logits. Here every step runs as it is."""

import copy
import gc
import weakref
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers import load_policy, random_batch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, PreTrainedConfig

from alignrun import distributed
from alignrun.errors import InputError
from alignrun.launch import compose
from alignrun.models.adapters import POLICY
from alignrun.models.decoding import replay
from alignrun.models.decoding.cache import decoding_cache
from alignrun.models.decoding.decoder import CachedDecoder, check_replay
from alignrun.models.decoding.replay import PrefixLayer, can_replay, why_not_recorded
from alignrun.models.policy import Policy
from alignrun.types import PromptBatch


@torch.no_grad()
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_fixed_buffers_give_the_same_logits_also_when_rows_leave(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, _ = load_policy(f"model.dtype={dtype}")
    monkeypatch.setattr(replay, "BUCKET", 4)
    prefixes = set()
    attention = F.scaled_dot_product_attention

    def watched(query: torch.Tensor, key: torch.Tensor, *rest: object, **options: object) -> torch.Tensor:
        if options["attn_mask"] is not None and options["attn_mask"].dtype is not torch.bool:
            prefixes.add(key.shape[2])
        return attention(query, key, *rest, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    exact = copy.deepcopy(policy.model).float()
    prompts, _ = random_batch(policy, prompts=4)
    assert (prompts.attention_mask == 0).any()
    plain = CachedDecoder(policy.model, prompts, [POLICY, None])
    fixed = CachedDecoder(policy.model, prompts, [POLICY, None], replay=12)
    wide = CachedDecoder(exact, prompts, [POLICY, None])
    assert torch.equal(plain.prefill(), fixed.prefill())
    wide.prefill()
    errors = []
    generator = torch.Generator().manual_seed(0)
    rows = [0, 1, 2, 3, 0, 4, 5, 6, 7]
    for position in range(12):
        if position in (0, 5):
            for decoder in (plain, fixed, wide):
                decoder.select(rows)
        tokens = torch.randint(policy.model.config.vocab_size, (len(rows),), generator=generator)
        true = wide.step(tokens)
        errors.append([(decoder.step(tokens).float() - true).abs().max().item() for decoder in (fixed, plain)])
        if position == 4:
            rows = [1, 3, 5, 8]
    ours, theirs = map(max, zip(*errors, strict=True))
    if dtype == "float32":
        assert ours < 1e-5
    else:  # how far bfloat16 is from the exact logits depends on the processor's products
        assert 0 < ours < 1.5 * theirs
    assert prefixes == {8, 12, 16, 20}  # of prompts of 6 tokens


def test_only_steps_that_are_equal_are_recorded() -> None:
    policy, _ = load_policy()
    model = policy.model
    assert can_replay(model, decoding_cache(model.config))
    window = PreTrainedConfig(num_hidden_layers=1, sliding_window=4)
    assert not can_replay(model, decoding_cache(window))
    assert can_replay(model, decoding_cache(window, 4))
    assert not can_replay(model, DynamicCache(config=model.config)), "layers that grow by copying"
    model.config.rope_parameters = model.config.rope_parameters | {"rope_type": "dynamic"}
    assert not can_replay(model, decoding_cache(model.config))


WINDOWED = {
    "mistral": {"sliding_window": 12},
    "gemma3_text": {"sliding_window": 12, "layer_types": ["sliding_attention", "full_attention"], "head_dim": 8},
}


@torch.no_grad()
@pytest.mark.parametrize("family", WINDOWED)
def test_a_window_that_holds_the_whole_text_keeps_the_recording(family: str) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    fields = {"vocab_size": 64, "num_hidden_layers": 2, **sizes, **WINDOWED[family]}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **fields)).eval()
    ids = torch.randint(0, 64, (3, 5))
    mask = torch.ones_like(ids)
    mask[1, :2] = 0
    prompts = PromptBatch(("",) * 3, ids, mask)
    plain, fixed, longer = (CachedDecoder(model, prompts, [None], tokens) for tokens in (None, 7, 8))
    for decoder in (plain, fixed, longer):
        logits = decoder.prefill()
    for tokens in torch.randint(0, 64, (7, 3)):
        logits = plain.step(tokens)
        for decoder in (fixed, longer):
            torch.testing.assert_close(decoder.step(tokens), logits, atol=1e-5, rtol=1e-5)
    assert fixed._replayed is not None
    assert longer._replayed is None, "the window slides"
    assert why_not_recorded(model.config, "sdpa", 12) == ""
    assert "sliding window of 12 tokens is shorter" in why_not_recorded(model.config, "sdpa", 13)


def test_other_attention_is_left_as_it_is() -> None:
    policy, _ = load_policy("model.attention=eager")
    assert not can_replay(policy.model, decoding_cache(policy.model.config))


@pytest.mark.parametrize(
    ("wanted", "fails", "expected"),
    [("auto", False, True), ("auto", True, False), (True, False, True), (True, True, None), (False, False, False)],
)
def test_auto_records_unless_something_forbids_it(
    wanted: object, fails: bool, expected: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(model: object) -> None:
        if fails:
            raise InputError("it differs")

    own, _ = load_policy(f"model.cuda_graphs={wanted}")
    monkeypatch.setattr("alignrun.models.policy.check_replay", check)
    monkeypatch.setattr(Policy, "device", torch.device("cuda"))
    if expected is None:
        with pytest.raises(InputError, match="it differs"):
            _ = own._replays
    else:
        assert own._replays is expected
        monkeypatch.setattr(distributed, "sharded", lambda: True)
        vars(own).pop("_replays")
        assert own._replays is False


def test_old_settings_still_load_and_others_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    text = compose.dump(compose.compose(["experiment=smoke"]))
    assert "cuda_graphs: auto" in text
    for stored, expected in (("true", True), ("false", False), ("auto", "auto")):
        file.write_text(text.replace("cuda_graphs: auto", f"cuda_graphs: {stored}"))
        assert compose.load(file).model.cuda_graphs == expected
    with pytest.raises(InputError, match=r"model\.cuda_graphs must be auto, true or false, not never"):
        compose.compose(["experiment=smoke", "model.cuda_graphs=never"])


def test_a_decoder_goes_with_its_last_user() -> None:
    policy, _ = load_policy()
    prompts, _ = random_batch(policy)
    gc.disable()  # which would come by too late on a GPU
    try:
        decoder = CachedDecoder(policy.model, prompts, [POLICY], replay=2)
        decoder.prefill()
        decoder.step(torch.zeros(len(prompts), dtype=torch.long))
        left = weakref.ref(decoder)
        del decoder
        assert left() is None
    finally:
        gc.enable()


def test_a_replay_that_differs_is_refused(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    check_replay(policy.model)
    update = PrefixLayer.update

    def stuck(layer: PrefixLayer, keys: torch.Tensor, values: torch.Tensor, *rest: object, **options: object) -> object:
        layer.slot.fill_(0)
        return update(layer, keys, values, *rest, **options)

    monkeypatch.setattr(PrefixLayer, "update", stuck)
    with pytest.raises(InputError, match=r"set model\.cuda_graphs=false"):
        check_replay(policy.model)
