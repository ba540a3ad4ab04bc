"""`alignrun export`: a run's checkpoint becomes a folder that is whole, or nothing does."""

import errno
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers import offline_arguments
from transformers import AutoTokenizer

from alignrun import cli
from alignrun.data.rendering import encode_prompt
from alignrun.errors import InputError
from alignrun.launch import compose
from alignrun.launch.build import load_trained
from alignrun.launch.pins import Pins, tokenizer_digest
from alignrun.models.policy import Policy
from alignrun.models.sources import load_tokenizer
from alignrun.run.directory import RunDirectory
from alignrun.tournament.players import Loader, find_player
from alignrun.training.checkpoint import save_checkpoint
from alignrun.types import Example

TEMPLATE = (
    "{{ 'a default system turn' if messages[0].role != 'system' }}{% for m in messages %}{{ m.content }}|{% endfor %}"
)


def make_run(folder: Path, *overrides: str, step: int = 3, poison: bool = False) -> Path:
    """The folder of a run with one checkpoint, as if it had been trained."""
    config = compose.compose(["experiment=smoke", *overrides])
    run = RunDirectory.create(folder)
    run.config_file.write_text(compose.dump(config))
    trained = load_trained(config, load_tokenizer(config.model))
    stands_on = {"base": trained.backbone.fingerprint, "tokenizer": tokenizer_digest(trained.backbone.tokenizer)}
    run.pins_file.write_text(Pins(stands_on).text())
    weights = {name: weight.detach() for name, weight in trained.trainable().items()}
    generator = torch.Generator().manual_seed(7)
    for weight in weights.values():
        weight += 0.1 * torch.randn(weight.shape, generator=generator)
    if poison:
        next(iter(weights.values()))[0] = float("nan")
    save_checkpoint(run.checkpoints, step, {"weights": weights}, {"evaluated": True}, keep=2)
    run.close()
    return folder


@pytest.mark.parametrize("arguments", [[], ["--merge"]], ids=["adapter", "merged"])
def test_an_export_has_the_prompts_the_temperature_and_a_card(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    system = 'Be "kind"'
    run = make_run(
        tmp_path / "run",
        f"model.system_prompt='{system}'",
        f'model.chat_template="{TEMPLATE}"',
        "generation.temperature=0.6",
    )
    folder = tmp_path / "new" / "out"
    folder.mkdir(parents=True)  # an empty folder is free
    assert cli.main(["export", str(run), "--to", str(folder), *arguments]) == 0
    assert "sample it at temperature 0.6" in capsys.readouterr().out
    config = compose.load(run / "config.yaml")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    turns = [{"role": "user", "content": "Hello?"}]
    written = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    assert written == encode_prompt(load_tokenizer(config.model), Example("Hello?", "p:1"), system)
    assert tokenizer.decode(written) == 'Be "kind"|Hello?|'
    assert json.loads((folder / "generation_config.json").read_text())["temperature"] == 0.6
    card = (folder / "README.md").read_text()
    for line in ('algorithm: "nash_md"', "temperature: 0.6", "step: 3", r'system_prompt: "Be \"kind\""'):
        assert line in card
    assert folder.stat().st_mode == run.stat().st_mode


def test_a_run_is_found_by_a_process_that_has_imported_nothing_yet(tmp_path: Path) -> None:
    """Algorithms and their classes included, which other tests have long imported."""
    run = make_run(tmp_path / "run")
    source = "import sys; from alignrun import cli; from alignrun.tournament.players import find_player"
    source += "; print(find_player(sys.argv[1]).name); sys.exit(cli.main(['export', *sys.argv[1:]]))"
    done = subprocess.run(
        [sys.executable, "-c", source, str(run), "--to", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("run\nadapter of step 3 written")


def test_the_last_export_stays_where_the_next_one_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run")
    before = sorted(run.iterdir())

    def half(_: Policy, folder: Path) -> None:
        (folder / "adapter_config.json").write_text("{")
        raise OSError(errno.ENOSPC, "No space left on device")

    def read_only(**_: object) -> str:
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Policy, "save_adapter", half)
        assert cli.main(["export", str(run)]) == 1
        said = f"could not write {run / 'export'}: No space left on device; free space, then export again"
        assert said in capsys.readouterr().err
        patch.setattr("alignrun.run.directory.tempfile.mkdtemp", read_only)
        assert cli.main(["export", str(run)]) == 1
    said = f"could not write {run / 'export'}: Permission denied; choose another folder with --to\n"
    assert said in capsys.readouterr().err
    assert sorted(run.iterdir()) == before, "nothing is left half-written"
    assert cli.main(["export", str(run)]) == 0
    files = {file: file.read_bytes() for file in (run / "export").iterdir()}
    assert cli.main(["export", str(run)]) == 2
    assert f"{run / 'export'} exists: choose another folder with --to" in capsys.readouterr().err
    assert {file: file.read_bytes() for file in (run / "export").iterdir()} == files


@pytest.mark.parametrize("arguments", [[], ["--merge"]], ids=["adapter", "merged"])
def test_weights_that_are_not_finite_are_not_exported(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run", poison=True)
    before = sorted(run.iterdir())
    assert cli.main(["export", str(run), *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(r"step-3: .*lora_A.* is not finite: name an earlier checkpoint with --step", line)
    assert sorted(run.iterdir()) == before


def test_a_feedback_model_keeps_the_template_that_it_reads(tmp_path: Path) -> None:
    """It is trained without the system prompt of policies, so its tokenizer must not write one."""
    arguments = offline_arguments("reward_model", tmp_path)
    run = make_run(tmp_path / "run", *arguments, "model.system_prompt=Hello.")
    assert cli.main(["export", str(run)]) == 0
    config = compose.load(run / "config.yaml")
    saved, own = AutoTokenizer.from_pretrained(run / "export"), load_tokenizer(config.model)
    assert saved.chat_template == own.chat_template
    assert "# reward model on tiny" in (run / "export" / "README.md").read_text()


@pytest.mark.parametrize(
    ("change", "part"), [({"seed": 5}, "base"), ({"model": {"chat_template": TEMPLATE}}, "tokenizer")]
)
def test_neither_an_export_nor_a_tournament_takes_another_base_or_template(
    change: dict[str, Any], part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A tiny base is made from the seed: with another one the weights of the run would belong to another model."""
    run = make_run(tmp_path / "run")
    stored = yaml.safe_load((run / "config.yaml").read_text())
    model = stored["model"] | change.get("model", {})
    (run / "config.yaml").write_text(yaml.safe_dump(stored | change | {"model": model}))
    problem = f"the {part} of the run has changed: restore it"
    assert cli.main(["export", str(run), "--merge", "--to", str(tmp_path / "out")]) == 2
    assert problem in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match=problem):
        Loader().load(find_player(str(run)))
