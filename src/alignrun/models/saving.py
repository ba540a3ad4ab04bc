"""Saving a model so that other tools load the trained policy: weights, prompt format and sampling settings."""

import copy
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
from alignrun.models.chat_templates import rewrite, with_system_turn
from alignrun.models.sources import quiet_transformers
from alignrun.models.weights import is_finite

ADAPTER_FILE = "adapter_model.safetensors"


def prompting_tokenizer(tokenizer: PreTrainedTokenizerBase, system_prompt: str | None) -> PreTrainedTokenizerBase:
    """The tokenizer with a chat template that adds the system prompt to conversations without a system turn.

    `apply_chat_template` then gives exactly the prompts of training.
    """
    if system_prompt is None or not tokenizer.chat_template:
        return tokenizer
    prompting = copy.copy(tokenizer)
    rewrite(prompting, lambda template: with_system_turn(template, system_prompt))
    return prompting


def sampling_config(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, stop_ids: Sequence[int], temperature: float
) -> GenerationConfig:
    """Settings to sample π(y | x) ∝ exp(logits/T) at temperature T, without truncation or penalties.

    The base's own settings (nucleus, repetition penalty) describe another distribution; only its token ids are kept.
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
    """Write the weights of one adapter without its base. Raises RunError if they are not finite."""
    # By default, PEFT adds the base's embeddings to an adapter of the vocabulary head, and queries the hub.
    weights = get_peft_model_state_dict(peft, adapter_name=name, save_embedding_layers=False)
    check_finite(weights.items())
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(weights, folder / ADAPTER_FILE)


def save_tensors(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Write tensors as safetensors, with the user's default file permissions."""
    # safetensors would write a file readable only by its owner, but an inference server often runs as another user.
    file.write_bytes(save({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, {"format": "pt"}))


def save_adapter_config(peft: PeftModel, name: str, folder: Path, base: str | None, revision: str | None) -> None:
    """Write the adapter's configuration with its base, so that PEFT finds the base from any folder."""
    config = copy.copy(peft.peft_config[name])
    config.inference_mode, config.base_model_name_or_path, config.revision = True, base, revision
    if isinstance(config.target_modules, set):
        config.target_modules = sorted(config.target_modules)  # for reproducible files
    config.save_pretrained(folder)


def save_model(
    model: PreTrainedModel, sampling: GenerationConfig, folder: Path, weights: Mapping[str, Tensor] | None = None
) -> None:
    """Write a whole model (safetensors); `weights` is its state where the model itself has only a part of it.

    Raises RunError if its weights are not finite.
    """
    check_finite(model.named_parameters() if weights is None else weights.items())
    model.generation_config = sampling  # transformers may refuse to write the base's own
    for weight in model.parameters() if weights is None else ():  # transformers cannot save column-major weights
        weight.data = weight.data.contiguous()
    with quiet_transformers():
        model.save_pretrained(folder, state_dict=None if weights is None else dict(weights))
    for file in folder.glob("*.safetensors"):  # readable only by their owner
        file.chmod((folder / "config.json").stat().st_mode)


def merge(peft: PeftModel, name: str) -> PreTrainedModel:
    """Merge an adapter into the base, W + s·BA for every adapted layer. The base is changed in place.

    Raises:
        InputError: the adapter changes a weight shared with other layers, which this model family cannot represent.
    """
    _untie(peft, name)
    merged: PreTrainedModel = peft.merge_and_unload(adapter_names=[name])
    return merged


def _untie(peft: PeftModel, name: str) -> None:
    """Untie the vocabulary head from the input embedding if the adapter changes it."""
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
    """Refuse non-finite weights. Raises RunError."""
    for name, weight in weights:
        if weight.is_floating_point() and not is_finite(weight):
            raise RunError(
                f"the weights of {name} are not finite, and nothing was written: export an earlier step with --step, "
                "or train with a lower optim.learning_rate"
            )


def check_saving(describe: Callable[[Path], None]) -> None:
    """Before training, test that the files next to the weights can be written, in a temporary folder.

    Raises:
        InputError: a library refuses to write it.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="alignrun-", ignore_cleanup_errors=True) as folder:
            describe(Path(folder))
    except AlignrunError:
        raise
    except Exception as error:  # tokenizers and configurations may raise anything
        if isinstance(error, OSError) and error.errno is not None:
            return  # a full temporary folder is unrelated to the run's folder
        raise InputError(
            f"what this run learns could not be saved ({one_line(error, 160)}): check the tokenizer and the "
            "config.json of the model"
        ) from error
