"""Hidden states of continuations, with each prompt encoded once for all its continuations.

Shape legend: B prompts, P prompt tokens, N = K·B continuations (those of prompt b are rows b·K to b·K + K − 1) of S
tokens, D hidden size, R packed rows.
"""

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from alignrun.errors import InputError
from alignrun.models.decoding.cache import passing_cache, plain_attention, recurrent
from alignrun.types import PackedBatch, PromptBatch


def position_ids(mask: Tensor) -> Tensor:
    """[R, P] each token's position among the real tokens of its row, for masks with padding on the left."""
    return (mask.cumsum(1) - 1).clamp(min=0)


def masked(module: PreTrainedModel, mask: Tensor, padded: bool) -> tuple[Tensor | None, Tensor | None]:
    """The attention mask and positions of texts read from their first token.

    They are chosen without reading values from the device, since transformers' own check would synchronise with it.

    Args:
        module: the causal language model.
        mask: [R, T], 0 on padding.
        padded: whether there may be padding on the left; padding on the right needs no mask.
    """
    if not padded:
        return None, None
    positions = position_ids(mask)
    if module.config._attn_implementation != "sdpa" or not plain_attention(module.config):
        return mask, positions
    length = mask.shape[1]
    before = torch.ones(length, length, dtype=torch.bool, device=mask.device).tril()
    itself = torch.eye(length, dtype=torch.bool, device=mask.device)  # padding must attend to something
    return (before & mask.bool()[:, None, None, :]) | itself, positions


def hidden_states(module: PreTrainedModel, prompts: PromptBatch, tokens: Tensor, mask: Tensor) -> Tensor:
    """[N, S + 1, D] the hidden state at the end of the prompt and at every token of its continuations.

    If a prompt has several continuations, its keys and values are computed once and repeated. Values and gradients
    equal those of separate rows, since the prompt's gradient is the sum over its continuations. With gradient
    checkpointing (no cache) or a recurrent state (no gradient), every continuation is read with its prompt instead.

    Args:
        module: the causal language model, its active adapter included.
        prompts: B prompts, padded on the left.
        tokens: [N, S] continuations, padded on the right.
        mask: [N, S] true on their tokens.
    """
    alone = module.is_activation_checkpointing or recurrent(module.config)
    shared = len(tokens) > len(prompts) and not alone
    return (_after_shared_prompts if shared else _in_rows)(module, prompts, tokens, mask)


def packed_hidden_states(module: PreTrainedModel, batch: PackedBatch) -> Tensor:
    """[R, S, D] the hidden state at every token; attention stays inside each demonstration.

    Without a mask, transformers finds the boundaries where `position_ids` restart: it builds a block-diagonal mask for
    sdpa and eager attention, and cumulative lengths for flash attention, which needs a single row.
    """
    ids, positions = batch.input_ids, batch.position_ids
    if "flash" in str(module.config._attn_implementation):
        ids, positions = ids.reshape(1, -1), positions.reshape(1, -1)
    output = module.base_model(input_ids=ids, position_ids=positions, use_cache=False)
    hidden: Tensor = output.last_hidden_state
    return hidden.reshape(*batch.input_ids.shape, -1)


@torch.no_grad()
def check_packing(module: PreTrainedModel) -> None:
    """Compare packed texts with separate ones, to detect models in which a demonstration sees another.

    Raises:
        InputError: they differ, as in models with recurrent layers.
    """
    ids = torch.tensor([[0, 1, 2, 1, 0], [2, 1, 0, 0, 1]], device=module.device)
    positions = torch.tensor([[0, 1, 2, 0, 1]] * 2, device=module.device)
    packed = packed_hidden_states(module, PackedBatch(ids, positions, torch.ones_like(ids, dtype=torch.bool)))
    alone = module.base_model(input_ids=ids[:, 3:], use_cache=False).last_hidden_state
    # Half precision reorders sums; a text that sees another would differ by its own magnitude.
    if (packed[:, 3:] - alone).abs().max() > 0.1 * alone.abs().max():
        raise InputError(
            f"algo=sft packs texts, and {module.config.model_type} does not separate them with "
            f"model.attention={module.config._attn_implementation}: choose another attention or model"
        )


def _in_rows(module: PreTrainedModel, prompts: PromptBatch, tokens: Tensor, mask: Tensor) -> Tensor:
    copies = len(tokens) // len(prompts)
    prompt_mask = prompts.attention_mask.repeat_interleave(copies, 0)
    ids = torch.cat([prompts.input_ids.repeat_interleave(copies, 0), tokens], dim=1)
    mask = torch.cat([prompt_mask, mask.to(prompt_mask)], dim=1)
    seen, positions = masked(module, mask, bool(prompts.padded))
    passing = seen is None and plain_attention(module.config) and not module.is_activation_checkpointing
    cache = passing_cache(module.config) if passing else None
    output = module.base_model(input_ids=ids, attention_mask=seen, position_ids=positions, cache=cache, use_cache=False)
    hidden: Tensor = output.last_hidden_state[:, prompts.input_ids.shape[1] - 1 :]
    return hidden


def _after_shared_prompts(module: PreTrainedModel, prompts: PromptBatch, tokens: Tensor, mask: Tensor) -> Tensor:
    copies = len(tokens) // len(prompts)
    cache = DynamicCache(config=module.config)
    prompt_mask = prompts.attention_mask
    seen, positions = masked(module, prompt_mask, bool(prompts.padded))
    output = module.base_model(
        input_ids=prompts.input_ids,
        attention_mask=seen,
        position_ids=positions,
        cache=cache,
        use_cache=True,
    )
    first: Tensor = output.last_hidden_state[:, -1:].repeat_interleave(copies, 0)
    if tokens.shape[1] == 0:
        return first
    cache.batch_repeat_interleave(copies)
    lengths = prompt_mask.sum(1, keepdim=True).repeat_interleave(copies, 0)
    output = module.base_model(
        input_ids=tokens,
        attention_mask=torch.cat([prompt_mask.repeat_interleave(copies, 0), mask.to(prompt_mask)], dim=1),
        position_ids=lengths + torch.arange(tokens.shape[1], device=tokens.device),
        cache=cache,
        use_cache=True,
    )
    following: Tensor = output.last_hidden_state
    return torch.cat([first, following], dim=1)
