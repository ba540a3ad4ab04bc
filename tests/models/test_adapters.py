"""The low-rank products as alignrun computes them, against PEFT's own layers."""

import copy
import gc
import weakref

import torch
from helpers import load_policy, random_batch
from torch.autograd.graph import saved_tensors_hooks

from alignrun.models.adapters import lora_layers
from alignrun.models.policy import Policy
from alignrun.types import Role


def gradients(policy: Policy) -> list[torch.Tensor]:
    prompts, completions = random_batch(policy)
    total = policy.log_probs(Role.policy, prompts, completions).square().sum()
    return [total.detach(), *torch.autograd.grad(total, list(policy.trainable().values()))]


def error(found: list[torch.Tensor], exact: list[torch.Tensor]) -> float:
    """Relative, the root of the mean over all tensors."""
    ratios = [(one - other).norm() / other.norm() for one, other in zip(found, exact, strict=True)]
    return float(torch.stack(ratios).square().mean().sqrt())


def leave_to_peft(policy: Policy) -> None:
    for layer in policy.backbone.layers:
        del layer.forward


def test_values_and_gradients_are_those_of_peft() -> None:
    policy, _ = load_policy("model.dtype=float32")
    ours = gradients(policy)
    leave_to_peft(policy)
    assert error(ours, gradients(policy)) < 1e-5


def test_in_half_precision_they_are_as_exact_as_those_of_peft() -> None:
    policy, _ = load_policy("model.dtype=bfloat16")
    ours = gradients(policy)
    leave_to_peft(policy)
    theirs = gradients(policy)
    policy.model.float()
    exact = gradients(policy)
    assert error(ours, exact) < 1.2 * error(theirs, exact) < 0.1


def test_a_base_goes_with_its_last_user() -> None:
    policy, _ = load_policy()
    gradients(policy)
    left = weakref.ref(policy.backbone.layers[0])
    gc.disable()  # two bases may not fit a GPU
    try:
        del policy
        assert left() is None
    finally:
        gc.enable()


def test_scoring_and_training_are_the_same_function_to_the_last_bit() -> None:
    policy, _ = load_policy("model.dtype=bfloat16")
    batch = random_batch(policy)
    trained = policy.log_probs(Role.policy, *batch).detach()
    with torch.no_grad():
        assert torch.equal(policy.log_probs(Role.policy, *batch), trained)


def test_frozen_factors_get_no_gradient_and_the_input_does() -> None:
    policy, _ = load_policy()
    layer = policy.backbone.layers[0]
    for weight in (layer.lora_A["policy"].weight, layer.lora_B["policy"].weight):
        weight.requires_grad_(False)
    x = torch.randn(2, 3, layer.in_features, requires_grad=True)
    layer(x).square().sum().backward()
    plain = copy.deepcopy(x.detach()).requires_grad_()
    type(layer).forward(layer, plain).square().sum().backward()
    torch.testing.assert_close(x.grad, plain.grad, atol=1e-4, rtol=1e-4)


def test_layers_that_share_an_input_hold_it_once_and_as_it_is() -> None:
    policy, _ = load_policy("model.dtype=bfloat16")
    attention = policy.model.model.layers[0].self_attn
    assert all(layer in lora_layers(policy.model) for layer in (attention.q_proj, attention.k_proj))
    x = torch.randn(2, 3, attention.q_proj.in_features, dtype=torch.bfloat16, requires_grad=True)
    held: list[torch.Tensor] = []
    with saved_tensors_hooks(lambda tensor: (held.append(tensor), tensor)[1], lambda tensor: tensor):
        for layer in (attention.q_proj, attention.k_proj, attention.v_proj):
            layer(x)
    of_the_input = [tensor for tensor in held if tensor.shape == x.shape]
    assert len(of_the_input) == 3
    assert {tensor.untyped_storage().data_ptr() for tensor in of_the_input} == {x.untyped_storage().data_ptr()}
