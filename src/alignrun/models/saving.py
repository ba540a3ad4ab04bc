"""Writing a model so that other tools read the policy that was trained: its weights, its prompt, its distribution."""

import copy
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from peft import PeftModel, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import save
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from alignrun.errors import AlignrunError, InputError, RunError, one_line
from alignrun.models.sources import quiet_transformers
from alignrun.models.weights import is_finite

ADAPTER_FILE = "adapter_model.safetensors"


def prompting_tokenizer(tokenizer: PreTrainedTokenizerBase, system_prompt: str | None) -> PreTrainedTokenizerBase:
    """The tokenizer, whose chat template puts the system prompt first where a conversation brings no system turn.

    So `apply_chat_template` alone gives the prompts of training, token for token.
    """
    if system_prompt is None or not tokenizer.chat_template:
        return tokenizer
    prompting = copy.copy(tokenizer)
    before: str | dict[str, str] = tokenizer.chat_template
    if isinstance(before, dict):
        prompting.chat_template = {name: _with_system_turn(part, system_prompt) for name, part in before.items()}
    else:
        prompting.chat_template = _with_system_turn(before, system_prompt)
    return prompting


def _with_system_turn(template: str, text: str) -> str:
    # JSON's escapes mean the same inside a Jinja string, but for those of characters beyond ASCII, which stay as they
    # are. The newline at the end belongs to the block, which takes one newline with it: the template stands at the
    # start of a line, as it did.
    quoted = json.dumps(text, ensure_ascii=False)
    return (
        "{% if not messages | selectattr('role', 'equalto', 'system') | list %}"
        f"{{% set messages = [{{'role': 'system', 'content': {quoted}}}] + messages | list %}}"
        "{% endif %}\n" + template
    )


def sampling_config(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, stop_ids: Sequence[int], temperature: float
) -> GenerationConfig:
    """How to sample π(y | x) ∝ exp(logits/T): at the temperature T, and with nothing cut off or penalised.

    The base's own settings (nucleus, repetition penalty) describe another distribution; of them its ids alone are kept.
    """
    return GenerationConfig(
        do_sample=True,
        temperature=temperature,
        top_k=0,
        top_p=1.0,
        bos_token_id=model.generation_config.bos_token_id,
        eos_token_id=list(stop_ids) or None,
        pad_token_id=tokenizer.pad_token_id,
    )


def save_adapter_weights(peft: PeftModel, name: str, folder: Path) -> None:
    """Write the weights of one adapter, and nothing of its base. Raises RunError where they are not finite."""
    # Left to itself, PEFT adds the base's embeddings to an adapter of the vocabulary head, and asks the hub about them.
    weights = get_peft_model_state_dict(peft, adapter_name=name, save_embedding_layers=False)
    check_finite(weights.items())
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(weights, folder / ADAPTER_FILE)


def save_tensors(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Write tensors as safetensors, in a file that others may read as the user's other files."""
    # Written by safetensors itself, it would be its owner's alone, and an inference server is often another user.
    file.write_bytes(save({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, {"format": "pt"}))


def save_adapter_config(peft: PeftModel, name: str, folder: Path, base: str | None, revision: str | None) -> None:
    """Write what the adapter is, and which base it is for, so that PEFT finds that from any folder."""
    config = copy.copy(peft.peft_config[name])
    config.inference_mode, config.base_model_name_or_path, config.revision = True, base, revision
    if isinstance(config.target_modules, set):
        config.target_modules = sorted(config.target_modules)  # or no two files would be the same
    config.save_pretrained(folder)


def save_model(model: PreTrainedModel, sampling: GenerationConfig, folder: Path) -> None:
    """Write a whole model (safetensors). Raises RunError where its weights are not finite."""
    check_finite(model.named_parameters())
    model.generation_config = sampling  # the base's own may be one that transformers reads and does not write
    for weight in model.parameters():  # transformers takes no linear layers that are stored by columns
        weight.data = weight.data.contiguous()
    with quiet_transformers():
        model.save_pretrained(folder)
    for file in folder.glob("*.safetensors"):  # which are their owner's alone
        file.chmod((folder / "config.json").stat().st_mode)


def merge(peft: PeftModel, name: str) -> PreTrainedModel:
    """W + s·BA for every layer of an adapter: base and adapter as one model. The base is changed in place.

    Raises:
        InputError: the adapter changes a weight that other layers share, and no model of this family can hold both.
    """
    _untie(peft, name)
    merged: PreTrainedModel = peft.merge_and_unload(adapter_names=[name])
    return merged


def _untie(peft: PeftModel, name: str) -> None:
    """Give the vocabulary head a weight of its own, where the adapter changes it and it is the input embedding's."""
    model: PreTrainedModel = peft.get_base_model()
    users = Counter(id(weight) for _, weight in model.named_parameters(remove_duplicate=False))
    head = model.get_output_embeddings()
    for path, layer in model.named_modules():
        if not isinstance(layer, LoraLayer) or name not in layer.lora_A:
            continue
        base = layer.get_base_layer()
        if users[id(base.weight)] == 1:
            continue
        if head not in (layer, base) or users[id(base.weight)] > 2:
            raise InputError(
                f"the adapter changes {path}, whose weight other layers of this model share: no merged model can hold "
                "both; export it without --merge"
            )
        base.weight = nn.Parameter(base.weight.detach().clone(), requires_grad=False)
        for config in (model.config, model.config.get_text_config()):
            config.tie_word_embeddings = False


def check_finite(weights: Iterable[tuple[str, Tensor]]) -> None:
    """Refuse weights of which nobody could sample. Raises RunError."""
    for name, weight in weights:
        if weight.is_floating_point() and not is_finite(weight):
            raise RunError(
                f"the weights of {name} are not finite, and nothing was written: export an earlier step with --step, "
                "or train with a lower optim.learning_rate"
            )


def check_saving(describe: Callable[[Path], None]) -> None:
    """Write what will be written next to the weights into a folder that is then deleted, before any time is spent.

    Raises:
        InputError: a library refuses to write it.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="alignrun-", ignore_cleanup_errors=True) as folder:
            describe(Path(folder))
    except AlignrunError:
        raise
    except Exception as error:  # tokenizers and configurations come from anywhere
        if isinstance(error, OSError) and error.errno is not None:
            return  # no space in the folder for temporary files, which says nothing about the run's
        raise InputError(
            f"what this run learns could not be saved ({one_line(error, 160)}): check the tokenizer and the "
            "config.json of the model"
        ) from error
