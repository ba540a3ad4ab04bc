"""A run of somebody else executes nothing and contacts nobody, unless the user says so; one's own needs no question."""

import json
import re
import shutil
import stat
import threading
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import yaml

from alignrun import cli
from alignrun.config import ModelSource
from alignrun.errors import InputError
from alignrun.launch import compose
from alignrun.launch.explaining import known_keys
from alignrun.models.cards import AdapterCard, read_card, write_card
from alignrun.preferences.feedback_model import load_feedback_model
from alignrun.run.directory import RunDirectory
from alignrun.run.trust import SIGNED, accepting, check_own, is_own, key_file, sign, signature_text
from alignrun.tournament.players import find_player

JUDGE = ["preference=judge", "preference.url=https://judge.example/v1", "preference.model=m"]
SERVER = ["generation.engine=server", "generation.server_url=https://rollouts.example"]


def values(*overrides: str) -> dict[str, object]:
    return compose.plain(compose.compose(["experiment=smoke", *overrides]))


@pytest.fixture
def own_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The configuration folder of a user who has no key yet."""
    monkeypatch.setenv("ALIGNRUN_CONFIG", str(tmp_path / "config"))
    return tmp_path / "config"


def stored(folder: Path, *overrides: str, signed: bool = False) -> Path:
    """The folder of a run, as far as commands look before they load a model."""
    config = compose.compose(["experiment=smoke", *overrides])
    run = RunDirectory.create(folder)
    run.config_file.write_text(compose.dump(config))
    if signed:
        run.signature_file.write_text(signature_text(compose.plain(config)))
    (run.checkpoints / "step-1").mkdir(parents=True)
    run.adapter.mkdir()
    run.close()
    return folder


DANGEROUS = [
    (["preference=function", "preference.function=pty:spawn"], "import and run preference.function=pty:spawn"),
    (["model=path", "model.path=/m", "model.trust_remote_code=true"], "run code of the model"),
    (["model=path", "model.path=some/model"], "load a model from elsewhere (model.path=some/model)"),
    (["model=smollm2-135m", "model.package=antigravity.x"], "load a model from elsewhere (model.package=antigravity.x"),
    (JUDGE, "send texts to preference.url=https://judge.example/v1; send the key in preference.key_variable=OPENAI_AP"),
    (
        ["preference=reward_server", *JUDGE[1:]],
        "send texts to preference.url=https://judge.example/v1; send the key in preference.key_variable=REWARD_SERV",
    ),
    (
        ["preference=reward_server", *JUDGE[1:], "preference.tokenizer=some/model"],
        "load a tokenizer from elsewhere (preference.tokenizer=some/model)",
    ),
    ([*JUDGE, "preference.cache=/etc/cron.d/x"], "write preference.cache=/etc/cron.d/x"),
    (SERVER, "send texts, with a key, to generation.server_url=https://rollouts.example"),
    (["data=hub", "data.path=some/set"], "load data from the hub (data.path=some/set)"),
    (["tracker.mode=online"], "send the run to wandb"),
    (["tracker.entity=somebody"], "send the run to wandb (tracker.entity=somebody"),
]


@pytest.mark.parametrize(("overrides", "ask"), DANGEROUS, ids=lambda case: case[0] if isinstance(case, list) else "")
def test_what_others_may_not_have_done(overrides: list[str], ask: str) -> None:
    found = values(*overrides)
    with pytest.raises(InputError, match="would .*" + re.escape(ask) + ".*: add --trust") as caught:
        check_own(found, "", "runs/x")
    assert str(caught.value).startswith("runs/x was not written by you on this machine and would ")
    check_own(found, sign(found), "runs/x")
    with accepting(True):
        check_own(found, "", "runs/x")
    with pytest.raises(InputError), accepting(False):
        check_own(found, "", "runs/x")


@pytest.mark.parametrize(
    "overrides", [[], ["model=llama-8b"], ["model=smollm2-135m"], ["model=path", "model.path=/m"], ["algo=dpo"]]
)
def test_ordinary_runs_of_others_are_opened(overrides: list[str]) -> None:
    check_own(values(*overrides), "", "runs/x")


@pytest.mark.parametrize("command", ["resume", "exploit", "eval"])
def test_each_command_refuses_before_it_loads_anything(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ran.py").write_text("import pathlib\npathlib.Path('it-ran').touch()\nf = len\n")
    monkeypatch.chdir(tmp_path)
    run = stored(tmp_path / "run", "preference=function", "preference.function=ran:f")
    arguments = ["eval", f"runs=[{run}]"] if command == "eval" else [command, str(run)]
    assert cli.main(arguments) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert "would import and run preference.function=ran:f: add --trust" in said
    assert not (tmp_path / "it-ran").exists()
    assert not (run / "signature.json").exists()


def test_export_asks_about_the_model_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    harmless = stored(tmp_path / "a", "preference=function", "preference.function=ran:f")
    assert cli.main(["export", str(harmless)]) == 2
    assert "--trust" not in capsys.readouterr().err
    remote = stored(tmp_path / "b", "model=path", "model.path=some/model", "model.trust_remote_code=true")
    assert cli.main(["export", str(remote)]) == 2
    assert "run code of the model (model.trust_remote_code=True)" in capsys.readouterr().err
    assert cli.main(["export", str(remote), "--trust"]) == 2
    assert "checkpoint" in capsys.readouterr().err, "it goes on, up to the next fault"


@pytest.mark.parametrize("arguments", [["ls"], ["plan"], ["config"], ["top", "x"], ["-m", "seed=1,2"]])
def test_other_commands_have_nothing_to_trust(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*arguments, "--trust"]) == 2
    assert "--trust is for commands that open a run" in capsys.readouterr().err


def test_a_tournament_asks_about_what_it_uses(tmp_path: Path) -> None:
    run = str(stored(tmp_path / "run", *JUDGE, "data=hub", "data.path=some/set"))
    find_player(run)
    for section in ("preference", "data"):
        with pytest.raises(InputError, match=rf"would .*{section}\."):
            find_player(run, sections=("model", section))


def test_ones_own_run_is_opened_wherever_it_is(tmp_path: Path) -> None:
    run = stored(tmp_path / "run", *JUDGE, signed=True)
    moved = shutil.move(run, tmp_path / "moved")
    find_player(str(moved), sections=("model", "preference"))
    config = moved / "config.yaml"
    config.write_text(config.read_text().replace("judge.example", "evil.example"))
    with pytest.raises(InputError, match=r"evil\.example"):
        find_player(str(moved), sections=("model", "preference"))


def test_what_the_command_line_says_instead_is_the_users_own() -> None:
    found = values("preference=function", "preference.function=pty:spawn")
    check_own(found, "", "x", overrides=["preference.function=mine:f"])
    check_own(found, "", "x", overrides=["preference=sentiment"])
    for unrelated in ("preference.kind=reward", "train.steps=5"):
        with pytest.raises(InputError):
            check_own(found, "", "x", overrides=[unrelated])
    secret = values(*JUDGE, "preference.key_variable=AWS_SECRET")
    with pytest.raises(InputError, match="AWS_SECRET"):
        check_own(secret, "", "x", overrides=["preference.url=http://localhost:1"])
    check_own(secret, "", "x", overrides=["preference.url=http://localhost:1", "preference.key_variable=MINE"])


def test_nothing_is_read_from_the_environment_for_a_stored_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", "secret")
    run = stored(tmp_path / "run", *JUDGE)
    for reference in ("${oc.env:TOKEN}", "${oc.decode:${oc.env:TOKEN}}", "\\${oc.env:TOKEN}", "${model.name}"):
        whole = yaml.safe_load((run / "config.yaml").read_text())
        whole["preference"]["url"] = f"https://judge.example/{reference}"
        whole["preference"]["extra"] = {"a": [reference]}
        (run / "config.yaml").write_text(yaml.safe_dump(whole))
        for config in (compose.load(run / "config.yaml"), compose.load(run / "config.yaml", ["train.steps=9"])):
            assert config.preference.url == f"https://judge.example/{reference}"
            assert config.preference.extra == {"a": [reference]}
            assert "secret" not in compose.dump(config)
            (tmp_path / "again.yaml").write_text(compose.dump(config))
            assert compose.load(tmp_path / "again.yaml") == config


def test_the_signature_covers_every_setting_that_it_must() -> None:
    """A setting that names a place or code is signed, or stands here as one that is only read."""
    telling = re.compile(r"(url|path|file|folder|variable|function|package|code|cache|opponent|fallback|entity)$")
    read_only = {"data.game", "preference.game", "train.cache"}
    for key in known_keys():
        section, _, name = key.partition(".")
        if telling.search(name) and key not in read_only:
            assert name in SIGNED.get(section, ()), key
    found = values(*JUDGE, *SERVER, "model=path", "model.path=a/b", "data=hub", "data.path=c/d")
    signature = sign(found)
    for section, names in SIGNED.items():
        for name in names:
            changed = found | {section: {**found[section], name: "other"}}  # type: ignore[dict-item]
            assert not is_own(changed, signature), (section, name)
    later = found | {"model": {**found["model"], "new_setting": None}}  # type: ignore[dict-item]
    assert is_own(later, signature), "a later version has more settings"


def test_the_key_is_the_users_alone(own_key: Path) -> None:
    found = values()
    assert not is_own(found, "")
    assert not own_key.exists(), "looking makes no key"
    signature = sign(found)
    assert stat.S_IMODE(own_key.stat().st_mode) == 0o700
    assert stat.S_IMODE(key_file().stat().st_mode) == 0o600
    assert key_file().stat().st_size == 32
    assert list(own_key.iterdir()) == [key_file()]
    assert is_own(found, signature)
    key_file().chmod(0o644)
    assert not is_own(found, signature)
    with pytest.raises(InputError, match="chmod 600"):
        sign(found)
    key_file().chmod(0o600)
    key_file().write_bytes(b"short")
    with pytest.raises(InputError, match="damaged"):
        sign(found)
    key_file().unlink()
    assert sign(found) != signature, "another key"


def test_processes_that_begin_at_once_make_one_key(own_key: Path) -> None:
    made: list[str] = []
    threads = [threading.Thread(target=lambda: made.append(sign(values_once))) for _ in range(8)]
    values_once = {"model": {"path": "a"}}
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 8
    assert len(set(made)) == 1


def test_a_run_without_a_key_is_not_signed_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    from alignrun.launch.train import signature_of

    (tmp_path / "file").touch()
    monkeypatch.setenv("ALIGNRUN_CONFIG", str(tmp_path / "file" / "config"))
    console = Console(record=True, width=400)
    assert signature_of(compose.compose(["experiment=smoke"]), console) == ""
    assert "the run is not signed" in console.export_text()


@pytest.mark.parametrize(("section", "name"), [(section, name) for section, names in SIGNED.items() for name in names])
def test_signed_settings_exist(section: str, name: str) -> None:
    assert f"{section}.{name}" in known_keys()


def card_in(folder: Path, model: dict[str, object]) -> Path:
    folder.mkdir()
    write_card(folder, AdapterCard("reward", base="", template="{prompt}{completion}", model=model))
    return folder


def test_a_feedback_model_of_others_loads_no_base_from_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from types import SimpleNamespace

    mine = compose.compose(["experiment=smoke"]).model
    theirs = asdict(replace(mine, source=ModelSource.hub, path="some/model", trust_remote_code=True))
    backbone = SimpleNamespace(config=mine, fingerprint="f", peft=None)
    loaded: list[object] = []

    def stop(config: object) -> None:
        loaded.append(config)
        raise InputError("loading")

    monkeypatch.setattr("alignrun.preferences.feedback_model.load_tokenizer", stop)

    def load(folder: Path) -> None:
        load_feedback_model(str(folder), "reward", 1, backbone)  # type: ignore[arg-type]

    folder = card_in(tmp_path / "own", theirs)
    with pytest.raises(InputError, match=r"^loading$"):
        load(folder)
    card = json.loads((folder / "alignrun.json").read_text())
    for change in (
        {"signature": ""},
        {"model": {**card["model"], "path": "other/model"}},
        {"model": {"name": "x", "path": "a/b"}},
    ):
        (folder / "alignrun.json").write_text(json.dumps(card | change))
        with pytest.raises(InputError, match=r"would .*load a model from elsewhere"):
            load(folder)
    assert len(loaded) == 1
    with accepting(True), pytest.raises(InputError, match=r"^loading$"):
        load(folder)


@pytest.mark.parametrize("change", [{"seed": "1"}, {"model": 3}, {"adapter": "x"}, {"kind": None}, {"more": 1}])
def test_a_damaged_card_is_one_line(change: dict[str, object], tmp_path: Path) -> None:
    folder = card_in(tmp_path / "card", {})
    found = json.loads((folder / "alignrun.json").read_text())
    (folder / "alignrun.json").write_text(json.dumps(found | change))
    with pytest.raises(InputError, match=r"^key: .*alignrun.json is damaged"):
        read_card(folder, "key")


def test_an_adapter_folder_of_others_names_its_base_in_vain(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "some/model"}')
    with pytest.raises(InputError, match="load a model from elsewhere"):
        find_player(str(tmp_path))
    with accepting(True):
        assert find_player(str(tmp_path)).config.model.path == "some/model"


def test_an_adapter_cannot_have_a_module_imported(tmp_path: Path) -> None:
    from helpers import load_policy

    from alignrun.models.adapters import read_adapter

    policy, _ = load_policy()
    policy.save_adapter(tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(
        json.dumps(json.loads(file.read_text()) | {"megatron_config": {"a": 1}, "megatron_core": "antigravity"})
    )
    with pytest.raises(InputError, match="not a plain LoRA adapter"):
        read_adapter(policy.backbone.peft, "x", tmp_path, trainable=False, key="k")  # type: ignore[arg-type]
