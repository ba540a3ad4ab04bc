"""The user's own configuration files: `--config`, `--config-dir`, `hydra.searchpath`, `cp`, and a run as a start."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from forked import Popen

from alignrun import cli
from alignrun.launch import compose
from alignrun.launch.choices import choices
from alignrun.launch.own_files import split, using
from alignrun.run.trust import signature_text


def composed(*arguments: str) -> Any:
    """The configuration of a command line."""
    own, overrides = split(arguments)
    with using(own):
        other = {"eval": compose.compose_tournament, "eval-preference": compose.compose_preference_evaluation}
        return other[own.verb](overrides[1:]) if own.verb else compose.compose(overrides)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("alignrun: error: ")
    assert error.count("\n") == 1
    assert not Path("runs").exists()
    return error


@pytest.fixture(autouse=True)
def files() -> None:
    """A file, another that includes it, and a folder of choices."""
    Path("mine.yaml").write_text(
        "defaults:\n  - algo: ppo\n  - experiment: smoke\nalgo: {kl_tau: 0.5}\n"
        "train:\n  steps: &long 7\n  batch_size: *long\ntracker: {project: '${oc.env:PROJECT}'}\n"
    )
    Path("more.yaml").write_text("defaults: [mine, _self_]\ntrain: {steps: 9}\nseed: 4\n")
    Path("conf/algo").mkdir(parents=True)
    Path("conf/algo/mine.yaml").write_text("# My own Nash-MD.\ndefaults: [nash_md, _self_]\nkl_tau: 0.33\n")


def test_a_file_is_put_on_the_defaults_and_below_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its choices, also written as Hydra's primary configuration writes them, its values, and its interpolations."""
    monkeypatch.setenv("PROJECT", "games")
    config = composed("--config", "mine.yaml", "seed=3")
    assert (config.algo.name, config.algo.kl_tau, config.model.name) == ("ppo", 0.5, "tiny")
    assert (config.train.steps, config.train.batch_size, config.train.micro_batch_size) == (7, 7, 2)
    assert (config.tracker.project, config.seed) == ("games", 3)
    config = composed("--config=mine.yaml", "algo=nash_md", "train.steps=8", "tracker.project=x")
    assert (config.algo.name, config.algo.kl_tau, config.train.steps) == ("nash_md", 0.5, 8)
    config = composed("--config", "more.yaml")
    assert (config.algo.name, config.train.steps, config.train.batch_size, config.seed) == ("ppo", 9, 7, 4)
    Path("last.yaml").write_text("train: {steps: 11}\n")
    assert composed("--config", "more.yaml", "--config", "last.yaml").train.steps == 11
    assert composed("experiment=smoke", "--config", "last.yaml").train.steps == 11


def test_a_section_may_name_its_choice() -> None:
    Path("named.yaml").write_text(
        "algo: {name: dpo, kl_tau: 0.2}\npreference: {name: rlhflow_pair}\nmodel: {name: tiny}\n"
    )
    config = composed("--config", "named.yaml")
    assert (config.algo.name, config.algo.kl_tau, config.preference.name, config.model.name) == (
        "dpo", 0.2, "pair_model", "tiny",
    )  # fmt: skip
    assert config.preference.path.startswith("RLHFlow/")


