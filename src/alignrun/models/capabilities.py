"""Whether a model gives the same values in every pass that training and sampling make: measured, not looked up.

Shape legend: P texts, S tokens, D hidden size, V vocabulary.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from transformers import PreTrainedModel

from alignrun.errors import AlignrunError, InputError, one_line
from alignrun.models.adapters import forwards_as, forwards_on_rows, lora_layers
from alignrun.models.decoding.decoder import CachedDecoder
from alignrun.models.head import vocabulary_head
from alignrun.models.hidden import hidden_states
from alignrun.models.targets import expert_blocks
from alignrun.types import PromptBatch

# Two prompts, of which the second is padded by two tokens on the left, with two continuations of each.
_PROMPTS = ((1, 0, 2, 1), (0, 0, 2, 0))
_MASK = ((1, 1, 1, 1), (0, 0, 1, 1))
_CONTINUATIONS = ((0, 2, 1), (2, 2, 0), (1, 2, 0), (0, 0, 1))
_COPIES = 2
_PADDED = slice(2, 4)
"""The rows of the continuations whose prompt is padded: those that are compared."""

_checked: set[tuple[object, ...]] = set()


def check_passes(model: PreTrainedModel) -> None:
    """Compare padded, shared and cached passes over a few tokens with a plain one, which reads whole texts at once.

    What differs depends on the architecture and not on the weights, so one check serves all models of a
    configuration in this process.

    Raises:
        InputError: they differ, as in models whose recurrent state takes padding for text.
    """
    key = (type(model), model.config.to_json_string(use_diff=False), model.dtype, model.device.type)
    if key in _checked:
        return
    for error, what in differences(model):
        if not error <= tolerance(model):
            raise InputError(f"{model.config.model_type} models cannot be trained here: {what}: choose another model")
    _checked.add(key)


@torch.no_grad()
def check_rows(model: PreTrainedModel, adapter: str) -> None:
    """See that rows with different adapters stay apart in every adapted layer, where a model has experts.

    Raises:
        InputError: an adapted layer gets the tokens of all rows in one list.
    """
    if expert_blocks(model):
        layers, ids = lora_layers(model), torch.tensor(_PROMPTS, device=model.device)
        with forwards_as(layers, forwards_on_rows(layers, [(adapter, slice(0, 1))], len(ids))):
            model.base_model(input_ids=ids, use_cache=False)


def tolerance(model: PreTrainedModel) -> float:
    """The largest relative error that rounding explains.

    Sums in another order differ by 1e-7 to 1e-4 in float32 (4e-5 with the 30 layers of SmolLM2), 1e-3 with TF32
    products, and by 0.003 to 0.06 in half precision, where an error grows from layer to layer; a text that sees
    padding, or not its own past, is off by about as much as texts differ from each other, 0.2 to 2.
    """
    return 1e-2 if _exact(model) else 0.15


def _exact(model: PreTrainedModel) -> bool:
    return model.dtype is torch.float32 and not getattr(model, "is_quantized", False)


@torch.no_grad()
def differences(model: PreTrainedModel) -> Iterator[tuple[float, str]]:
    """The relative error of each kind of pass, and what it means where it is too large; infinite if a pass fails.

    Args:
        model: without adapters.
    """
    device = model.device
    ids, mask = torch.tensor(_PROMPTS, device=device), torch.tensor(_MASK, device=device)
    tokens = torch.tensor(_CONTINUATIONS, device=device)
    prompts = PromptBatch(("",) * len(ids), ids, mask, padded=True)
    apart = PromptBatch(("",) * len(tokens), ids.repeat_interleave(_COPIES, 0), mask.repeat_interleave(_COPIES, 0))
    everything = torch.ones_like(tokens, dtype=torch.bool)
    head = vocabulary_head(model)
    worst = _exact(model) or not expert_blocks(model)
    plain = _plain(model, ids[1][mask[1].bool()], tokens[_PADDED])

    def decoded() -> Tensor:
        decoder = CachedDecoder(model, prompts, [None])
        first = decoder.prefill().repeat_interleave(_COPIES, 0)
        decoder.select([row for row in range(len(ids)) for _ in range(_COPIES)])
        return torch.stack([first, *(decoder.step(column) for column in tokens.T)], dim=1)

    passes: list[tuple[Callable[[], Tensor], Tensor, str]] = [
        (lambda: hidden_states(model, apart, tokens, everything), plain, "padding on the left changes what they read"),
        (lambda: hidden_states(model, prompts, tokens, everything), plain,
         "a prompt that is read once for several completions gives them other values"),
        (decoded, head(plain.flatten(0, 1)).view(*plain.shape[:2], -1),
         "decoding with a cache gives other values than reading the text at once"),
    ]  # fmt: skip
    for found, expected, what in passes:
        try:
            yield relative_error(found()[_PADDED], expected, worst=worst), what
        except (torch.OutOfMemoryError, AlignrunError):
            raise
        except Exception as error:  # a library's code for an architecture fails in its own way
            yield float("inf"), f"{what} ({one_line(error, 120)})"


def relative_error(found: Tensor, expected: Tensor, *, worst: bool = True) -> float:
    """How far [P, S, D] values are from those expected, relative to how much those of different tokens differ.

    The mean is left out since some models add the same large vector to every token. The worst token counts, except
    where products are rounded to half precision and choose experts: there a token may get another one, and the median
    of each text's tokens counts.
    """
    found, expected = found.double(), expected.double()
    spread = (expected - expected.mean((0, 1))).norm(dim=-1).square().mean().sqrt()
    errors = (found - expected).norm(dim=-1) / spread
    return float((errors if worst else errors.median(1).values).max())


def _plain(model: PreTrainedModel, prompt: Tensor, tokens: Tensor) -> Tensor:
    texts = torch.cat([prompt.expand(len(tokens), -1), tokens], dim=1)
    hidden: Tensor = model.base_model(input_ids=texts, use_cache=False).last_hidden_state
    return hidden[:, len(prompt) - 1 :]
