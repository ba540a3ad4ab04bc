"""Completion in a shell: what a word can become, in bash itself and without a heavy import."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from alignrun import cli
from alignrun.config import Config, TournamentConfig
from alignrun.launch.choices import choices
from alignrun.launch.commands import VERBS
from alignrun.launch.completion import SCRIPTS, candidates, words_of
from alignrun.launch.explaining import known_keys
from alignrun.launch.key_table import flat_keys, sections

SWITCH = ("auto", "false", "true")


@pytest.fixture(autouse=True)
def folders() -> None:
    for name in ("runs/first", "runs/sweeps/second/0", "runs/a b"):
        Path(name).mkdir(parents=True)
        Path(name, "config.yaml").touch()
    Path("pairs.jsonl").touch()
    Path("bad\x1bname.jsonl").touch()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["al"], ["algo.", "algo="]),
        (["ex"], ["experiment=", "exploit ", "export "]),
        (["algo=nash_m"], ["algo=nash_md ", "algo=nash_mp "]),
        (["-m", "algo=dpo,i"], ["algo=dpo,inpo ", "algo=dpo,ipo ", "algo=dpo,ipo_md "]),
        (["algo=ppo", "algo.v"], ["algo.value_clip=", "algo.value_weight="]),
        (["algo=dpo", "algo.v"], []),
        (["data.columns.vote_c"], ["data.columns.vote_chosen="]),
        (["optim.schedule=c"], ["optim.schedule=constant ", "optim.schedule=cosine "]),
        (["model.gradient_checkpointing="], [f"model.gradient_checkpointing={value} " for value in SWITCH]),
        (["data.path=p"], ["data.path=pairs.jsonl "]),
        (["data.path=bad"], []),
        (["plan", "plan"], ["plan."]),
        (["plan", "plan.g"], ["plan.gpu="]),
        (["eval", "pairing=m"], ["pairing=matched "]),
        (["eval", "train.st"], []),
        (["eval", "sam"], ["samples_per_prompt="]),
        (["eval", "pref"], ["preference.", "preference="]),
        (["eval", "algo"], []),
        (["eval-preference", "tri"], ["triples="]),
        (["generate", "runs/f"], ["runs/first ", "runs/first/"]),
        (["generate", "runs/first", "top"], ["top_k=", "top_p="]),
        (["generate", "runs/first", "runs/f"], []),
        (["generate", "x", "out=pa"], ["out=pairs.jsonl "]),
        (["chat", "x", "runs/f"], ["runs/first ", "runs/first/"]),
        (["chat", "data"], []),
        (["diff", "x", "runs/f"], ["runs/first ", "runs/first/"]),
        (["runs", "ru"], ["runs/"]),
        (["recip"], ["recipe="]),
        (["eval", "runs=[runs/f"], ["runs=[runs/first", "runs=[runs/first/"]),
        (["eval", "runs=[x,runs/f"], ["runs=[x,runs/first", "runs=[x,runs/first/"]),
        (["resume", "runs/"], ["runs/a b ", "runs/a b/", "runs/first ", "runs/first/", "runs/sweeps/"]),
        (["resume", "runs/first", "optim.l"], ["optim.learning_rate="]),
        (["export", "x", "--m"], ["--merge "]),
        (["top", "--"], ["--help ", "--interval ", "--once "]),
        (["ls", "da"], ["data "]),
        (["help", "kl"], []),
        (["help", "algo.kl_ta"], ["algo.kl_target ", "algo.kl_tau "]),
        (["cp", "experiment/pane"], ["experiment/panel "]),
        (["completion", ""], ["bash ", "fish ", "zsh "]),
        (["--config", "pa"], ["pairs.jsonl "]),
    ],
)  # fmt: skip
def test_a_word_becomes_what_the_command_takes(words: list[str], expected: list[str]) -> None:
    assert candidates(words) == expected


def test_every_command_choice_and_key_is_completed() -> None:
    assert {f"{verb} " for verb in VERBS} <= set(candidates([""]))
    for group in ("algo", "model", "preference", "experiment"):
        assert candidates([f"{group}="]) == [f"{group}={choice} " for choice in choices(group)]
    for key in known_keys():
        section, _, _ = key.rpartition(".")
        found = candidates([f"{section}." if section else key])
        assert any(one.startswith((f"{key}=", f"{key}.")) for one in found), key


@pytest.mark.parametrize("root", [Config, TournamentConfig])
def test_every_value_of_an_enumeration_is_completed(root: type) -> None:
    """Completion reads them in the comments of the files, since the classes take longer to import."""
    for section in sections(root):
        for path, key in flat_keys(section):
            if key.choices:
                before = [section.choice] if section.choice else ["eval"] if root is TournamentConfig else []
                found = candidates([*before, f"{path}="])
                assert {f"{path}={name} " for name in key.choices} <= set(found), (section.choice, path)


def test_the_words_of_a_line() -> None:
    assert words_of("alignrun algo=x ") == ["algo=x", ""]
    assert words_of(".venv/bin/alignrun resume runs/a\\ b") == ["resume", "runs/a b"]
    assert words_of("alignrun ") == [""]


def bash(folder: Path, line: str) -> list[str]:
    """What bash offers at the end of a line."""
    script = folder / "alignrun"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m alignrun "$@"\n')
    script.chmod(0o755)
    program = (
        'eval "$(alignrun completion bash)"; COMP_LINE=$1 COMP_POINT=${#1}; _alignrun; printf "%s|" "${COMPREPLY[@]}"'
    )
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", program, "bash", line], env=environment, capture_output=True, text=True, check=True
    )
    assert not done.stderr
    return done.stdout.removesuffix("|").split("|")


def test_bash_replaces_only_what_follows_its_own_breaks(tmp_path: Path) -> None:
    """Readline breaks words at `=`, so only the value is offered; a space in a path is escaped."""
    assert bash(tmp_path, "alignrun algo=nash_m") == ["nash_md ", "nash_mp "]
    assert bash(tmp_path, "alignrun resume runs/a") == ["runs/a\\ b ", "runs/a\\ b/"]


def test_a_completion_imports_neither_torch_nor_hydra() -> None:
    code = "import sys; from alignrun import cli; cli.main(['completion', '--words', 'algo.']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"torch", "hydra", "transformers"}.isdisjoint(done.stdout.split())
    assert "algo.kl_tau=" in done.stdout


@pytest.mark.parametrize("shell", SCRIPTS)
def test_a_script_for_each_shell(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", shell]) == 0
    assert capsys.readouterr().out == SCRIPTS[shell]
    assert cli.main(["completion"]) == 2
    assert "name your shell: bash, zsh, fish" in capsys.readouterr().err
