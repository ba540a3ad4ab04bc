"""The settings of bitsandbytes for weights stored in 8 or 4 bits."""

from typing import Any

import torch

from alignrun.errors import InputError


def bits_and_bytes(bits: int, dtype: torch.dtype, setting: str) -> Any:
    """Settings for 8 bits, or for 4-bit NormalFloat that is multiplied in `dtype` (arXiv 2305.14314).

    Raises:
        InputError: bitsandbytes is not installed; the message begins with the setting that asked for it.
    """
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        raise InputError(f"{setting} needs bitsandbytes: pip install 'alignrun[qlora]'") from None
    from transformers import BitsAndBytesConfig

    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
