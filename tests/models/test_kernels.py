"""Fused kernels are applied to one model on a GPU, and otherwise refused with what to do instead.

A stand-in for liger-kernel shows what happens around it; its kernels themselves run in test_gpu.py.
"""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from helpers import refused_smoke
from transformers import LlamaForCausalLM
from transformers.models.llama import modeling_llama

from alignrun.errors import InputError
from alignrun.models.kernels import fuse
from alignrun.models.tiny import byte_tokenizer, random_llama

CUDA = torch.device("cuda")


@pytest.fixture
def model() -> LlamaForCausalLM:
    sizes: dict[str, object] = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    return random_llama({**sizes, "num_attention_heads": 2, "num_key_value_heads": 2}, byte_tokenizer())


@pytest.fixture
def liger(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A package that replaces a model's norm and, as the real one does, a class of transformers."""
    given: dict[str, Any] = {}

    def apply(model: Any, **options: bool) -> None:
        given.update(options)
        model.model.norm.forward = lambda hidden: hidden
        modeling_llama.LlamaRMSNorm = object

    package, inner, patches = (
        ModuleType(name)
        for name in ("liger_kernel", "liger_kernel.transformers", "liger_kernel.transformers.monkey_patch")
    )
    inner._apply_liger_kernel_to_instance = apply  # type: ignore[attr-defined]
    patches.MODEL_TYPE_TO_APPLY_LIGER_FN = {"llama": apply}  # type: ignore[attr-defined]
    for module in (package, inner, patches):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return given


def test_one_model_is_changed_and_no_later_one(model: LlamaForCausalLM, liger: dict[str, Any]) -> None:
    usual = modeling_llama.LlamaRMSNorm
    fuse(model, CUDA)
    assert modeling_llama.LlamaRMSNorm is usual
    hidden = torch.randn(2, 16)
    assert torch.equal(model.model.norm(hidden), hidden)
    assert liger == {"rope": False, "cross_entropy": False, "fused_linear_cross_entropy": False}


def test_a_family_without_kernels_is_refused(model: LlamaForCausalLM, liger: dict[str, Any]) -> None:
    model.config.model_type = "other"
    with pytest.raises(InputError, match=r"liger has no kernels for other models: use model\.kernels=torch"):
        fuse(model, CUDA)


def test_a_package_that_is_missing_or_does_not_fit_is_named(
    model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.split(".")[0] == "liger_kernel"]:
        monkeypatch.delitem(sys.modules, name)
    if not any((Path(folder) / "liger_kernel").exists() for folder in sys.path if folder):
        with pytest.raises(InputError, match=r"needs liger-kernel: pip install 'alignrun\[liger\]'"):
            fuse(model, CUDA)
    (tmp_path / "liger_kernel" / "transformers").mkdir(parents=True)
    (tmp_path / "liger_kernel" / "__init__.py").touch()
    (tmp_path / "liger_kernel" / "transformers" / "__init__.py").write_text("raise ImportError('too new')")
    with pytest.raises(InputError, match=r"cannot be used with transformers .* \(.*too new\)"):
        fuse(model, CUDA)


def test_on_a_cpu_they_are_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    error = refused_smoke(capsys, tmp_path, "model.kernels=liger", "model.device=cpu")
    assert "model.kernels=liger needs a CUDA GPU and this run is on cpu: use model.kernels=torch" in error