def test_a_folder_of_choices(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--config-dir", "conf"], ["hydra.searchpath=[file://conf]"], ["hydra.searchpath=conf"]):
        config = composed(*arguments, "algo=mine", "experiment=smoke")
        assert (config.algo.name, config.algo.kl_tau) == ("nash_md", 0.33)
    Path("searched.yaml").write_text("hydra: {searchpath: [conf]}\ndefaults: [algo: mine]\nseed: 2\n")
    assert composed("--config", "searched.yaml").algo.kl_tau == 0.33
    assert cli.main(["ls", "algo", "--config-dir", "conf"]) == 0
    assert "algo=mine" in (out := capsys.readouterr().out)
    assert "My own Nash-MD." in out
    assert cli.main(["help", "algo.kl_tau", "--config-dir", "conf"]) == 0
    assert "mine" not in choices("algo"), "other commands do not see it"


def test_a_whole_configuration_is_data() -> None:
    """It is read back to the letter, `${…}` in it is text, and a choice on the command line replaces a section."""
    config = composed("algo=ppo", "model=path", "model.path=x", "data=inline", r"data.prompts=['a \${seed}']", "seed=5")
    Path("whole.yaml").write_text(compose.dump(config))
    assert composed("--config", "whole.yaml") == config
    Path("whole.yaml").write_text(compose.dump_explained(config))
    assert composed("--config", "whole.yaml") == config
    other = composed("--config", "whole.yaml", "algo=dpo", "train.steps=3")
    assert other.algo == compose.compose(["algo=dpo"]).algo
    assert (other.data.prompts, other.model, other.train.steps) == (["a ${seed}"], config.model, 3)


def run_of(overrides: list[str], signed: bool) -> Path:
    folder = Path("runs-of-mine/a")
    folder.mkdir(parents=True)
    config = compose.compose([*overrides, f"run.dir={folder}"])
    (folder / "config.yaml").write_text(compose.dump(config))
    (folder / "environment.json").write_text("{}")
    if signed:
        (folder / "signature.json").write_text(signature_text(compose.plain(config)))
    return folder


def test_a_file_chooses_what_is_evaluated_and_on_what(capsys: pytest.CaptureFixture[str]) -> None:
    Path("judged.yaml").write_text("defaults:\n  - preference: letters\n  - data: bundled_pairs\ntriples: 3\n")
    config = composed("eval-preference", "--config", "judged.yaml", "pairs=5")
    assert (config.preference.name, config.data.source) == ("function", "bundled_pairs")
    assert (config.triples, config.pairs) == (3, 5)
    Path("judged.yaml").write_text("triples: 3\n")
    assert "must be given" in refused(capsys, "eval-preference", "--config", "judged.yaml")


@pytest.mark.parametrize("signed", [True, False])
def test_a_run_is_a_start_of_another(signed: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """In a folder of its own; what it would execute is applied only if the user wrote it, or trusts who did."""
    overrides = ["experiment=smoke", "preference=function", "preference.function=evil:run", r"tracker.name='\${seed}'"]
    folder = run_of(overrides, signed)
    if signed:
        for name in (folder, folder / "config.yaml"):
            config = composed("--config", str(name), "seed=8")
            assert (config.preference.function, config.tracker.name) == ("evil:run", "${seed}")
            assert (config.run.dir, config.seed, config.model.name) == (None, 8, "tiny")
        assert "of which an experiment changes nothing" in refused(capsys, "--config", str(folder), "experiment=smoke")
        return
    error = refused(capsys, "config", "--config", str(folder))
    (folder / "environment.json").unlink()
    assert refused(capsys, "config", "--config", str(folder)) == error, "a folder is a run whatever it holds"
    assert "was not written by you on this machine and would import and run preference.function=evil:run" in error
    assert composed("--config", str(folder), "preference=letters").preference.function is not None
    assert cli.main(["config", "--trust", "--config", str(folder)]) == 0
    assert "function: evil:run" in capsys.readouterr().out
    assert cli.main(["--trust", "config"]) == 2
    assert "--trust is for commands that open a run" in capsys.readouterr().err
    assert cli.main(["--trust", "--config", str(folder), "train.steps=0"]) == 2
    assert "train.steps must be at least 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("trian: {steps: 3}", "x.yaml: unknown key trian: did you mean train?"),
        ("train: {stepps: 3}", "x.yaml: unknown key train.stepps: did you mean train.steps?"),
        ("train: {steps: many}", "give a whole number"),
        ("train: {steps: 0}", "x.yaml: train.steps must be at least 1, not 0"),
        ("algo: {clip: 1}", "x.yaml: algo.clip is not valid here: it belongs to algo="),
        ("algo: {name: nash}", "algo"),
        ("defaults: [algos: ppo]", "x.yaml: defaults: there is no group algos: did you mean algo?"),
        ("defaults: [algo: ppoo]", "algo=ppoo does not exist: did you mean ppo?"),
        ("defaults: [nothing]", "x.yaml: defaults: nothing is not a file next to it"),
        ("defaults: [x]", "x.yaml: defaults: x includes itself"),
        ("defaults: {algo: ppo}", "defaults is a list"),
        ("defaults: [algo: [dpo, ipo]]", "write algo: NAME, one of `alignrun ls algo`"),
        ("defaults: [override hydra/launcher: joblib]", "hydra/launcher is for the command line of a sweep"),
        ("hydra: {sweep: {dir: x}}", "hydra.sweep is for the command line of a sweep"),
        ("hydra: {searchpath: [nowhere]}", "nowhere is not a folder"),
        ("a: b: c", "x.yaml cannot be read"),
        ("- a", "x.yaml holds no keys"),
        ("seed: 1\nseed: 2", "x.yaml cannot be read"),
        ("tracker: {project: '${oc.env:NOT_SET}'}", "NOT_SET"),
        ("seed: !!python/object/apply:os.system [echo]", "x.yaml cannot be read"),
    ],
)
def test_a_wrong_file_ends_in_one_line(text: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("x.yaml").write_text(text)
    assert expected in refused(capsys, "--config", "x.yaml")


def test_a_key_that_an_experiment_sets_is_reported_with_its_file(capsys: pytest.CaptureFixture[str]) -> None:
    Path("conf/experiment").mkdir()
    Path("conf/experiment/own.yaml").write_text("# @package _global_\nalgo: {clip: 0.1}\n")
    error = refused(capsys, "--config-dir", "conf", "experiment=own", "algo=nash_md")
    assert "conf/experiment/own.yaml: algo.clip is not valid here" in error
    assert "alignrun cp" not in error
    Path("x.yaml").write_text("algo: {clip: 0.2}")
    assert "error: x.yaml: algo.clip" in refused(capsys, "--config", "mine.yaml", "--config", "x.yaml", "algo=nash_md")
    error = refused(capsys, "experiment=ultrafeedback_8b", "algo.kl_tau=0.1")
    assert "experiment=ultrafeedback_8b: algo.step_eta" in error
    assert "alignrun cp" not in error, "another value can be typed"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--config"], "--config needs a value: write --config FILE.yaml"),
        (["--config", "--trust"], "--config needs a value"),
        (["--config", "absent.yaml"], "--config absent.yaml: there is no such file"),
        (["--config", "panel.yaml"], "did you mean experiment=panel?"),
        (["--config", "conf"], "conf is not a run: it has no config.yaml"),
        (["--config-dir", "absent"], "absent is not a folder: name one with choices, such as DIR/algo/mine.yaml"),
        (["--config-dir", "conf/algo"], "has no choices: put them into folders called adapter, algo"),
        (["hydra.searchpath=[pkg://absent.conf]"], "pkg://absent.conf is not an installed package"),
        (["resume", "x", "--config", "mine.yaml"], "alignrun resume does not take --config"),
        (["--confg", "mine.yaml"], "--confg is not an option: did you mean --config?"),
        (["--config", "mine.yaml", "algo=mine"], "algo=mine does not exist"),
        (["cp", "experiment/panl", "."], "cp: experiment=panl does not exist: did you mean panel?"),
        (["cp", "experiments/panel", "."], "cp: there is no group experiments: did you mean experiment?"),
        (["cp", "algo/dpo", "conf/dpo.yaml"], "write conf/algo/dpo.yaml"),
        (["cp", "algo/dpo", "conf/algo/dpo.yaml"], "algo=dpo exists: choose another name than dpo.yaml"),
        (["cp", "algo/dpo", "conf/algo/mine.yaml"], "conf/algo/mine.yaml exists, and is not overwritten"),
        (["cp", "experiment/panel", "file"], "write file/ or file.yaml"),
        (["cp", "experiment/panel"], "required: DEST"),
    ],
)  # fmt: skip
def test_a_wrong_option_ends_in_one_line(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert expected in refused(capsys, *arguments)


def test_a_choice_may_not_hide_a_shipped_one(capsys: pytest.CaptureFixture[str]) -> None:
    Path("conf/algo/dpo.yaml").write_text("defaults: [schema/dpo@_here_, _self_]\nkl_tau: 9\n")
    assert "conf/algo/dpo.yaml has the name of a shipped choice, algo=dpo: rename it" in refused(
        capsys, "--config-dir", "conf", "algo=dpo"
    )
    Path("conf/algo/dpo.yaml").unlink()
    Path("conf/algo/bare.yaml").write_text("kl_tau: 0.1\n")
    assert "must begin with `defaults: [NAME, _self_]`" in refused(capsys, "--config-dir", "conf", "algo=bare")


def test_a_copy_can_be_edited_and_used(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["cp", "experiment/panel", "."]) == 0
    assert "panel.yaml: edit it, then alignrun --config panel.yaml" in capsys.readouterr().out
    assert composed("--config", "panel.yaml") == compose.compose(["experiment=panel"])
    assert "# alignrun --config panel.yaml\n" in Path("panel.yaml").read_text()
    for destination, name in (("conf", "my_dpo"), ("own/algo/other.yaml", "other")):
        assert cli.main(["cp", "algo/dpo", destination]) == 0
        folder = destination.partition("/")[0]
        assert f"alignrun --config-dir {folder} algo={name}" in capsys.readouterr().out
        assert composed("--config-dir", folder, f"algo={name}").algo == compose.compose(["algo=dpo"]).algo


def test_a_tournament_has_files_too(capsys: pytest.CaptureFixture[str]) -> None:
    Path("t.yaml").write_text("defaults: [preference: letters]\nruns: [a, b]\nprompts: 5\n")
    config = composed("eval", "--config", "t.yaml", "seed=2")
    assert (config.runs, config.prompts, config.preference.name, config.seed) == (["a", "b"], 5, "function", 2)
    Path("t.yaml").write_text("preference: {temperature: 2}\nruns: [a]\n")
    assert "t.yaml: preference has no choice: name one under `defaults:`" in refused(
        capsys, "eval", "--config", "t.yaml"
    )
    Path("t.yaml").write_text("runs: [a]\ntrain: {steps: 3}\n")
    assert "train" in refused(capsys, "eval", "--config", "t.yaml")


@pytest.mark.slow
def test_a_sweep_takes_them_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("alignrun.sweeps.sweep.subprocess.Popen", Popen)
    Path("mine.yaml").write_text("defaults: [experiment: smoke, algo: mine]\ntrain: {steps: 1}\n")
    sweep = tmp_path / "sweep"
    arguments = ["-m", "--config", "mine.yaml", "--config-dir", "conf", "seed=5", f"hydra.sweep.dir={sweep}"]
    assert cli.main(arguments) == 0
    (row,) = json.loads((sweep / "sweep.json").read_text())
    assert row["overrides"] == "seed=5"
    config = compose.load(sweep / "0" / "config.yaml")
    assert (config.seed, config.algo.kl_tau, config.train.steps, config.model.name) == (5, 0.33, 1, "tiny")
    typed = yaml.safe_load((sweep / "0" / "overrides.yaml").read_text())
    named = [f"--config={Path('mine.yaml').absolute()}", f"--config-dir={Path('conf').absolute()}"]
    assert typed == [*named, "seed=5", f"run.dir='{sweep / '0'}'"]
    capsys.readouterr()
    Path("mine.yaml").write_text("defaults: [experiment: smoke, algo: mine]\ntrain: {steps: 2}\n")
    assert cli.main(arguments) == 2
    assert "holds another sweep, with --config=" in capsys.readouterr().err
