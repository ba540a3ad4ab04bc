"""What a command imports before it has to: heavy libraries are counted, since times depend on the machine."""

import importlib
import json
import subprocess
import sys
import textwrap
import traceback
from pathlib import Path

import pytest

from alignrun.algorithms.base import discover
from alignrun.discovery import PACKAGES, SchemasFirstLoader, UnfinishedModule, config_classes, finish
from alignrun.launch.commands import VERBS
from alignrun.preferences import base as preferences

HEAVY = ("torch", "transformers", "peft", "wandb", "matplotlib", "scipy", "accelerate", "datasets", "safetensors.torch")

LIGHT: dict[str, int] = {
    "": 0,
    "--help": 0,
    **{f"{verb} --help": 0 for verb in VERBS},
    "help": 0,
    "help algo.kl_tau": 0,
    "help preference=judge": 0,
    "config --explain": 0,
    "completion bash": 0,
    "--version": 0,
    "ls": 0,
    "ls nothing": 2,
    "config algo=nash_md algo.mix_beta=0.5": 0,
    "config algo=nash_md algo.mix_beta=2": 2,
    "config algo=preference_model algo.template=none": 2,
    "config preference=style_panel preference.members.formality.measure=wit": 2,
    "algo.mix_bta=0.5": 2,
    "algo=nash": 2,
    "trian": 2,
    "--learning-rate 1": 2,
    "plan model=nothing": 2,
    "eval runs=[a,b] evaluation.nothing=1": 2,
    "-m algo=dpo,nothing": 2,
    "resume": 2,
    "export --nothing": 2,
    "top nowhere": 2,
    "runs nowhere": 2,
    "diff nowhere elsewhere": 2,
    "chat": 2,
    "chat nowhere top_p=2": 2,
    "generate nowhere": 2,
    "generate nowhere out=x formt=pairs": 2,
}
"""Commands that end before a model is needed, and their exit codes."""

DRIVER = """
import contextlib, io, json, sys
from alignrun import cli
found = []
for command in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
        code = cli.main(command.split())
    found.append([code, [name for name in json.loads(sys.argv[2]) if name in sys.modules], out.getvalue()])
print(json.dumps(found))
"""


def test_commands_that_need_no_model_import_nothing_heavy(tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", DRIVER, json.dumps(list(LIGHT)), json.dumps(HEAVY)]
    done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=120)
    for (command, expected), (code, heavy, out) in zip(LIGHT.items(), json.loads(done.stdout), strict=True):
        assert not heavy, f"alignrun {command} imports {heavy}"
        assert code == expected, (command, out)


def test_configurations_are_the_classes_that_algorithms_and_preferences_name() -> None:
    assert {name: kind.config_class for name, kind in discover().items()} == config_classes("algo")
    assert {name: kind.config_class for name, kind in preferences.discover().items()} == config_classes("preference")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of which the modules are imported in two parts."""
    folder = tmp_path / "twoparts"
    folder.mkdir()
    (folder / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(PACKAGES, "test", "twoparts")
    for name in [name for name in sys.modules if name.startswith("twoparts")]:
        monkeypatch.delitem(sys.modules, name)
    return folder


SOURCE = '''\
"""A module."""

from __future__ import annotations

from dataclasses import dataclass as schema, field

import twoparts.heavy
from twoparts.heavy import LIGHT, Base

RUNS = []
LIMIT = 3


def limit(value: int) -> int:
    return min(value, LIMIT)


@schema
class Settings:
    name: str = "settings"
    numbers: list[int] = field(default_factory=list)

    def limited(self) -> int:
        return limit(5)


RUNS.append("rest")


class Worker(Base):
    settings = Settings

    def fail(self) -> None:
        raise ValueError
'''


def test_a_schema_and_what_it_refers_to_come_first_and_the_rest_once(package: Path) -> None:
    (package / "heavy.py").write_text("LOADED = True\nLIGHT = 1\nclass Base: pass\n")
    (package / "worker.py").write_text(SOURCE)
    module = importlib.import_module("twoparts.worker")
    assert isinstance(module, UnfinishedModule)
    assert module.__doc__ == "A module."
    settings = module.Settings
    assert settings().limited() == 3
    assert "twoparts.heavy" not in sys.modules
    assert {"RUNS", "Worker", "Base"}.isdisjoint(vars(module))
    assert not hasattr(module, "__wrapped__")
    assert isinstance(module, UnfinishedModule), "questions of the import system do not end the wait"

    from twoparts.worker import Worker  # type: ignore[import-not-found]

    assert type(module) is type(sys)
    assert Worker.settings is settings is module.Settings
    assert "twoparts.heavy" in sys.modules
    assert module.RUNS == ["rest"]
    finish(module)
    assert module.RUNS == ["rest"]
    with pytest.raises(AttributeError, match="has no attribute 'absent'"):
        _ = module.absent
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - the place is what is looked at
        Worker().fail()
    last = traceback.extract_tb(raised.value.__traceback__)[-1]
    assert (last.filename, last.line) == (str(package / "worker.py"), "raise ValueError")


def test_a_rest_that_fails_fails_again_until_it_is_fixed(package: Path) -> None:
    (package / "heavy.py").write_text("raise ImportError('no GPU')\n")
    (package / "worker.py").write_text(SOURCE)
    module = importlib.import_module("twoparts.worker")
    for _ in range(2):
        with pytest.raises(ImportError, match="no GPU"):
            _ = module.Worker
    (package / "heavy.py").write_text("LOADED = True\nLIGHT = 1\nclass Base: pass\n")
    importlib.invalidate_caches()
    assert module.Worker.__name__ == "Worker"


def test_a_module_without_a_schema_is_imported_as_ever(package: Path) -> None:
    (package / "plain.py").write_text(textwrap.dedent("VALUE = 1"))
    module = importlib.import_module("twoparts.plain")
    assert not isinstance(module.__loader__, SchemasFirstLoader)
    assert vars(module)["VALUE"] == 1


def test_large_imports_are_not_collected() -> None:
    """A full collection traverses no object of torch and transformers, and is on again during the run."""
    code = (
        "import gc\n"
        "from alignrun import cli\n"
        "with cli._quickly():\n"
        "    import torch\n"
        "    assert not gc.isenabled()\n"
        "print(gc.isenabled(), gc.get_freeze_count() > 50_000, len(gc.get_objects()) < 1_000)\n"
        "frozen = gc.get_freeze_count()\n"
        "with cli._quickly():\n"
        "    assert gc.isenabled()\n"
        "print(gc.get_freeze_count() <= frozen)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["True"] * 4
