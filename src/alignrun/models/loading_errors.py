"""Advice when a model cannot be loaded, by cause."""

import json
import re
from importlib.util import find_spec
from pathlib import Path

from alignrun.config import Attention, ModelConfig
from alignrun.errors import InputError

_PACKAGES = ("sentencepiece", "tiktoken", "protobuf", "flash_attn", "bitsandbytes", "gguf", "einops", "mamba_ssm")
_MODULES = {"protobuf": "google"}
_HUB = re.compile(
    r"gated|401|403|404|not a valid model identifier|couldn't connect|huggingface\.co|offline|cached", re.I
)


def remedy(error: BaseException, config: ModelConfig, group: str = "model") -> str:
    """The advice that ends the error message: a key of the group to change, or what to install or check."""
    text = str(error)
    folded = text.lower()
    if "trust_remote_code" in folded:
        return f"set {group}.trust_remote_code=true if you trust its code"
    attention = "attn_implementation" in folded or "attention implementation" in folded or "scaled_dot" in folded
    if (attention or "flash" in folded) and config.attention is not Attention.eager:
        return f"set {group}.attention={'eager' if config.attention is Attention.sdpa else 'sdpa'}"
    path = config.path or config.fallback
    local = path is not None and Path(path).expanduser().is_dir()
    if local and not (Path(str(path)).expanduser() / "config.json").is_file():
        return "it has no config.json: name a folder with a model and its tokenizer"
    missing = next((name for name in _PACKAGES if name in folded and find_spec(_MODULES.get(name, name)) is None), None)
    if missing is not None or isinstance(error, ImportError):
        name = missing or getattr(error, "name", None)
        return f"pip install {name.replace('_', '-')}" if name else "install the package that it names"
    if "model type" in folded or "unrecognized model" in folded or "unrecognized configuration" in folded:
        return "this version of transformers does not know it: update transformers, or choose another model"
    if path is not None and not local and (isinstance(error, OSError) or _HUB.search(text)):
        folder = "model=path model.path=DIR" if group == "model" else f"{group}.path=DIR"
        return f"check the name, log in with `hf auth login` if it is gated, or give a local folder with `{folder}`"
    if path is None:
        return "check model.architecture"
    return "check its files: some are missing, damaged, or not for this version of transformers"


def refuse_adapter(path: str) -> None:
    """Refuse a folder with an adapter, or a run that trained one, if a model is needed. Raises InputError."""
    folder = Path(path).expanduser()
    for place in (folder, folder / "adapter"):
        file = place / "adapter_config.json"
        if file.is_file() and not ((folder / "config.json").is_file() and place != folder):
            try:
                base = json.loads(file.read_text()).get("base_model_name_or_path")
            except (OSError, ValueError, AttributeError):
                base = None
            raise InputError(
                f"model.path={path} is an adapter and not a model: name its base, and start from the adapter with "
                f"reference=adapter reference.path={path} model=path model.path={base or 'BASE'}"
            )
