"""The map from hidden states to logits, as in the model itself."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.func import functional_call
from transformers import PreTrainedModel

from alignrun.distributed.parts import any_sharded, gathered
from alignrun.errors import InputError


def vocabulary_head(model: PreTrainedModel) -> Callable[[Tensor], Tensor]:
    """The map [N, D] -> [N, V] of this model: its output embedding, and the scaling of some families.

    A sharded embedding is gathered here, by all processes together, and not when the map is used. Its weights are those
    of now: do not keep the map over an optimiser step.
    """
    embedding = model.get_output_embeddings()
    text = model.config.get_text_config()
    softcap = getattr(text, "final_logit_softcapping", None)
    multiplier = getattr(text, "logit_scale", None)
    divisor = getattr(text, "logits_scaling", None)
    embed: Callable[[Tensor], Tensor] = embedding
    if any_sharded(embedding.parameters()):
        embed = partial(functional_call, embedding, {name: gathered(own) for name, own in embedding.named_parameters()})

    def head(hidden: Tensor) -> Tensor:
        if embedding.weight.is_floating_point():  # and not quantised
            hidden = hidden.to(embedding.weight.dtype)  # some families keep it in float32, such as Mamba
        logits: Tensor = embed(hidden)
        if multiplier is not None:
            logits = logits * multiplier
        if divisor is not None:
            logits = logits / divisor
        if softcap is not None:
            logits = torch.tanh(logits / softcap) * softcap
        return logits

    return head


def check_head(model: PreTrainedModel, head: Callable[[Tensor], Tensor]) -> None:
    """Compare `head` with the model's own logits on two tokens, to detect unsupported model families.

    Raises:
        InputError: they differ.
    """
    ids = torch.tensor([[0, 1]], device=model.device)
    with torch.no_grad():
        expected = model(input_ids=ids, use_cache=False).logits[0].float()
        actual = head(model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]).float()
    if not torch.allclose(expected, actual, rtol=1e-2, atol=1e-2):
        raise InputError(
            f"{model.config.model_type} models compute their logits in a way that alignrun does not know: "
            "choose another model family"
        )
