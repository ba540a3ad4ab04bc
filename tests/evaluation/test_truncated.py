"""Truncated sampling: what cannot be measured is left out, and said."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import load_policy
from reports.checks import check
from reports.examples import write_run

from alignrun.config import EvaluationConfig
from alignrun.data.prompts import PromptSet
from alignrun.evaluation.opponent import OpponentEvaluator
from alignrun.evaluation.ranking import rank_settings
from alignrun.evaluation.results import RunResult
from alignrun.evaluation.truncation import truncation, truncation_note
from alignrun.evaluation.win_rate import WinRateEvaluator
from alignrun.generation.sampling import truncate
from alignrun.launch.build import make_encoding
from alignrun.models.policy import Policy
from alignrun.models.sources import load_tokenizer
from alignrun.preferences.base import Preference
from alignrun.reports.run import run_page
from alignrun.types import Evaluation, Example

REGULARISED = {"opponent/regularised_gain", "opponent/regularised_gain_low", "opponent/regularised_gain_high"}


@pytest.fixture(scope="module")
def against(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    """A policy whose frozen opponent is another one."""
    other, config = load_policy()
    folder = tmp_path_factory.mktemp("opponent")
    other.save_adapter(folder)
    tokenizer = load_tokenizer(config.model)
    return Policy.load(config.model, config.adapter, config.reference, tokenizer, config.seed, [], str(folder))


class Longer(Preference):
    """Prefers the longer completion."""

    def __call__(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> torch.Tensor:
        return torch.tensor([float(len(a) > len(b)) for a, b in zip(first, second, strict=True)])


def evaluated(policy: Policy, kind: type, config: EvaluationConfig, prompts: int = 8) -> Evaluation:
    encoding = make_encoding(load_policy()[1])
    asked = PromptSet.build([Example(f"Question {row}", f"row {row}") for row in range(prompts)], encoding)
    return kind(policy, Longer(), asked, config, 5, *((0.1,) if kind is OpponentEvaluator else ()), 0)()


@pytest.mark.parametrize("truncated", [{"top_p": 0.9}, {"top_k": 5}])
def test_a_truncated_evaluation_has_no_kl_and_says_so(against: Policy, truncated: dict[str, float]) -> None:
    whole = evaluated(against, WinRateEvaluator, EvaluationConfig())
    found = evaluated(against, WinRateEvaluator, replace(EvaluationConfig(), **truncated))
    assert whole.metrics.keys() - found.metrics.keys() == {"kl"}
    assert not found.metrics.keys() - whole.metrics.keys()
    ((name, value),) = truncated.items()
    assert dict(found.lines)["KL(policy ‖ reference)"] == f"left out: {name}={value:g} truncates what is sampled"
    json.dumps(found.metrics, allow_nan=False)


def test_a_truncated_response_has_no_regularised_gain_and_says_so(against: Policy) -> None:
    whole = evaluated(against, OpponentEvaluator, EvaluationConfig())
    found = evaluated(against, OpponentEvaluator, replace(EvaluationConfig(), top_p=0.9))
    assert whole.metrics.keys() - found.metrics.keys() == REGULARISED
    assert dict(found.lines)["regularised gain"] == "left out: top_p=0.9 truncates what is sampled"
    assert "opponent/gain" in found.metrics, "which is that of the policies as they were sampled"


@pytest.mark.parametrize("prompts", [1, 5])
def test_few_prompts_settle_nothing_and_one_has_no_interval_of_no_width(against: Policy, prompts: int) -> None:
    found = [evaluated(against, kind, EvaluationConfig(), prompts) for kind in (WinRateEvaluator, OpponentEvaluator)]
    for name, value in found[0].metrics.items() | found[1].metrics.items():
        if name.endswith("_low"):
            assert value < (found[0].metrics | found[1].metrics)[name.replace("_low", "_high")]
    lines = dict(found[0].lines) | dict(found[1].lines)
    for name in ("win rate against the reference", "gain against the opponent", "regularised gain"):
        assert "fewer than 8 prompts settle no difference" in lines[name]
    assert "lower bound" not in " ".join(lines.values())
    if prompts == 1:
        assert (found[0].metrics["win_rate_low"], found[0].metrics["win_rate_high"]) == (0, 1)
        assert not found[1].metrics.keys() & (REGULARISED - {"opponent/regularised_gain"})
        assert "no interval, 1 held-out prompt" in lines["regularised gain"]


def test_the_settings_are_named_as_they_are_typed() -> None:
    assert truncation(0, 1.0) == truncation_note(0, 1.0) == ""
    assert truncation(5, 0.9) == "top_k=5 and top_p=0.9"
    assert "top_k=5 and top_p=0.9" in truncation_note(5, 0.9)


def test_log_ratios_of_whole_distributions_are_no_kl_of_truncated_ones() -> None:
    """These two are one policy at top_p=0.9, and 32 of its tokens have a log ratio of three nats."""
    mu, pi = torch.tensor([0.45, 0.45, 0.1]), torch.tensor([0.495, 0.495, 0.01])
    assert torch.allclose(truncate(mu.log(), top_p=0.9), truncate(pi.log(), top_p=0.9))
    assert 32 * float((pi / mu).log()[0]) == pytest.approx(3.05, abs=0.005)


def test_a_sweep_without_a_kl_is_ranked_by_its_win_rates() -> None:
    runs = [RunResult(f"{n}", f"a={n}", 0, 0, {"win_rate": 0.5 + n / 10}, ()) for n in range(3)]
    result = rank_settings("sweep", runs, "command")
    assert [setting.setting for setting in result.settings] == ["a=2", "a=1", "a=0"]
    assert (result.matched_kl, result.ranked_by) == (None, "final win rate")


def test_the_page_of_a_run_says_that_kl_is_left_out(tmp_path: Path) -> None:
    rows = [{"step": step, "eval/win_rate": 0.6, "eval/prompts": 5, "eval/reference_length": 9.0} for step in (0, 5)]
    rows = [row | {"eval/win_rate_low": 0.55, "eval/win_rate_high": 0.7} for row in rows]
    run = write_run(tmp_path / "run", rows, summary={name.removeprefix("eval/"): v for name, v in rows[-1].items()})
    plain = check(run_page(run)).text
    assert "No KL" not in plain
    assert "(90% interval 55.0% to 70.0%; fewer than 8 prompts settle no difference)." in plain
    text = run.config_file.read_text().replace("confidence: 0.9", "confidence: 0.9, top_k: 0, top_p: 0.9")
    run.config_file.write_text(text)
    assert "No KL and no regularised game: completions were sampled with top_p=0.9" in check(run_page(run)).text
