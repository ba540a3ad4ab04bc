"""The check of a GPU runs on a CPU with a tiny model, so that it still works when there is a GPU."""

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from generation.serving import VllmLike
from helpers import load_policy, random_batch

from alignrun.models.sources import load_model, load_tokenizer

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))


@pytest.fixture
def gpu_check(scripts: None, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return importlib.import_module("gpu_check")


def entries(file: Path, section: str) -> dict[str, dict[str, object]]:
    found = {one["name"]: one for one in json.loads(file.read_text("utf-8"))["sections"]}
    return {entry["name"]: entry for entry in found[section]["entries"]}


def test_every_section_but_the_suite_passes_on_a_cpu(
    gpu_check: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "found.json"
    sections = [name for name in gpu_check.SECTIONS if name != "suite"]
    code = gpu_check.main(["--cpu", "--json", str(file), "--only", *sections])
    shown = capsys.readouterr().out
    assert code == 0, shown
    found = json.loads(file.read_text("utf-8"))
    assert [one["name"] for one in found["sections"]] == sections
    assert {one["status"] for one in found["sections"]} <= {"passed", "skipped"}
    assert found["sections"][-1]["reason"] == "vLLM is not installed in this environment"
    decoded = entries(file, "decoding")["12 rows: largest difference of logits, graphs against none"]
    assert 0 < float(str(decoded["value"])) < 1e-5  # the buffers differ, so the sums do
    assert all(one["entries"] for one in found["sections"][:-1])
    assert "12 rows, graphs on: row-tokens/s" in shown


def test_a_section_that_fails_does_not_stop_the_others(
    gpu_check: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "found.json"

    def broken(*_: object) -> None:
        raise ValueError("no such kernel\nmore")

    waits = importlib.import_module("gpu_checks.waits")
    monkeypatch.setattr(importlib.import_module("gpu_checks.attention"), "run", broken)
    monkeypatch.setattr(waits, "run", lambda subject, section, left: section.at_most("waits", 0, 0))
    assert gpu_check.main(["--cpu", "--json", str(file), "--only", "attention", "waits"]) == 1
    found = json.loads(file.read_text("utf-8"))
    assert [one["status"] for one in found["sections"]] == ["failed", "passed"]
    assert found["sections"][0]["reason"] == "ValueError: no such kernel"
    assert not found["passed"]


def test_without_time_left_the_check_has_not_passed(gpu_check: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    assert gpu_check.main(["--cpu", "--minutes", "0", "--json", str(file), "--only", "waits"]) == 1
    assert json.loads(file.read_text("utf-8"))["sections"][0]["status"] == "no time left"


def test_kernels_are_told_apart_by_their_names(scripts: None) -> None:
    kind_of = importlib.import_module("gpu_checks.measure").kind_of
    kinds = {
        "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n": "product",
        "nvjet_tst_128x8_64x12_4x1_v_bz_TNT": "product",
        "void pytorch_flash::flash_fwd_splitkv_kernel<Flash_fwd_kernel_traits<128>>": "attention",
        "fmha_cutlassF_bf16_aligned_64x64_rf_sm80": "attention",
        "void at::native::reduce_kernel<512, 1, at::native::MeanOps>": "reduction",
        "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add>": "elementwise",
        "void at::native::unrolled_elementwise_kernel<direct_copy_kernel_cuda>": "copy",
        "Memcpy DtoD (Device -> Device)": "copy",
        "unheard_of": "other",
    }
    assert {name: kind_of(name) for name in kinds} == kinds


@pytest.fixture
def server() -> Iterator[VllmLike]:
    config = load_policy("model.dtype=float32")[1]
    torch.manual_seed(config.seed)
    own = VllmLike(load_model(config.model, load_tokenizer(config.model), torch.float32))
    yield own
    own.stop()


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_a_server_that_draws_otherwise_is_found(
    scripts: None, server: VllmLike, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    policy, config = load_policy("model.dtype=float32")
    report = importlib.import_module("gpu_checks.report")
    section = report.Section("server")
    if temperature != 1:

        def colder(path: str, body: dict[str, object]) -> None:
            if path == "/v1/completions":
                body["temperature"] = temperature

        server.interfere = colder
    prompts, _ = random_batch(policy, prompts=30)
    importlib.import_module("gpu_checks.server").compare(section, policy, config, server.url, prompts, 8)
    failed = {one.name: one.value for one in section.entries if one.passed is False}
    assert bool(failed) == (temperature != 1), failed
