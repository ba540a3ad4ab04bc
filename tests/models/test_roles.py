"""One base, two roles: the reference is the untouched base, in scoring and in decoding."""

import copy

import pytest
import torch
from helpers import load_policy, random_batch

from alignrun.config import ModelSource
from alignrun.models.policy import Policy
from alignrun.models.sources import load_model
from alignrun.models.tiny import byte_tokenizer
from alignrun.types import Completions, PromptBatch, Role


def plain_log_probs(model, prompts: PromptBatch, completions: Completions) -> torch.Tensor:
    """Row by row without padding, through the model's own full logits."""
    result = torch.zeros(completions.tokens.shape)
    for row in range(len(prompts)):
        prompt = prompts.input_ids[row][prompts.attention_mask[row].bool()]
        completion = completions.tokens[row][completions.mask[row]]
        logits = model(input_ids=torch.cat([prompt, completion])[None], use_cache=False).logits[0]
        log_probs = logits[len(prompt) - 1 : -1].log_softmax(-1)
        result[row, : len(completion)] = log_probs.gather(1, completion[:, None])[:, 0]
    return result


@pytest.fixture(scope="module")
def base(policy: Policy):
    """The base model by itself, never touched by PEFT: the same seed gives the same random weights."""
    _, config = load_policy()
    assert config.model.source is ModelSource.random
    torch.manual_seed(config.seed)
    return load_model(config.model, byte_tokenizer(), torch.float32)


@torch.no_grad()
def test_reference_is_the_untouched_base_and_policy_is_not(policy: Policy, base) -> None:
    prompts, completions = random_batch(policy)
    expected = plain_log_probs(base, prompts, completions)
    reference = policy.log_probs(Role.reference, prompts, completions)
    torch.testing.assert_close(reference, expected, atol=1e-5, rtol=1e-5)
    ours = policy.log_probs(Role.policy, prompts, completions)
    torch.testing.assert_close(ours, plain_log_probs(policy.model, prompts, completions), atol=1e-5, rtol=1e-5)
    assert (ours - reference).abs()[completions.mask].min() > 1e-3


def test_only_the_policy_carries_a_gradient_and_only_to_the_adapter(policy: Policy) -> None:
    prompts, completions = random_batch(policy)
    assert not policy.log_probs(Role.reference, prompts, completions).requires_grad
    total = policy.log_probs(Role.policy, prompts, completions).sum()
    gradients = torch.autograd.grad(total, list(policy.trainable().values()))
    assert all(gradient.abs().max() > 0 for gradient in gradients)
    assert all("lora_" in name for name in policy.trainable())


@torch.no_grad()
def test_policy_starts_as_the_reference() -> None:
    from alignrun.launch.compose import compose
    from alignrun.models.sources import load_tokenizer

    config = compose(["experiment=smoke"])
    fresh = Policy.load(config.model, config.adapter, config.reference, load_tokenizer(config.model), 0)
    prompts, completions = random_batch(fresh)
    assert torch.equal(
        fresh.log_probs(Role.policy, prompts, completions), fresh.log_probs(Role.reference, prompts, completions)
    )


