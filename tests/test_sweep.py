"""A sweep's directory and its members: found by their overrides, added to, never relabelled; nothing here trains."""

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from omegaconf import OmegaConf
from rich.console import Console

from alignrun import cli
from alignrun.config import Config, SweepConfig
from alignrun.errors import InputError
from alignrun.launch import compose
from alignrun.launch.overrides import quoted, with_new_key
from alignrun.run.directory import RunDirectory
from alignrun.run.fresh import fresh_directory
from alignrun.sweeps import sweep
from alignrun.sweeps.definition import join
from alignrun.sweeps.job import Job, members, settle_in, started_with, state, write_job
from alignrun.sweeps.sweep import combinations, parse, planned_steps, split_directory
from alignrun.sweeps.table import read_run, setting_of, summarise


def finish(directory: Path, overrides: Sequence[str] = (), win_rate: float = 0.6) -> None:
    """What a run that has come to its end leaves, as far as a sweep looks at it."""
    run = RunDirectory(directory)
    run.path.mkdir(parents=True, exist_ok=True)
    run.config_file.touch()
    run.overrides_file.write_text(yaml.safe_dump([*overrides, f"run.dir='{directory}'"]))
    run.metrics_file.write_text(json.dumps({"step": 1, "eval/kl": 1.0, "eval/win_rate": win_rate}) + "\n")
    run.summary_file.write_text(json.dumps({"step": 1, "win_rate": win_rate, "kl": 1.0}))


Sweep = Callable[..., int]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands of the runs that are made; each finishes at once."""
    commands: list[list[str]] = []

    def run_to_its_end(command: Sequence[str], _behind: object) -> tuple[int, None]:
        given = list(command[3:])
        commands.append(given)
        *overrides, where = given
        if given[0] == "resume":
            finish(Path(given[1]), started_with(Path(given[1])) or ())
        else:
            (parsed,) = sweep.parse([where])
            finish(Path(str(parsed.value())), overrides)
        return 0, None

    monkeypatch.setattr(sweep, "run_to_its_end", run_to_its_end)
    monkeypatch.setattr("alignrun.reports.sweep.sweep_page", lambda _: "")
    return commands


@pytest.fixture
def multirun(made: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    """`alignrun -m OVERRIDES hydra.sweep.dir=TMP_PATH` without Hydra's composing, which takes most of its time."""
    composed = OmegaConf.create({"sweep": OmegaConf.structured(SweepConfig), "train": {"steps": 1}})

    def launch(directory: Path, arguments: Sequence[str], *rest: object) -> int:
        parsed = [override for override in sweep.parse(arguments) if override.get_key_element() != "hydra.sweep.dir"]
        choices = [
            [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]
            if override.is_sweep_override()
            else [override.input_line]
            for override in parsed
        ]
        for number, task in enumerate(product(*choices)):
            given = SimpleNamespace(sweep=SimpleNamespace(dir=str(directory), subdir=number))
            given.overrides = SimpleNamespace(task=list(task))
            monkeypatch.setattr(sweep.HydraConfig, "get", lambda given=given: given)
            sweep.run_job(composed)
        return summarise(directory, *rest)

    def run(*overrides: str) -> int:
        with sweep.holding(tmp_path):
            join(tmp_path, sweep.parse(overrides))
            return launch(tmp_path, overrides, "alignrun -m", 0.95, Console(quiet=True))

    return run


def rows(directory: Path) -> list[tuple[str, str, int | None]]:
    found = json.loads((directory / "sweep.json").read_text())
    return [(row["run"], row["overrides"], row["exit_code"]) for row in found]


def test_a_directory_is_added_to_and_nothing_in_it_relabelled(
    tmp_path: Path, multirun: Sweep, made: list[list[str]]
) -> None:
    assert multirun("experiment=smoke", "algo.kl_tau=0.1,1") == 0
    first = rows(tmp_path)
    assert [row[1] for row in first] == ["experiment=smoke algo.kl_tau=0.1", "experiment=smoke algo.kl_tau=1"]
    assert multirun("algo.kl_tau=1,10", "experiment=smoke") == 0
    assert len(made) == 3, "the run of 1 is done"
    assert rows(tmp_path) == [*first, ("2", "algo.kl_tau=10 experiment=smoke", 0)]
    assert multirun("experiment=smoke", "seed=5,6", "algo.kl_tau=1") == 0
    assert [row[1] for row in rows(tmp_path)[3:]] == [f"experiment=smoke seed={seed} algo.kl_tau=1" for seed in (5, 6)]
    assert multirun("experiment=smoke", "seed=5", "algo.kl_tau=1") == 0
    kept = rows(tmp_path)
    for changed, differs in (
        ("experiment=smoke train.steps=1", "with no train.steps, and this one has train.steps=1"),
        ("experiment=game", "with experiment=smoke, and this one has experiment=game"),
        ("seed=7", "with experiment=smoke, and this one has no experiment"),
    ):
        with pytest.raises(InputError, match=f"{tmp_path} holds another sweep, {differs}: choose another"):
            multirun(*changed.split(), "algo.kl_tau=0.1,1")
    assert (rows(tmp_path), len(made)) == (kept, 5)


