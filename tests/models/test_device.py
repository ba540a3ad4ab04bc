"""What `auto` stands for is decided in one place."""

import pytest
import torch

from alignrun.config import AdapterConfig, AdapterKind, ModelConfig, Precision
from alignrun.errors import InputError
from alignrun.models import device
from alignrun.models.device import Resolved, resolve

LORA, WHOLE = AdapterConfig(), AdapterConfig(name=AdapterKind.none)


def test_weights_that_are_trained_are_float32_unless_the_user_says_otherwise() -> None:
    model = ModelConfig(name="m", device="cpu")
    assert resolve(model, WHOLE) == Resolved(torch.device("cpu"), torch.float32)
    bfloat16 = ModelConfig(name="m", device="cpu", dtype=Precision.bfloat16)
    assert resolve(bfloat16, WHOLE).dtype is resolve(bfloat16, LORA).dtype is torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_auto_times_native_products_of_bfloat16(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """tests/models/test_precision.py tests the timing."""
    monkeypatch.setattr(device, "faster_dtype", lambda threads: dtype)
    for native, expected in ((True, dtype), (False, torch.float32)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda native=native: {"amx_bf16": native}, raising=False)
        assert resolve(ModelConfig(name="m", device="cpu"), LORA).dtype is expected


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_only_a_plan_may_be_for_a_gpu_that_is_not_here() -> None:
    model = ModelConfig(name="m", device="cuda")
    assert resolve(model, LORA, planning=True) == Resolved(torch.device("cuda"), torch.bfloat16)
    with pytest.raises(InputError, match="finds no CUDA device here"):
        resolve(model, LORA)
