"""Loads weights and tokenizers by a model's name, from a folder, the hub or a Python package."""

import contextlib
import importlib.util
import io
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import getproxies

import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.constants import ENDPOINT
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from alignrun.config import ModelConfig, ModelSource
from alignrun.errors import AlignrunError, InputError, RunError, did_you_mean, one_line
from alignrun.games.files import load_game
from alignrun.games.lm import game_llama, game_tokenizer
from alignrun.models.chat_templates import configure
from alignrun.models.loading_errors import refuse_adapter, remedy
from alignrun.models.tiny import byte_tokenizer, random_llama
from alignrun.models.weights import whole_weight


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """The tokenizer of the model, with a padding token and the configured chat template.

    Raises:
        InputError: it cannot be found or read.
    """
    if config.source is ModelSource.random:
        tokenizer: PreTrainedTokenizerBase = byte_tokenizer()
    elif config.source is ModelSource.game:
        tokenizer = game_tokenizer(load_game(str(config.architecture["game"])))
    else:
        with loading(config, "tokenizer"):
            tokenizer = AutoTokenizer.from_pretrained(locate(config), **hub_options(config))
            tokenizer("text")  # limits in its files are first read here
    configure(tokenizer, config)
    if tokenizer.pad_token_id is None:
        # Padding is always masked, so any token serves; most base models have no pad token of their own.
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    # Some use an added token without an embedding in the model.
    if config.source not in (ModelSource.random, ModelSource.game) and tokenizer.pad_token_id >= tokenizer.vocab_size:
        rows = vocabulary_size(load_architecture(config))
        if rows is not None and tokenizer.pad_token_id >= rows:
            tokenizer.pad_token = tokenizer.convert_ids_to_tokens(0)
    tokenizer.padding_side = "left"
    return tokenizer


def load_model(
    config: ModelConfig,
    tokenizer: PreTrainedTokenizerBase,
    dtype: torch.dtype,
    device: torch.device | None = None,
    quantization: Any = None,
) -> PreTrainedModel:
    """The base model in evaluation mode, on the CPU, or on `device` if it is quantised on loading.

    Raises:
        InputError: it cannot be found or read.
    """
    if config.source in (ModelSource.random, ModelSource.game):
        built = (
            random_llama(dict(config.architecture), tokenizer)
            if config.source is ModelSource.random
            else game_llama(load_game(str(config.architecture["game"])), tokenizer)
        )
        with loading(config, "attention"):
            built.set_attn_implementation(config.attention.value)
        return built.to(dtype).eval()
    options: dict[str, Any] = {"dtype": dtype, "attn_implementation": config.attention.value, "use_safetensors": True}
    if quantization is not None:
        options |= {"quantization_config": quantization, "device_map": {"": device}}
    with loading(config, "weights"):
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(locate(config), **options, **hub_options(config))
        folder = Path(locate(config))
        if folder.is_dir() and not getattr(model, "is_quantized", False) and (unfit := whole_weight(model, folder)):
            raise InputError(f"model.path={config.path}: {unfit}: choose another model")
    if getattr(model, "_hf_peft_config_loaded", False):  # for a hub's repository, transformers loads the base too
        base = model.config._name_or_path
        raise InputError(
            f"model.path={config.path} is an adapter and not a model: download it, and name its base: "
            f"reference=adapter reference.path=DIR model=path model.path={base}"
        )
    return model.eval()


def unloaded_model(config: ModelConfig, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype) -> PreTrainedModel:
    """The same model with its weights on the meta device, which takes no memory; one that is made here has them.

    Raises:
        InputError: as `load_model`.
    """
    if config.source in (ModelSource.random, ModelSource.game):
        return load_model(config, tokenizer, dtype)
    architecture = load_architecture(config)
    with loading(config, "architecture"), torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            architecture,
            dtype=dtype,
            attn_implementation=config.attention.value,
            trust_remote_code=config.trust_remote_code,
        )
    model.name_or_path = locate(config)
    return model.eval()


def preview_prompt(config: ModelConfig, text: str) -> str | None:
    """A prompt as the model's template writes it; None if the template is on a hub that has not been asked."""
    if config.source in (ModelSource.random, ModelSource.game):
        tokenizer = load_tokenizer(config)
    elif config.chat_template is not None:
        tokenizer = byte_tokenizer()
        configure(tokenizer, config)
    else:
        try:
            with quiet_transformers():
                tokenizer = AutoTokenizer.from_pretrained(
                    locate(config), **hub_options(config) | {"local_files_only": True}
                )
                configure(tokenizer, config)
        except (OSError, ValueError, InputError):
            return None
    if tokenizer.chat_template is None:
        return text
    system = [] if config.system_prompt is None else [{"role": "system", "content": config.system_prompt}]
    messages = [*system, {"role": "user", "content": text}]
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


def load_architecture(config: ModelConfig) -> PreTrainedConfig:
    """The configuration of the model, without its weights.

    Raises:
        InputError: it cannot be found, or the one in the YAML is invalid.
    """
    with loading(config, "architecture"):
        if config.source is ModelSource.random:
            _refuse_unknown_fields(config, LlamaConfig())
            return random_llama(dict(config.architecture), byte_tokenizer()).config
        if config.source is ModelSource.game:
            game = load_game(str(config.architecture["game"]))
            return game_llama(game, game_tokenizer(game)).config
        return AutoConfig.from_pretrained(locate(config), **hub_options(config))


def context_length(architecture: PreTrainedConfig) -> int:
    """The model's context length in tokens; practically unlimited if its configuration has none."""
    return int(getattr(architecture.get_text_config(), "max_position_embeddings", 1 << 20))


