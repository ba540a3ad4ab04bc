"""Which precision `auto` is on a CPU: timed once, and remembered for every process."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import MappingProxyType

import pytest
import torch

from alignrun.config import AdapterConfig, ModelConfig
from alignrun.models import precision
from alignrun.models.device import resolve

CHOICES = [torch.float32, torch.bfloat16]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("ALIGNRUN_CACHE", str(tmp_path / "cache"))
    capabilities = MappingProxyType({**torch.cpu.get_capabilities(), "avx512_bf16": True})  # torch's is read-only, too
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    precision.faster_dtype.cache_clear()
    yield tmp_path / "cache"
    precision.faster_dtype.cache_clear()


def slow(dtype: torch.dtype) -> Callable[..., torch.Tensor]:
    """A product that takes three times as long in one precision, for a clock of its own."""

    def linear(inputs: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        clock[0] += 3.0 if inputs.dtype is dtype else 1.0
        return inputs

    return linear


clock = [0.0]


@pytest.mark.parametrize("slower", CHOICES)
def test_auto_is_what_multiplies_faster(slower: torch.dtype, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision.F, "linear", slow(slower))
    monkeypatch.setattr(precision.time, "perf_counter", lambda: clock[0])
    (faster,) = (dtype for dtype in CHOICES if dtype is not slower)
    assert resolve(ModelConfig(name="m", device="cpu"), AdapterConfig()).dtype is faster
    (file,) = (cache / "precision").iterdir()
    found = json.loads(file.read_text())
    assert found["dtype"] == precision.dtype_name(faster)
    assert (found["float32 ms"], found["bfloat16 ms"]) == ((3000, 1000) if slower is torch.float32 else (1000, 3000))


@pytest.mark.parametrize("written", CHOICES)
def test_what_another_process_wrote_first_decides(
    written: torch.dtype, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may even have written between our timing and our writing."""
    measured = precision._measured

    def overtaken() -> dict[str, object]:
        (other,) = (dtype for dtype in CHOICES if dtype is not written)
        monkeypatch.setattr(precision, "_measured", lambda: measured() | {"dtype": precision.dtype_name(written)})
        assert precision.faster_dtype.__wrapped__(1) is written
        return measured() | {"dtype": precision.dtype_name(other)}

    monkeypatch.setattr(precision, "_measured", overtaken)
    assert precision.faster_dtype(1) is written
    assert len(list((cache / "precision").iterdir())) == 1  # and no file is left half-written
    monkeypatch.delattr(precision, "_measured")  # later ones do not time
    assert precision.faster_dtype.__wrapped__(1) is written


def test_another_number_of_threads_is_timed_by_itself(cache: Path) -> None:
    precision.faster_dtype(1)
    precision.faster_dtype(2)
    assert len(list((cache / "precision").iterdir())) == 2


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"dtype": "float16"}', '{"dtype": ["float32"]}'])
def test_a_damaged_file_is_written_again(content: str, cache: Path) -> None:
    precision.faster_dtype(1)
    (file,) = (cache / "precision").iterdir()
    file.write_text(content)
    assert precision.faster_dtype.__wrapped__(1) in CHOICES
    assert json.loads(file.read_text())["threads"] == 1


def test_without_a_cache_the_native_products_decide(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.write_text("a file")
    monkeypatch.setattr(precision, "_measured", lambda: {"dtype": "float32"})
    assert precision.faster_dtype(1) is torch.bfloat16


def test_timing_takes_no_random_numbers(cache: Path) -> None:
    before = torch.get_rng_state()
    precision.faster_dtype(1)
    assert torch.equal(before, torch.get_rng_state())
