"""Resuming is a transaction, on what the run began with; what fails on the way loses nothing."""

import copy
import json
import math
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from alignrun import cli
from alignrun.config import Config, Precision
from alignrun.config.paths import anchored
from alignrun.data.loading import Loaded
from alignrun.data.prompts import PromptSet
from alignrun.data.store import Examples
from alignrun.errors import InputError
from alignrun.evaluation.win_rate import WinRateEvaluator
from alignrun.launch import pins, train
from alignrun.launch.compose import changed, compose, dump, load
from alignrun.launch.pins import Pins, folder_digest, take_pins
from alignrun.models import device
from alignrun.models.cards import AdapterCard, write_card
from alignrun.models.policy import Policy
from alignrun.preferences import examples
from alignrun.reports.record import read
from alignrun.run.directory import RunDirectory
from alignrun.training import resumption
from alignrun.training.checkpoint import Checkpoint, list_checkpoints, save_checkpoint
from alignrun.training.trainer import Trainer
from alignrun.types import Example

TINY = (
    "experiment=smoke",
    "train.steps=4",
    "train.batch_size=2",
    "train.micro_batch_size=null",
    "train.checkpoint_every=1",
    "train.keep_checkpoints=9",
    "generation.max_new_tokens=2",
    "data=jsonl",
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps on a file next to it."""
    folder = tmp_path_factory.mktemp("finished")
    rows = [{"prompt": f"Say {row}"} for row in range(12)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "heldout.jsonl").write_text('{"prompt": "Say hello"}\n{"prompt": "Say no"}\n')
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        data = ["data.path=train.jsonl", "data.eval_path=./heldout.jsonl"]
        assert cli.main([*TINY, *data, "run.dir=run"]) == 0
    return folder / "run"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of it, with its files."""
    shutil.copytree(finished, tmp_path / "run")
    for name in ("train.jsonl", "heldout.jsonl"):
        shutil.copy(finished.parent / name, tmp_path / name)
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace(str(finished.parent), str(tmp_path)))
    return tmp_path / "run"


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def rows_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def adapter_is_of(run: Path, step: int) -> bool:
    weights = load_file(run / f"checkpoints/step-{step}/weights.safetensors")
    adapter = load_file(run / "adapter/adapter_model.safetensors")
    plain = {f"base_model.model.{name.replace('.policy.', '.')}": value for name, value in weights.items()}
    return adapter.keys() == plain.keys() and all(torch.equal(adapter[name], plain[name]) for name in plain)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 2) -> str:
    capsys.readouterr()
    assert cli.main(list(arguments)) == code
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def gone(*_: Any) -> Any:
    raise ConnectionError("the judge is gone")


class Judge:
    """The preference of these runs, as it answers now."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.answer: Callable[..., Any] = examples.letters
        patch.setattr(examples, "letters", lambda *texts: self.answer(*texts))


def stop_after(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """SIGTERM while that step is made."""
    original = Trainer.train_step

    def stopped(self: Trainer, number: int) -> dict[str, float]:
        metrics = original(self, number)
        if number + 1 == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return metrics

    monkeypatch.setattr(Trainer, "train_step", stopped)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["adapter.rank=4", "train.steps=5"], "does not fit this model"),
        (["train.steps=2"], "train.steps=2 is less than step 4"),
        (["--step", "3", "train.steps=2"], "train.steps=2 is less than step 3"),
        (["optim.learning_rate=1"], "has finished its 4 steps, and nothing is left to do with optim.learning_rate=1"),
        (["train.steps=6", "seed=5"], "the base of the run has changed"),
        (["train.steps=6", "resume.changed=maybe"], "resume.changed=maybe: write accept or refuse"),
        (["train.steps=${algo.nothing}"], "Interpolation key 'algo.nothing' not found"),
    ],
)
def test_a_refused_resume_changes_nothing(
    run: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(run)
    assert said in refused(capsys, "resume", str(run), *arguments)
    assert contents(run) == before


def test_a_first_step_that_fails_changes_nothing(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where an evaluation that was to be made up for has succeeded before it."""
    before = contents(run)
    with monkeypatch.context() as patch:
        patch.setattr(examples, "letters", gone)
        error = refused(capsys, "resume", str(run), "--step", "2", "optim.learning_rate=0.1", code=1)
    assert "the judge is gone" in error
    assert contents(run) == before
    judge, original = Judge(monkeypatch), Trainer.train_step

    def fails(self: Trainer, step: int) -> dict[str, float]:
        judge.answer = gone
        return original(self, step)

    monkeypatch.setattr(Trainer, "train_step", fails)
    refused(capsys, "resume", str(run), "--step", "2", "evaluation.every=1", code=1)
    assert contents(run) == before


