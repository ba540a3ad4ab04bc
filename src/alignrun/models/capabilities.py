"""Checks that a model computes the same values in every kind of pass used in training and sampling, by measurement.

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

# Two prompts with two continuations each; the second prompt is padded by two tokens on the left.
_PROMPTS = ((1, 0, 2, 1), (0, 0, 2, 0))
_MASK = ((1, 1, 1, 1), (0, 0, 1, 1))
_CONTINUATIONS = ((0, 2, 1), (2, 2, 0), (1, 2, 0), (0, 0, 1))
_COPIES = 2
_PADDED = slice(2, 4)
"""The compared rows: the continuations of the padded prompt."""

_checked: set[tuple[object, ...]] = set()


def check_passes(model: PreTrainedModel) -> None:
    """Compare padded, shared-prompt and cached passes over a few tokens with a plain pass over whole texts.

    Differences depend on the architecture and not on the weights, so each configuration is checked once per process.

    Raises:
        InputError: they differ, as in models whose recurrent state treats padding as text.
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
    """Check that every adapted layer keeps rows separate, in models with experts.

    Raises:
        InputError: an adapted layer receives the tokens of all rows in one list.
    """
    if expert_blocks(model):
        layers, ids = lora_layers(model), torch.tensor(_PROMPTS, device=model.device)
        with forwards_as(layers, forwards_on_rows(layers, [(adapter, slice(0, 1))], len(ids))):
            model.base_model(input_ids=ids, use_cache=False)


def tolerance(model: PreTrainedModel) -> float:
    """The largest relative error attributable to rounding.

    Reordered sums differ by 1e-7 to 1e-4 in float32 (4e-5 with the 30 layers of SmolLM2), by 1e-3 with TF32 products,
    and by 0.003 to 0.06 in half precision, where errors grow from layer to layer. A text that sees padding, or misses
    its own past, is off by about as much as different texts are, 0.2 to 2.
    """
    return 1e-2 if _exact(model) else 0.15


def _exact(model: PreTrainedModel) -> bool:
    return model.dtype is torch.float32 and not getattr(model, "is_quantized", False)


@torch.no_grad()
def differences(model: PreTrainedModel) -> Iterator[tuple[float, str]]:
    """The relative error of each kind of pass, infinite if it fails, with the meaning of a large error.

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
        except Exception as error:  # model code may raise anything
            yield float("inf"), f"{what} ({one_line(error, 120)})"


def relative_error(found: Tensor, expected: Tensor, *, worst: bool = True) -> float:
    """The distance of [P, S, D] values from the expected ones, relative to the spread between tokens.

    The mean is removed, since some models add the same large vector to every token. The result is the worst token's,
    or with `worst=False` the worst text's median token: in half precision, rounding may route a token to another
    expert.
    """
    found, expected = found.double(), expected.double()
    spread = (expected - expected.mean((0, 1))).norm(dim=-1).square().mean().sqrt()
    errors = (found - expected).norm(dim=-1) / spread
    return float((errors if worst else errors.median(1).values).max())


def _plain(model: PreTrainedModel, prompt: Tensor, tokens: Tensor) -> Tensor:
    texts = torch.cat([prompt.expand(len(tokens), -1), tokens], dim=1)
    hidden: Tensor = model.base_model(input_ids=texts, use_cache=False).last_hidden_state
    return hidden[:, len(prompt) - 1 :]
