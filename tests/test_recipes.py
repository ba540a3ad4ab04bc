"""A model brings what it is trained on, unless the command line says otherwise."""

import re
from pathlib import Path

import pytest
import yaml

import alignrun
from alignrun import cli
from alignrun.config import Config
from alignrun.errors import InputError
from alignrun.launch.choices import choices
from alignrun.launch.compose import compose, compose_run, recipe_of
from alignrun.planning.automatic import GIB, USABLE, choose
from alignrun.planning.plan import make_plan
from alignrun.planning.show import on_gpu

ROOT = Path(__file__).parents[1]
LARGE = "model=llama-8b"


def test_a_large_model_is_trained_on_real_prompts_with_a_published_judge_and_real_lengths() -> None:
    config = compose_run([LARGE, "algo=nash_md"])
    assert (config.data.path, config.data.split) == ("HuggingFaceH4/ultrafeedback_binarized", "train_prefs")
    assert config.preference.path == "RLHFlow/pair-preference-model-LLaMA3-8B"
    assert (config.generation.max_new_tokens, config.generation.temperature) == (512, 1.0)
    assert config.train.steps >= 100
    assert 0 < config.evaluation.every < config.train.steps
    assert 0 < config.train.checkpoint_every < config.train.steps


def test_what_is_typed_takes_precedence() -> None:
    config = compose_run([LARGE, "data=bundled", "preference=sentiment", "generation=short", "train.steps=7"])
    assert (config.data.source, config.preference.name, config.generation.max_new_tokens) == (
        "bundled",
        "sentiment",
        16,
    )
    assert config.train.steps == 7
    assert config.evaluation.every == 100, "the rest of the recipe stays"


@pytest.mark.parametrize("without", [["recipe=null"], ["experiment=smoke"], ["recipe=qwen-7b"]])
def test_another_choice_replaces_it(without: list[str]) -> None:
    assert recipe_of([LARGE, *without]) is None
    assert recipe_of([LARGE]) == "llama-8b"
    assert recipe_of(["model=tiny"]) is recipe_of([]) is None


def test_without_it_the_settings_are_those_of_the_demo() -> None:
    assert compose_run([LARGE, "recipe=null"]) == compose([LARGE])


@pytest.mark.parametrize("recipe", choices("recipe"))
def test_the_command_line_shows_plans_and_names_it(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", f"model={recipe}"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["data"]["name"] == "ultrafeedback"
    assert isinstance(compose_run([f"model={recipe}", "algo=dpo"]), Config), "whatever is trained"
    assert cli.main([f"model={recipe}", "tracker=none", "model.device=cpu"]) == 2
    note = f"recipe: {recipe}, for this model; recipe=null leaves it out"
    assert note in capsys.readouterr().out
    with pytest.raises(InputError):
        alignrun.train(f"model={recipe}", "tracker=none", "model.device=cpu")
    assert note in capsys.readouterr().out


def test_a_recipe_that_does_not_exist_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([LARGE, "recipe=lama-8b"]) == 2
    assert "recipe=lama-8b does not exist: did you mean llama-8b?" in capsys.readouterr().err


def test_the_page_says_what_the_plan_predicts() -> None:
    page = (ROOT / "docs/recipes.md").read_text()
    rows = re.findall(r"^\| `alignrun ([^`]*)`(?:, [^|]*)? (?:\|.*)?\| ([\d.]+) GiB of (\d+) \|", page, re.MULTILINE)
    assert len(rows) == 8
    for command, said, size in rows:
        memory = float(size) * GIB
        chosen = choose(on_gpu(compose_run(command.split())), memory).config
        peak = make_plan(chosen).peak
        assert peak <= USABLE * memory, f"{command} does not fit"
        assert peak / GIB == pytest.approx(float(said), abs=0.051), command
        if command == "algo=nash_md model=llama-8b":
            assert chosen.model.checkpointing is (size == "48"), "only where it is needed"


def test_the_methods_that_an_experiment_is_compared_with_take_its_settings() -> None:
    """Those of the sweeps that the page and all experiments show, and those that an experiment names."""
    page = (ROOT / "docs/recipes.md").read_text("utf-8")
    sweeps = re.findall(r"alignrun -m (experiment=\w+) algo=([\w,]+)", page)
    sweeps.append(("experiment=egpo_qwen", "self_play,online_ipo,nash_md,nash_mp"))
    assert len(sweeps) >= 5
    for file in (ROOT / "conf/experiment").glob("*.yaml"):
        text = file.read_text("utf-8")
        sweeps += re.findall(r"alignrun -m (experiment=\w+) algo=([\w,]+)", text)
        sweeps += [(f"experiment={file.stem}", method) for method in re.findall(r"`algo=(\w+)`", text)]
    for experiment, methods in sweeps:
        for method in methods.split(","):
            assert compose([experiment, f"algo={method}"]).algo.name == method
