"""Checks of a stored adapter's configuration: only fields that alignrun computes exactly like PEFT are accepted."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from alignrun.errors import InputError, one_line
from alignrun.models.weights import OTHER_WEIGHTS, unfit_weight

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"

_COMPUTED = {
    "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "fan_in_fan_out",
    "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern",
}  # fmt: skip
"""The adapted layers, their ranks and their scaling: PEFT builds the layers and honours all of these."""

_IRRELEVANT = {
    "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode", "runtime_config",
    "lora_dropout",  # dropout is off: the sampled and the scored policy must be the same
    "loftq_config", "eva_config", "corda_config", "lora_ga_config",  # for initialisations, which are checked below
    "megatron_core", "qalora_group_size",  # what belongs to megatron_config and use_qalora, which must be empty
}  # fmt: skip
"""Fields that do not affect the product of a trained adapter."""

_VALUES: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "task_type": (None, "CAUSAL_LM"),
    "bias": ("none",),
    # The others change the base at initialisation (pissa, olora, corda, loftq, lora_ga) or the computation (mica).
    "init_lora_weights": (True, False, "gaussian", "orthogonal", "eva"),
}
"""The supported values of further fields."""


def check_adapter(folder: Path, key: str) -> None:
    """Refuse an adapter that does anything other than add low-rank products to linear layers.

    Every other field, including those of later PEFT versions, must be empty: None, false, "", [] or {}.

    Args:
        folder: holds adapter_config.json and adapter_model.safetensors.
        key: the configuration key that named the folder, for messages.

    Raises:
        InputError: the files are missing or damaged, a field has an unsupported value, or weights are not finite real
        numbers.
    """
    weights = folder / WEIGHTS_FILE
    if not weights.is_file():
        raise InputError(f"{key}: {weights} does not exist: name a finished run or a PEFT adapter folder")
    try:
        fields = json.loads((folder / CONFIG_FILE).read_text())
        with safe_open(weights, "pt") as file:
            names = list(file.keys())
            unfit = unfit_weight((name, file.get_tensor(name)) for name in names)
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(
            f"{key}: {folder} is damaged ({one_line(error, 120)}): name a finished run or a PEFT adapter folder"
        ) from None
    if not isinstance(fields, dict):
        raise InputError(f"{key}: {folder / CONFIG_FILE} is not an object: name a PEFT adapter folder")
    remedy = "merge it into its base with PEFT's merge_and_unload, and use model=path model.path=DIR"
    for field, value in fields.items():
        if field in _COMPUTED | _IRRELEVANT:
            continue
        if not (value in _VALUES[field] if field in _VALUES else not value):
            raise InputError(
                f"{key}: {folder} is not a plain LoRA adapter: its {field} is {one_line(Exception(value), 60)}, which "
                f"is not supported: {remedy}"
            )
    for name in names:
        if ".lora_A." not in name and ".lora_B." not in name:
            kind = "adapts embeddings" if ".lora_embedding_" in name else "holds whole weights"
            raise InputError(f"{key}: {folder} {kind} ({name}), which is not supported: {remedy}")
    if unfit is not None:
        raise InputError(f"{key}: {weights}: {unfit}: {OTHER_WEIGHTS}")