def test_with_no_step_left_the_last_evaluation_decides(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before, rows = contents(run), rows_of(run)
    arguments = ("resume", str(run), "--step", "2", "train.steps=2", "evaluation.samples_per_prompt=2")
    with monkeypatch.context() as patch:
        patch.setattr(examples, "letters", gone)
        refused(capsys, *arguments, code=1)
    assert contents(run) == before
    assert cli.main(list(arguments)) == 0
    assert [path.name for path in sorted((run / "checkpoints").iterdir())] == ["step-1", "step-2"]
    assert rows_of(run)[:2] == rows[:2]
    assert [row["step"] for row in rows_of(run)] == [1, 2, 2]
    assert json.loads((run / "summary.json").read_text())["step"] == 2
    assert adapter_is_of(run, 2)


def folder_of_a_run(path: Path) -> RunDirectory:
    """Checkpoints, rows and outputs of four steps, without a model."""
    run = RunDirectory(path)
    for step in (1, 2, 3, 4):
        save_checkpoint(run.checkpoints, step, {"weights": {"w": torch.tensor(float(step))}}, {}, keep=9)
    for folder in (run.adapter, run.path / "average"):
        folder.mkdir()
        (folder / "adapter_model.safetensors").write_text("step 4")
    for file in (run.config_file, run.overrides_file, run.pins_file, run.summary_file):
        file.write_text(f"old {file.name}")
    run.metrics_file.write_text("".join(f'{{"step": {step}}}\n' for step in (1, 2, 3, 4)))
    return run


CHANGE = resumption.Resumption(2, True, "new config", "new overrides", "new pins", ("adapter", "average"))


def test_a_kill_at_any_moment_leaves_the_old_run_or_is_made_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted_run = folder_of_a_run(tmp_path / "wanted")
    old = contents(wanted_run.path)
    resumption.commit(wanted_run, CHANGE)
    wanted = contents(wanted_run.path)
    assert sorted(wanted) == sorted(
        [name for name in old if "step-1/" in name or "step-2/" in name]
        + ["config.yaml", "metrics.jsonl", "overrides.yaml", "pins.json"]
    )
    assert wanted["metrics.jsonl"] == b'{"step": 1}\n{"step": 2}\n'
    killed = 0
    for moment in range(100):
        run = folder_of_a_run(tmp_path / f"killed-{moment}")
        with monkeypatch.context() as patch:
            calls = count_down(patch, moment)
            try:
                resumption.commit(run, CHANGE)
            except KeyboardInterrupt:
                killed += 1
        if calls[0] >= 0:
            break
        begun = (run.path / resumption.FILE).is_file() or contents(run.path) == wanted
        resumption.settle(run)
        left = {
            name: text for name, text in contents(run.path).items() if ".tmp-" not in name and "partial" not in name
        }
        assert left == (wanted if begun else old), moment
    assert killed > 10


def count_down(patch: pytest.MonkeyPatch, moment: int) -> list[int]:
    """Die at the call of that number to anything that renames or deletes."""
    left = [moment]

    def dying(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            return original(*arguments, **named)

        return call

    for name in ("rename", "replace", "unlink"):
        patch.setattr(Path, name, dying(getattr(Path, name)))
    patch.setattr(shutil, "rmtree", dying(shutil.rmtree))
    return left


def test_a_change_names_no_folder_elsewhere(tmp_path: Path) -> None:
    run = folder_of_a_run(tmp_path / "run")
    (tmp_path / "mine").mkdir()
    for name in ("../mine", str(tmp_path / "mine"), ".."):
        with pytest.raises(InputError, match=r"resuming\.json .* is not a folder of a run"):
            resumption.commit(run, replace(CHANGE, outputs=(name,)))
    assert (tmp_path / "mine").is_dir()
    assert run.adapter.is_dir()


def test_other_data_are_refused_or_accepted_and_noted(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run.parent / "train.jsonl").write_text("".join(f'{{"prompt": "Count {row}"}}\n' for row in range(12)))
    before = contents(run)
    error = refused(capsys, "resume", str(run), "train.steps=6")
    assert "the training data of the run has changed" in error
    assert "resume.changed=accept" in error
    assert contents(run) == before
    assert cli.main(["resume", str(run), "train.steps=5", "resume.changed=accept"]) == 0
    assert {"step": 4, "changed": ["training data from step 4"]} in rows_of(run)
    assert json.loads((run / "summary.json").read_text())["changed"] == ["training data from step 4"]
    assert "training data from step 4" in (run / "report.html").read_text()
    assert "resume.changed" not in (run / "overrides.yaml").read_text()
    assert cli.main(["resume", str(run), "train.steps=6"]) == 0  # from here on the pins record the new data
    assert sum("changed" in row for row in rows_of(run)) == 1
    assert json.loads((run / "summary.json").read_text())["changed"] == ["training data from step 4"]


def test_a_reference_that_was_trained_further_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = [f"data.path={tmp_path / 'train.jsonl'}", f"data.eval_path={tmp_path / 'heldout.jsonl'}"]
    on_it = tmp_path / "on_it"
    reference = ["reference=adapter", f"reference.path={run}", "train.steps=1"]
    assert cli.main([*TINY, *data, *reference, f"run.dir={on_it}"]) == 0
    file = run / "adapter" / "adapter_model.safetensors"
    save_file({name: value + 0.1 for name, value in load_file(file).items()}, file)
    before = contents(on_it)
    assert "the reference of the run has changed" in refused(capsys, "resume", str(on_it), "train.steps=2")
    assert contents(on_it) == before


def test_a_failing_evaluation_saves_the_steps_before_it(
    run: Path, finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A judge that is gone at one evaluation, then one that answers nonsense at the last: both are made up for."""
    judge, measure = Judge(monkeypatch), WinRateEvaluator.__call__
    letters = judge.answer

    def measured(self: WinRateEvaluator) -> Any:
        judge.answer = answers.pop(0)
        try:
            return measure(self)
        finally:
            judge.answer = letters

    monkeypatch.setattr(WinRateEvaluator, "__call__", measured)
    answers = [gone]
    refused(capsys, "resume", str(run), "--step", "1", "evaluation.every=3", "train.checkpoint_every=0", code=1)
    assert [step for step, _ in list_checkpoints(run / "checkpoints")] == [1, 3]
    assert "Unfinished" in (run / "report.html").read_text()
    answers = [letters, lambda *_: [math.nan] * 2]
    refused(capsys, "resume", str(run), code=1)
    assert [row["step"] for row in rows_of(run)] == [1, 2, 3, 3, 4]
    answers = [letters]
    assert cli.main(["resume", str(run)]) == 0
    assert [row["step"] for row in rows_of(run)] == [1, 2, 3, 3, 4, 4]
    losses = [[row["loss"] for row in rows_of(path) if "loss" in row] for path in (run, finished)]
    assert losses[0] == losses[1]


def test_too_far_from_the_reference_at_the_last_step_leaves_the_evaluation_to_a_resume(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(capsys, "resume", str(run), "train.steps=5", "train.max_kl=1e-9", "optim.learning_rate=1", code=1)
    assert "above train.max_kl" in said
    assert "Unfinished" in (run / "report.html").read_text()
    assert [row["step"] for row in rows_of(run)] == [1, 2, 3, 4, 4, 5]
    assert cli.main(["resume", str(run)]) == 0
    assert [row["step"] for row in rows_of(run)] == [1, 2, 3, 4, 4, 5, 5]
    assert json.loads((run / "summary.json").read_text())["step"] == 5


def test_nothing_plays_the_weights_of_abandoned_steps(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run stands for its newest checkpoint: adapter/ holds that one or is gone."""
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        assert cli.main(["resume", str(run), "--step", "2", "optim.learning_rate=0.5"]) == 143
    assert [step for step, _ in list_checkpoints(run / "checkpoints")] == [1, 2, 3]
    assert not (run / "adapter").exists()
    said = refused(capsys, "exploit", str(run))
    assert f"has not finished: `alignrun resume {run}` first, or exploit its newest checkpoint" in said
    with monkeypatch.context() as patch:
        trained: list[Config] = []
        patch.setattr(train, "train", lambda config, *_: trained.append(config) or 0)
        assert cli.main(["export", str(run)]) == 0
        assert cli.main(["exploit", str(run), f"algo.opponent={run / 'export'}"]) == 0
    assert trained[0].algo.opponent == str(run / "export")
    assert "reference.path" in refused(capsys, "experiment=smoke", "reference=adapter", f"reference.path={run}")
    assert cli.main(["resume", str(run)]) == 0
    assert adapter_is_of(run, 4)


def test_a_best_response_has_no_limit_of_the_run_that_it_beats(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load(run / "config.yaml")
    limited = replace(config, train=replace(config.train, max_kl=0.1))
    (run / "config.yaml").write_text(dump(limited))
    trained = []
    monkeypatch.setattr(train, "train", lambda config, *_: trained.append(config) or 0)
    assert cli.main(["exploit", str(run)]) == 0
    assert cli.main(["exploit", str(run), "train.max_kl=0.5"]) == 0
    assert [config.train.max_kl for config in trained] == [None, 0.5]


def test_the_last_step_has_its_row_and_another_batch_size_takes_the_next_examples(run: Path) -> None:
    """12 examples, in batches of 2 and from step 3 on of 3, a row for every second step."""
    seen = Seen()
    with pytest.MonkeyPatch.context() as patch:
        seen.watch(patch)
        arguments = ["--step", "3", "train.steps=5", "train.batch_size=3", "train.log_every=2"]
        assert cli.main(["resume", str(run), *arguments]) == 0
        changed = seen.texts
        seen.texts = []
        assert cli.main(["resume", str(run), "--step", "1", "train.batch_size=2", "train.steps=6"]) == 0
    assert changed == seen.texts[4:10]
    rows = [row for row in rows_of(run) if "loss" in row]
    assert [row["step"] for row in rows] == [1, 2, 4, 6]
    assert [row["epoch"] for row in rows] == pytest.approx([2 / 12, 4 / 12, 8 / 12, 1])


class Seen:
    """The prompts that a run trains on, in order."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def watch(self, patch: pytest.MonkeyPatch) -> None:
        original = PromptSet.batch_at

        def batch_at(prompts: PromptSet, *arguments: Any) -> Any:
            batch = original(prompts, *arguments)
            self.texts += batch.texts
            return batch

        patch.setattr(PromptSet, "batch_at", batch_at)


def test_what_is_stored_is_read_as_text(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A reference to another value is followed once, on the command line."""
    (run / "overrides.yaml").write_text("- data.prompts=[${oops]\n")
    arguments = ["optim.learning_rate=${algo.kl_tau}", "train.steps=5"]
    assert cli.main(["resume", str(run), *arguments]) == 0
    assert load(run / "config.yaml").optim.learning_rate == load(run / "config.yaml").algo.kl_tau
    assert yaml.safe_load((run / "overrides.yaml").read_text()) == ["data.prompts=[${oops]", *arguments]
    assert read(RunDirectory(run)).overrides[-2:] == tuple(arguments)
    assert "learning_rate: 0." in (run / "config.yaml").read_text()


def test_a_run_continues_from_another_folder(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its relative paths were those of the folder that it was started in; a run without pins gets them."""
    (run / "pins.json").unlink()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "train.jsonl").write_text('{"prompt": "another file of that name"}\n')
    monkeypatch.chdir(tmp_path / "elsewhere")
    config = load(run / "config.yaml")
    assert config.data.path == str(tmp_path / "train.jsonl")
    assert cli.main(["resume", str(run), "--step", "3"]) == 0
    assert {"base", "tokenizer", "training data", "held-out data"} == json.loads((run / "pins.json").read_text())[
        "parts"
    ].keys()


def test_local_paths_are_stored_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("base", "judge", "cyc", "home"):
        (tmp_path / name).mkdir()
    (tmp_path / "home" / "rows.jsonl").touch()
    (tmp_path / "game.json").write_text("{}")
    judged = ["preference=learned", "preference.path=judge", "data=hub", "data.path=org/set"]
    config = anchored(compose(["model=path", "model.path=base", "generation.server_adapter_folder=new", *judged]))
    assert config.model.path == str(tmp_path / "base")
    assert config.preference.path == str(tmp_path / "judge")
    assert config.generation.server_adapter_folder == str(tmp_path / "new")
    assert config.data.path == "org/set", "a name of the hub"
    config = anchored(compose(["model=path", "model.path=./absent"]))
    assert config.model.path == "./absent", "which is refused as it was typed"
    config = anchored(compose(["model=path", "model.path=org/name", "data=jsonl", "data.path='~/rows.jsonl'"]))
    assert config.model.path == "org/name"
    assert config.data.path == str(tmp_path / "home" / "rows.jsonl")
    config = anchored(compose(["experiment=game", "preference.game=game.json"]))
    assert config.preference.game == config.model.architecture["game"] == str(tmp_path / "game.json")
    assert anchored(compose(["experiment=game", "preference.game=cyc"])).preference.game == "cyc", "no folder"
    response = ["algo=best_response", "algo.opponent=judge", "preference=judge", "preference.cache=answers"]
    config = anchored(compose([*response, "preference.url=http://localhost/v1", "preference.model=judge", "run.dir=r"]))
    assert config.algo.opponent == str(tmp_path / "judge")
    assert config.preference.cache == str(tmp_path / "answers")
    assert config.run.dir == str(tmp_path / "r")


@pytest.mark.parametrize("text", ["${oops", "${x}", r"\${x}", r"a\\${x}", "${", "1e5", "yes", "2024-01-01"])
def test_any_text_survives_being_stored(text: str, tmp_path: Path) -> None:
    config = compose(["experiment=smoke"])
    config = replace(config, data=replace(config.data, source="inline", prompts=[text]))
    file = tmp_path / "config.yaml"
    file.write_text(dump(config))
    assert load(file) == config
    assert load(file, ["seed=3"]).data.prompts == [text]


def test_an_escaped_reference_survives_being_stored_and_resumed(tmp_path: Path) -> None:
    config = compose(["experiment=smoke", r"model.system_prompt='Say \${x}'"])
    file = tmp_path / "config.yaml"
    file.write_text(dump(config))
    for overrides in ([], ["train.steps=6"]):
        assert load(file, overrides).model.system_prompt == "Say ${x}"
        assert changed(load(file), overrides).model.system_prompt == "Say ${x}"


def test_a_digest_is_of_weights_and_scaling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of files that are read in samples; what does not change the function does not count."""
    monkeypatch.setattr(pins, "SAMPLE_BYTES", 16)
    file, settings = tmp_path / "adapter_model.safetensors", tmp_path / "adapter_config.json"
    assert folder_digest(tmp_path) == ""
    save_file({"w": torch.arange(4096.0)}, file)
    settings.write_text(json.dumps({"lora_alpha": 16, "target_modules": ["a", "b"], "base_model_name_or_path": "x"}))
    first = folder_digest(tmp_path)
    settings.write_text(json.dumps({"lora_alpha": 16, "target_modules": ["b", "a"], "base_model_name_or_path": "y"}))
    assert folder_digest(tmp_path) == first
    settings.write_text(json.dumps({"lora_alpha": 32}))
    assert folder_digest(tmp_path) != first
    settings.write_text(json.dumps({"lora_alpha": 16}))
    assert folder_digest(tmp_path) == first
    save_file({"w": torch.arange(4096.0) + 1}, file)
    assert folder_digest(tmp_path) != first


def test_every_part_is_pinned(policy: Policy, tmp_path: Path) -> None:
    """Opponent, feedback model, and a base that is held in another form than its files: a change of each is seen."""
    for name in ("base", "opponent", "judge"):
        (tmp_path / name).mkdir()
        save_file({"w": torch.zeros(3)}, tmp_path / name / "model.safetensors")
    card = AdapterCard("preference", base="", template="{prompt}{first}{second}")
    write_card(tmp_path / "judge", card)
    config = compose(
        [
            *("algo=best_response", f"algo.opponent={tmp_path / 'opponent'}"),
            *("preference=learned", f"preference.path={tmp_path / 'judge'}"),
            *("model=path", f"model.path={tmp_path / 'base'}"),
        ]
    )
    quantised = SimpleNamespace(fingerprint="", model=policy.model, tokenizer=policy.tokenizer)
    judge: Any = SimpleNamespace(reads_columns=False)

    def now(backbone: Any = quantised) -> Pins:
        return take_pins(
            config, Loaded(Examples([Example("a", "x")]), Examples([Example("b", "y")]), 0), backbone, judge
        )

    before = now()
    assert before.differing(now(policy.backbone)) == ["base"]
    for name, part in (("base", "base"), ("opponent", "opponent"), ("judge", "feedback model")):
        save_file({"w": torch.ones(3)}, tmp_path / name / "model.safetensors")
        assert before.differing(now()) == [part]
        save_file({"w": torch.zeros(3)}, tmp_path / name / "model.safetensors")
    write_card(tmp_path / "judge", replace(card, template="{prompt} {first}{second}"))
    assert before.differing(now()) == ["feedback model"]
    write_card(tmp_path / "judge", card)
    quantised.tokenizer = copy.deepcopy(policy.tokenizer)
    assert before.differing(now()) == []
    quantised.tokenizer(["a", "longer"], padding=True)  # how batches are padded does not count
    assert before.differing(now()) == []
    quantised.tokenizer.chat_template = "{{ messages[0]['content'] }}"
    assert before.differing(now()) == ["tokenizer"]


@pytest.mark.parametrize("name", ["matrix", "styles"])
def test_the_file_of_a_game_is_pinned(policy: Policy, tmp_path: Path, name: str) -> None:
    file = tmp_path / "game.json"
    config = compose(["model=tiny", f"preference={name}", f"preference.game={file}"])

    def with_edge(p: float) -> Pins:
        table = [[0.5, p, 0.3], [1 - p, 0.5, 0.8], [0.7, 0.2, 0.5]]
        file.write_text(json.dumps({"preferences": table, "reference": [0.5, 0.3, 0.2], "actions": list("abc")}))
        rows = Loaded(Examples([Example("a", "x")]), Examples([Example("b", "y")]), 0)
        judge: Any = SimpleNamespace(reads_columns=False)
        return take_pins(config, rows, policy.backbone, judge)

    assert with_edge(0.9).differing(with_edge(0.8)) == ["game"]


def test_what_cannot_be_known_is_no_difference() -> None:
    before = Pins({"base": "", "training data": "a", "reference": "r"})
    assert before.differing(Pins({"base": "b", "training data": "a", "reference": "r"})) == []
    assert before.differing(Pins({"base": "b", "training data": "c", "opponent": "o"})) == [
        "training data",
        "reference",
        "opponent",
    ]


def test_an_evaluation_that_is_not_finite_ends_the_run(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As when weights diverge: what has been trained is saved, and nothing is reported as a result."""
    measure = WinRateEvaluator.__call__

    def broken(self: WinRateEvaluator) -> Any:
        evaluation = measure(self)
        return replace(evaluation, metrics=evaluation.metrics | {"kl": math.nan})

    monkeypatch.setattr(WinRateEvaluator, "__call__", broken)
    said = refused(capsys, "resume", str(run), "--step", "1", "train.steps=2", code=1)
    assert "step 2: kl of the evaluation is not finite" in said
    assert [step for step, _ in list_checkpoints(run / "checkpoints")] == [1, 2]
    assert not (run / "summary.json").exists()


def test_the_base_keeps_the_precision_that_the_run_began_with(
    run: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit also where `auto` is another precision, as on another machine."""
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("dtype: float32", "dtype: auto"))
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    monkeypatch.setattr(device, "faster_dtype", lambda threads: torch.bfloat16)
    assert train.settled_dtype(load(config)) is Precision.bfloat16
    assert cli.main(["resume", str(run), "--step", "2"]) == 0
    weights = "adapter/adapter_model.safetensors"
    assert (run / weights).read_bytes() == (finished / weights).read_bytes()
    assert load(config).model.dtype is Precision.auto
    assert cli.main(["resume", str(run), "--step", "2", "model.dtype=bfloat16", "evaluation.every=0"]) == 0
    assert json.loads((run / "checkpoints/step-4/state.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("dtype", "recorded", "expected"),
    [
        ("auto", {"dtype": "float16"}, Precision.float16),
        ("bfloat16", {"dtype": "float32"}, Precision.bfloat16),
        ("auto", {}, Precision.float32),
        *[("auto", {"dtype": wrong}, None) for wrong in ("auto", "int8", 16, ["float32"])],
    ],
)
def test_precision_of_a_resumed_base(dtype: str, recorded: dict[str, Any], expected: Precision | None) -> None:
    config = compose(["experiment=smoke", f"model.dtype={dtype}"])
    checkpoint = Checkpoint(Path("step-1"), 1, {}, recorded)
    if expected is None:
        with pytest.raises(InputError, match=r"does not say in which precision .*: name one with model\.dtype="):
            train.settled_dtype(config, checkpoint)
    else:
        assert train.settled_dtype(config, checkpoint) is expected
