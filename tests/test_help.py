"""`alignrun help` and `--help`: every key, group and command is explained, from the classes and files themselves."""

import re
import shlex

import pytest
import yaml
from rich.console import Console

from alignrun import cli
from alignrun.algorithms.dpo import DPOConfig
from alignrun.config import Config, TournamentConfig
from alignrun.config.keys import docstrings
from alignrun.config.roots import ROOTS
from alignrun.launch import compose
from alignrun.launch.choices import choice_files, choices, first_comment, groups
from alignrun.launch.commands import COMMANDS, OPTIONS, VERBS
from alignrun.launch.compose import dump_explained
from alignrun.launch.explaining import known_keys
from alignrun.launch.key_help import show_topic
from alignrun.launch.key_table import flat_keys, sections
from alignrun.launch.overrides import section_classes
from alignrun.launch.suggestions import stray


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(arguments) == 0
    return capsys.readouterr().out


def test_a_bare_command_says_what_it_is_and_starts_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    out = said(capsys)
    assert out.startswith("alignrun fine-tunes language models")
    commands = re.findall(r"^  alignrun (.*?)  ", out, re.MULTILINE)
    assert len(commands) == 5
    compose.compose(commands[0].split())
    compose.compose(commands[1].split())


def test_a_key_that_differs_by_choice_shows_every_meaning_and_value(capsys: pytest.CaptureFixture[str]) -> None:
    out = said(capsys, "help", "algo.kl_tau")
    assert out.count("algo.kl_tau: float") == 1
    assert docstrings(DPOConfig)["kl_tau"] in out
    shown = {}
    for line in out.splitlines():
        if "algo=" in line:
            value, names = line.removeprefix("  default ").split("algo=")
            shown |= {name.strip(): float(value) for name in names.split(", ")}
    assert shown.keys() == {name for name, kind in section_classes()["algo"].items() if "kl_tau" in docstrings(kind)}
    for name in ("nash_md", "dpo", "ppo"):
        assert compose.compose([f"algo={name}"]).algo.kl_tau == shown[name]


def test_a_default_is_what_a_run_gets(capsys: pytest.CaptureFixture[str]) -> None:
    """And not that of the class, where the files under conf/ say otherwise."""
    config = compose.compose([])
    assert f"default {config.train.steps} " in said(capsys, "help", "train.steps")
    out = said(capsys, "help", "optim.schedule")
    assert "choice" in out
    assert "default linear" in out
    assert re.search(r"cosine +Cosine decay to 0\.", out)
    assert f"optim.warmup_steps={config.optim.warmup_steps} " in said(capsys, "help", "optim")


@pytest.mark.parametrize("topic", [*groups(), "train", "evaluation", "sweep", "run"])
def test_a_group_lists_its_choices_and_keys(topic: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = said(capsys, "help", topic)
    for choice in choices(topic) if topic in groups() else ():
        assert f"{topic}={choice} " in out
    for section in sections(Config):
        if section.prefix == f"{topic}." and not section.choice:
            assert all(f"{path}=" in out for path, _ in flat_keys(section))


def test_the_line_that_lists_a_choice_is_whole() -> None:
    """`ls` and `help` show the first comment of a file, so a sentence must not continue in the second."""
    for group in groups():
        for choice, file in choice_files(group).items():
            lines = file.read_text().splitlines()
            heading = f"# {first_comment(file)}"
            after = lines[lines.index(heading) + 1].removeprefix("# ")[:1]
            assert not heading.endswith((",", ":")), (group, choice)
            assert lines[lines.index(heading) + 1][:1] != "#" or after == after.upper(), (group, choice)


def test_every_key_and_choice_has_help() -> None:
    console = Console(quiet=True)
    for section in (*sections(Config)[::5], *sections(TournamentConfig)):
        path, _ = next(flat_keys(section))
        show_topic(path, console)
        if section.choice:
            show_topic(section.choice, console)
    missing = {key for key in known_keys() if "." in key} - {
        path for one in sections(Config) for path, _ in flat_keys(one)
    }
    assert missing == {"data.columns", "preference.answers"}, "which are sections"


@pytest.mark.parametrize(
    ("topic", "expected"),
    [
        ("algo.kl_tua", "did you mean algo.kl_tau?"),
        ("lr", "did you mean optim.learning_rate?"),
        ("columns.votes", "did you mean data.columns.votes?"),
        ("preferense", "did you mean preference?"),
        ("algo=nash_mdd", "did you mean nash_md?"),
        ("resum", "did you mean resume?"),
        ("samples_per_promt", "did you mean samples_per_prompt?"),
    ],
)
def test_an_unknown_topic_suggests(topic: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["help", topic]) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_every_command_explains_itself(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = said(capsys, *([verb] if verb else ["algo=ppo"]), "--help")
    command = COMMANDS[verb]
    assert f"alignrun {command.usage}" in out
    for option in (*command.options, *command.files):
        assert option in out
        assert OPTIONS[option].meaning in out
    for line, what in command.examples:
        assert line in out
        assert what in out
    if command.keys == "own":
        assert all(f"{path}=" in out for path, _ in flat_keys(sections(ROOTS[verb])[0]))
    elif command.keys:
        assert all(f"  {group} " in out for group in groups())


def test_examples_compose() -> None:
    for verb, command in COMMANDS.items():
        for line, _ in command.examples:
            overrides = [word for word in shlex.split(line) if "=" in word and "$(" not in word]
            overrides = [word for word in overrides if word.partition("=")[0] not in command.own_keys]
            assert stray(overrides, verb) is None
            if verb in ("plan", "config") and ">" not in line:
                compose.compose(overrides, verb)
            if verb == "eval":
                compose.compose_tournament(overrides)
            if verb == "eval-preference":
                compose.compose_preference_evaluation(overrides)
            if verb == "generate":
                compose.compose_generation(overrides)
            if verb == "chat":
                compose.compose_sampling(overrides)


@pytest.mark.parametrize(
    "overrides", [[], ["experiment=game"], ["algo=ppo", "data=inline", r"data.prompts=['a \${b}', '‮x', c]"]]
)
def test_explained_configurations_can_be_read_back(overrides: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    config = compose.compose(overrides)
    text = said(capsys, "config", "--explain", *overrides)
    assert text == dump_explained(config)
    assert yaml.safe_load(text) == yaml.safe_load(compose.dump(config)) == compose.plain(config)
    assert f"  # {docstrings(type(config.optim))['learning_rate']}\n  learning_rate: " in text
    assert f"  # {docstrings(type(config.algo))['kl_tau']}\n  kl_tau: " in text
    assert "‮" not in text