@torch.no_grad()
def test_temperature_divides_the_logits_of_both_roles(policy: Policy) -> None:
    prompts, completions = random_batch(policy)
    hot = policy.log_probs(Role.policy, prompts, completions, temperature=1000.0)
    uniform = -torch.log(torch.tensor(float(policy.model.config.vocab_size)))
    torch.testing.assert_close(hot[completions.mask], uniform.expand(int(completions.mask.sum())), atol=1e-2, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("overrides", [(), ("adapter=none",), ("model.gradient_checkpointing=true",)])
def test_joint_decoding_equals_each_role_alone(overrides: tuple[str, ...]) -> None:
    policy, _ = load_policy(*overrides)
    prompts, completions = random_batch(policy, prompts=4)
    roles = [Role.policy, Role.reference]
    decoder = policy.decoder(prompts, roles, 8)
    logits = decoder.prefill()
    # Repeat the policy's block, as for a policy stream and a mixture, and drop one prompt of each.
    rows = [0, 1, 3, 0, 1, 3, 4, 5, 7]
    decoder.select(rows)
    logits = logits[rows]
    kept = [0, 1, 3]
    chosen = PromptBatch(
        tuple(prompts.texts[row] for row in kept), prompts.input_ids[kept], prompts.attention_mask[kept]
    )
    tokens = completions.tokens[kept]
    everything = Completions(tokens, torch.ones_like(tokens, dtype=torch.bool))
    expected = {role: policy.log_probs(role, chosen, everything) for role in roles}
    for position in range(tokens.shape[1]):
        log_probs = logits.log_softmax(-1)
        for block, role in enumerate([Role.policy, Role.policy, Role.reference]):
            got = log_probs[3 * block : 3 * block + 3].gather(1, tokens[:, position : position + 1])[:, 0]
            torch.testing.assert_close(got, expected[role][:, position], atol=1e-4, rtol=1e-4)
        logits = decoder.step(tokens[:, position].repeat(3))


def test_without_an_adapter_the_reference_keeps_still() -> None:
    policy, _ = load_policy("adapter=none")
    prompts, completions = random_batch(policy)
    before = policy.log_probs(Role.reference, prompts, completions)
    with torch.no_grad():
        for weight in policy.trainable().values():
            weight.mul_(1.5)
        after = policy.log_probs(Role.reference, prompts, completions)
        moved = policy.log_probs(Role.policy, prompts, completions)
    assert torch.equal(before, after)
    assert (moved - after).abs()[completions.mask].max() > 1e-2


@torch.no_grad()
def test_a_frozen_adapter_is_the_reference_and_the_policy_starts_from_it(tmp_path) -> None:
    trained, _ = load_policy()
    trained.save_adapter(tmp_path / "adapter")
    from alignrun.launch.compose import compose
    from alignrun.models.sources import load_tokenizer

    config = compose(["experiment=smoke", "reference=adapter", f"reference.path={tmp_path}"])
    policy = Policy.load(config.model, config.adapter, config.reference, load_tokenizer(config.model), config.seed)
    prompts, completions = random_batch(policy)
    expected = trained.log_probs(Role.policy, prompts, completions)
    torch.testing.assert_close(policy.log_probs(Role.reference, prompts, completions), expected)
    torch.testing.assert_close(policy.log_probs(Role.policy, prompts, completions), expected)
    frozen = {name for name, _ in policy.model.named_parameters()} - set(policy.trainable())
    assert any(".reference." in name for name in frozen)
    for weight in policy.trainable().values():
        weight.mul_(1.5)
    torch.testing.assert_close(policy.log_probs(Role.reference, prompts, completions), expected)
    decoder = policy.decoder(prompts, [Role.policy, Role.reference], 8)
    first = decoder.prefill()[len(prompts) :].log_softmax(-1).gather(1, completions.tokens[:, :1])[:, 0]
    torch.testing.assert_close(first, expected[:, 0], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_gradient_checkpointing_changes_no_value_and_no_gradient() -> None:
    plain, _ = load_policy()
    checkpointed, _ = load_policy("model.gradient_checkpointing=true")
    prompts, completions = random_batch(plain)
    gradients = []
    for policy in (plain, checkpointed):
        with torch.enable_grad():
            total = policy.log_probs(Role.policy, prompts, completions).square().sum()
            gradients.append(torch.autograd.grad(total, list(policy.trainable().values())))
    assert checkpointed.model.training
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_merged_model_equals_the_policy(tmp_path) -> None:
    from transformers import AutoModelForCausalLM

    policy, _ = load_policy()
    prompts, completions = random_batch(policy)
    with torch.no_grad():
        expected = policy.log_probs(Role.policy, prompts, completions)
        copy.copy(policy).save_merged(tmp_path)
        merged = AutoModelForCausalLM.from_pretrained(tmp_path)
        torch.testing.assert_close(plain_log_probs(merged, prompts, completions), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("role", [Role.policy, Role.reference])
def test_a_prompt_read_once_for_its_completions_changes_no_value_and_no_gradient(policy: Policy, role: Role) -> None:
    """Three completions of each prompt: shared prefix, rows with their own copy, and rows without any padding."""
    prompts, _ = random_batch(policy, prompts=3)
    _, completions = random_batch(policy, prompts=9, seed=1)
    apart = PromptBatch(
        prompts.texts * 3, prompts.input_ids.repeat_interleave(3, 0), prompts.attention_mask.repeat_interleave(3, 0)
    )
    shared = policy.log_probs(role, prompts, completions)
    plain = policy.log_probs(role, apart, completions)
    torch.testing.assert_close(shared, plain, atol=1e-5, rtol=1e-5)
    if role is Role.policy:
        torch.testing.assert_close(plain, plain_log_probs(policy.model, apart, completions), atol=1e-5, rtol=1e-5)
        weights = list(policy.trainable().values())
        factors = torch.arange(45.0).reshape(9, 5).cos()
        for one, other in zip(
            torch.autograd.grad((shared * factors).sum(), weights),
            torch.autograd.grad((plain * factors).sum(), weights),
            strict=True,
        ):
            torch.testing.assert_close(one, other, atol=2e-4, rtol=1e-3)