def vocabulary_size(architecture: PreTrainedConfig) -> int | None:
    """The number of a model's embeddings, if its configuration has it."""
    rows: int | None = getattr(architecture.get_text_config(), "vocab_size", None)
    return rows


def planned_architecture(config: ModelConfig) -> PreTrainedConfig:
    """The same without contacting a hub, if the YAML contains the architecture.

    Raises:
        InputError: as `load_architecture`.
    """
    if not config.architecture or config.source in (ModelSource.random, ModelSource.game):
        return load_architecture(config)
    with loading(config, "architecture"):
        architecture = AutoConfig.for_model(**config.architecture)
    _refuse_unknown_fields(config, architecture)
    return architecture


def _refuse_unknown_fields(config: ModelConfig, architecture: PreTrainedConfig) -> None:
    known = set(type(architecture)().to_dict()) | {"model_type"}
    unknown = sorted(set(config.architecture) - known)
    if unknown:
        hint = did_you_mean(unknown[0], known) or ": see the transformers configuration of this family"
        raise InputError(f"config: unknown key model.architecture.{unknown[0]}{hint}")


def locate(config: ModelConfig) -> str:
    """A local folder or a hub id that `from_pretrained` takes."""
    if config.source is ModelSource.package:
        converted = _from_package(config)
        path = str(converted) if converted is not None else config.fallback
    else:
        path = config.path
    if not path:
        raise InputError(f"model={config.name}: model.path is missing: name a local folder or a hub id")
    looks_local = path.startswith(("/", "./", "../", "~"))
    if looks_local and not Path(path).expanduser().is_dir():
        raise InputError(f"model.path={path} is not a folder: name a folder with config.json, or a hub id")
    refuse_adapter(path)
    return str(Path(path).expanduser()) if looks_local else path


def base_name(config: ModelConfig) -> str | None:
    """A name by which the base can be loaded from anywhere: a hub id or an absolute path; None if created here."""
    if config.source in (ModelSource.random, ModelSource.game):
        return None
    path = locate(config)
    return str(Path(path).absolute()) if Path(path).is_dir() else path


def base_revision(config: ModelConfig) -> str | None:
    """The commit of a loaded hub model, which identifies its weights; None for other models."""
    base = base_name(config)
    if base is None or Path(base).is_absolute():
        return None
    cached = try_to_load_from_cache(base, "config.json", revision=config.revision or "main")
    return Path(cached).parent.name if isinstance(cached, str) else config.revision


def cache_folder() -> Path:
    """The folder of converted models: $ALIGNRUN_CACHE, or `alignrun` in the user's cache."""
    if "ALIGNRUN_CACHE" in os.environ:
        return Path(os.environ["ALIGNRUN_CACHE"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "alignrun"


def _from_package(config: ModelConfig) -> Path | None:
    """The GGUF file of a Python package as a safetensors folder, converted once; None if there is no package."""
    spec = importlib.util.find_spec(str(config.package))
    if spec is None or not spec.submodule_search_locations:
        return None
    folder, file_name = Path(next(iter(spec.submodule_search_locations))), str(config.package_file)
    source = folder / file_name
    if not source.is_file():
        raise InputError(f"model={config.name}: package {config.package} has no {file_name}: install another version")
    target = cache_folder() / "models" / f"{config.name}-{source.stat().st_size}"
    if (target / "config.json").is_file():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f"{target.name}.", dir=target.parent))
    except OSError as error:
        raise InputError(
            f"cannot write the model cache {target.parent} ({error.strerror}): set ALIGNRUN_CACHE to another folder"
        ) from None
    try:
        # The conversion draws its own progress bar, which no setting disables.
        quiet = contextlib.redirect_stderr(io.StringIO())
        with loading(config, "weights"), quiet:
            tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file_name)
            model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file_name, dtype=torch.float32)
            # The weights are plain floats now; without this, transformers would save them as still quantised.
            del model.config.quantization_config
            model.hf_quantizer, model.is_quantized, model.quantization_method = None, False, None
        with quiet_transformers():
            model.save_pretrained(partial)
            tokenizer.save_pretrained(partial)
        with contextlib.suppress(OSError):  # another process may have finished the same conversion first
            partial.rename(target)
    except (OSError, SafetensorError) as error:
        raise RunError(
            f"cannot write the model cache {target}: {one_line(error)}: free space, or set ALIGNRUN_CACHE to another "
            "folder"
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def hub_options(config: ModelConfig) -> dict[str, Any]:
    """Hub arguments of `from_pretrained`: the revision, whether to run remote code, and whether to stay offline."""
    return {
        "revision": config.revision or "main",
        "trust_remote_code": config.trust_remote_code,
        "local_files_only": _hub_is_out_of_reach(),
    }


@cache
def _hub_is_out_of_reach() -> bool:
    """Whether the hub's name does not resolve; its client would then retry for most of a minute."""
    if getproxies():
        return False  # the proxy resolves names
    try:
        socket.getaddrinfo(urlparse(ENDPOINT).hostname, 443)
    except OSError:
        return True
    return False


@contextlib.contextmanager
def loading(config: ModelConfig, part: str, group: str = "model") -> Iterator[None]:
    """Turn any error of a library that loads a part of the group's model into one line. Raises InputError."""
    try:
        with quiet_transformers():
            yield
    except (torch.OutOfMemoryError, AlignrunError):
        raise
    except Exception as error:  # damaged or untrusted files can raise anything
        raise InputError(
            f"{group}={config.name}: the {part} of {config.path or config.fallback or config.name} cannot be loaded "
            f"({one_line(error, 160)}): {remedy(error, config, group)}"
        ) from error


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Suppress progress bars and advice on stderr while a model is loaded or saved."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        transformers_logging.enable_progress_bar()