def test_the_ranking_names_settings_as_a_user_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Hydra's plus signs, and without the entries that stand for the user's own files."""
    finish(tmp_path, ["+own_0@_global_=file", "hydra.searchpath=[x]", "++algo.kl_tau=1", "seed=3"])
    assert read_run(tmp_path, "0", Job(0)).overrides == ("algo.kl_tau=1",)


def test_values_with_spaces_and_equals_signs_stay_whole(
    tmp_path: Path, made: list[list[str]], capfd: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "kl=0.1 and more"
    arguments = ["-m", "experiment=smoke", "model.system_prompt='a = b','a c'", f"hydra.sweep.dir={directory}"]
    assert cli.main(arguments) == 0
    ranking = json.loads((directory / "ranking.json").read_text())
    assert [setting["overrides"] for setting in ranking["settings"]] == [
        ["experiment=smoke", "model.system_prompt='a = b'"],
        ["experiment=smoke", "model.system_prompt='a c'"],
    ]
    out = " ".join(capfd.readouterr().out.split())
    assert "all with experiment=smoke ┏" in out
    assert "│ model.system_prompt='a = b' │ 0 │" in out
    assert "do not show that the first is the best" in out
    assert "† Based on a single evaluation" in out
    assert [command[-1] for command in made] == [f"run.dir='{directory}/{number}'" for number in range(2)]


def test_a_member_that_was_resumed_by_hand_has_finished(tmp_path: Path, multirun: Sweep, made: list[list[str]]) -> None:
    assert multirun("experiment=smoke", "seed=1,2") == 0
    write_job(tmp_path / "0", Job(1))  # it had failed, and then somebody resumed it
    (tmp_path / "1" / "summary.json").unlink()  # it had finished, and was taken up again since
    assert state(tmp_path / "0") == Job(0)
    assert state(tmp_path / "1") is None
    assert summarise(tmp_path, "alignrun -m", 0.95, Console(quiet=True)) == 1
    assert [row[2] for row in rows(tmp_path)] == [0, None]
    assert "Not finished, and excluded: 1." in json.loads((tmp_path / "ranking.json").read_text())["notes"]
    assert multirun("experiment=smoke", "seed=1,2") == 0
    assert made[2:] == [["resume", str(tmp_path / "1")]]
    assert [row[2] for row in rows(tmp_path)] == [0, 0]


def test_what_was_changed_by_hand_is_another_setting(tmp_path: Path) -> None:
    overrides = ["experiment=smoke", "train.steps=3", "seed=1"]
    directory = settle_in(tmp_path, "0", overrides)
    finish(directory, [*overrides, "run.dir=elsewhere", "train.steps=9"])
    assert settle_in(tmp_path, "0", overrides) == directory, "it is still the one that was started"
    assert setting_of(directory) == ["experiment=smoke", "seed=1", "train.steps=9"]


def test_members_are_known_by_their_overrides_in_any_order(tmp_path: Path) -> None:
    first = settle_in(tmp_path, "0", ["a=1", "b='x y'"])
    assert settle_in(tmp_path, "1", ["+b='x y'", "a=1"]) == first == tmp_path / "0"
    assert settle_in(tmp_path, "0", ["a=1 b='x y'"]) == tmp_path / "1"
    assert settle_in(tmp_path, "0", []) == tmp_path / "2"
    assert settle_in(tmp_path, "2", []) == tmp_path / "2"
    finish(tmp_path / "3", ["c=3"])  # of an earlier version, or made by hand
    finish(tmp_path / "named", ["d=1"])
    assert settle_in(tmp_path, "3", ["c=4"]) == tmp_path / "4"
    assert settle_in(tmp_path, "3", ["c=3"]) == tmp_path / "3"
    assert settle_in(tmp_path, "named", ["d=2"]) == tmp_path / "named_2"
    assert [path.name for path in members(tmp_path)] == ["0", "1", "2", "3", "4", "named_2"]


def test_members_that_come_at_once_get_a_directory_each(tmp_path: Path) -> None:
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda seed: settle_in(tmp_path, "0", [f"seed={seed}"]), range(16)))
    assert len(set(found)) == 16
    assert [started_with(path) for path in found] == [[f"seed={seed}"] for seed in range(16)]


def test_a_run_that_another_process_has_is_left_to_it(
    tmp_path: Path, multirun: Sweep, made: list[list[str]], capfd: pytest.CaptureFixture[str]
) -> None:
    assert multirun("experiment=smoke", "seed=1") == 0
    (tmp_path / "0" / "summary.json").unlink()
    held = RunDirectory(tmp_path / "0")
    held.lock()
    assert multirun("experiment=smoke", "seed=1") == 1
    assert "skipped here" in capfd.readouterr().err
    assert (len(made), rows(tmp_path)) == (1, [("0", "experiment=smoke seed=1", None)])
    held.close()


def test_one_process_at_a_time_has_a_directory_that_is_no_run(tmp_path: Path) -> None:
    whole = RunDirectory(tmp_path)
    whole.lock()
    with pytest.raises(InputError, match=r"or choose another hydra\.sweep\.dir"), sweep.holding(tmp_path):
        pass
    whole.close()
    with sweep.holding(tmp_path):
        whole.config_file.touch()
    with pytest.raises(InputError, match="is a run, not a sweep"), sweep.holding(tmp_path):
        pass


def test_two_that_start_in_one_second_get_a_directory_each(tmp_path: Path) -> None:
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda _: fresh_directory(tmp_path / "sweeps"), range(16)))
    assert len(set(found)) == len(list((tmp_path / "sweeps").iterdir())) == 16
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot create .*; choose another run\.dir"):
        fresh_directory(tmp_path / "file")
    with pytest.raises(InputError, match=r"cannot create .*; choose another hydra\.sweep\.dir"):
        fresh_directory(tmp_path / "file" / "sweeps", key="hydra.sweep.dir")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("~/sweeps/a", Path.home() / "sweeps/a"),
        ("'~/a, b'", Path.home() / "a, b"),
        ("runs/kl=0.1 x", Path("runs/kl=0.1 x")),
        ("runs/(a)", Path("runs/(a)")),
        ("7", Path("7")),
    ],
)
def test_directories_are_taken_to_the_letter(given: str, expected: Path) -> None:
    assert split_directory(["seed=1,2", f"hydra.sweep.dir={given}"]) == (expected, ["seed=1,2"])
    assert split_directory(["seed=1,2"]) == (None, ["seed=1,2"])


@pytest.mark.parametrize("given", ["a,b", "", "${hydra.job.name}", "'a", "[a]b'"])
def test_a_directory_that_is_none_is_refused(given: str) -> None:
    with pytest.raises(InputError):
        split_directory([f"hydra.sweep.dir={given}"])


@pytest.mark.parametrize(
    "value", ["a\\b", "it's", "a\\'b", "end\\", "kl=0.1, x", "\\\\", "'", '"q"', "ü {x}", "a\\\\'"]
)
def test_quoted_values_are_taken_to_the_letter(value: str) -> None:
    (parsed,) = sweep.parse([f"x={quoted(value)}"])
    assert parsed.value() == value


def test_keys_of_a_dictionary_are_swept() -> None:
    """Hydra composes a sweep itself: it must be asked to add them, and only once."""
    weights = with_new_key("preference.weights.formality=1,2", Config)
    assert weights == "++preference.weights.formality=1,2"
    assert with_new_key("preference.weights=null", Config) == "preference.weights=null"
    others = [with_new_key(f"preference.weights.{name}=1", Config) for name in ("readability", "spokenness")]
    given = ["experiment=smoke", "preference=style_panel", "preference.rule=mean", *others, weights]
    found = [compose.compose(one).preference.weights["formality"] for one in combinations(parse(given))]
    assert found == [1, 2]


def test_a_recipe_decides_how_long_a_run_is() -> None:
    """Hydra composes the sweep without it; each run adds that of its model."""
    composed = OmegaConf.create({"train": {"steps": 24, "epochs": None}})
    assert planned_steps(composed, ["model=tiny"]) == 24
    assert planned_steps(composed, ["model=qwen-7b"]) == 0
    assert planned_steps(composed, ["model=qwen-7b", "recipe=null"]) == 24
    composed.train.epochs = 2
    assert planned_steps(composed, ["model=tiny"]) == 0
