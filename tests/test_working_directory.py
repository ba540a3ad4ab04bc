"""A folder that somebody else has filled: nothing in it runs because a command is started there."""

import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import alignrun
from alignrun.errors import InputError, RunError
from alignrun.evaluation.plots import reliability_plot
from alignrun.preferences.function import FunctionConfig, build, import_function
from alignrun.reports.svg import inline
from alignrun.security.working_directory import distrust, elsewhere, importable

SPRUNG = "open('{ran}', 'a').write(__name__ + ' ')\n"
TRAPS = ("matplotlib", "wandb", "bitsandbytes", "random", "rich", "hydra", "torch", "logging", "not_installed")


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder full of modules that tell when they are run."""
    folder = tmp_path / "downloads"
    folder.mkdir()
    for name in TRAPS:
        (folder / f"{name}.py").write_text(SPRUNG.format(ran=tmp_path / "ran"))
    (folder / "hydra_plugins").mkdir()
    (folder / "hydra_plugins" / "trap.py").write_text(SPRUNG.format(ran=tmp_path / "ran"))
    monkeypatch.chdir(folder)
    return tmp_path / "ran"


@pytest.fixture(autouse=True)
def own_modules() -> Iterator[None]:
    """What a test imports from its folder is no other test's."""
    before, paths = set(sys.modules), list(sys.path)
    yield
    for name in set(sys.modules) - before:
        if name.startswith("theirs"):
            del sys.modules[name]
    assert sys.path == paths


def test_the_module_as_a_command_imports_nothing_from_it(hostile: Path) -> None:
    """As launchers start it: Python itself puts the folder before its own library."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    done = subprocess.run(
        [sys.executable, "-m", "alignrun", "--version"],
        env=environment | {"PYTHONPATH": str(Path(alignrun.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("alignrun ")
    assert not hostile.exists(), hostile.read_text()


def test_python_processes_of_a_run_inherit_the_distrust(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYTHONSAFEPATH", "WANDB_DISABLE_GIT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    distrust()
    assert os.environ["PYTHONSAFEPATH"] == "1"
    assert os.environ["WANDB_DISABLE_GIT"] == "true"
    monkeypatch.setenv("PYTHONSAFEPATH", "")
    distrust()
    assert os.environ["PYTHONSAFEPATH"] == "", "the user's own choice stays"


def test_our_own_function_takes_nothing_from_it(hostile: Path) -> None:
    import_function("alignrun.preferences.examples:letters")
    assert str(Path.cwd()) not in sys.path
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("not_installed")
    assert not hostile.exists()


def test_a_function_of_the_users_is_found_there_with_what_it_imports() -> None:
    Path("theirs_helper.py").write_text("def half(n): return [0.5] * n\n")
    Path("theirs.py").write_text(
        "import json, theirs_helper\n"
        "def prefer(prompts, first, second): return theirs_helper.half(len(prompts))\n"
        "def late(prompts, first, second):\n    import theirs_other\n"
    )
    Path("theirs_other.py").write_text("")
    preference = build(FunctionConfig(function="theirs:prefer"))
    assert preference(["p"], ["a"], ["b"]).tolist() == [0.5]
    assert str(Path.cwd()) not in sys.path
    with pytest.raises(RunError, match="No module named 'theirs_other': install it, or import it at the top"):
        build(FunctionConfig(function="theirs:late"))(["p"], ["a"], ["b"])


def test_an_installed_module_comes_first_and_is_named() -> None:
    Path("vaderSentiment.py").write_text("def prefer(): ...")
    with pytest.raises(InputError, match=r"has no prefer: correct the name, or rename your module .*site-packages"):
        import_function("vaderSentiment:prefer")


def test_a_failed_import_leaves_no_path() -> None:
    Path("theirs_broken.py").write_text("raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        import_function("theirs_broken:f")
    with importable(), importable():
        assert sys.path[-2:] == [str(Path.cwd())] * 2


def test_matplotlib_reads_no_settings_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It looks for them when it is imported."""
    package = tmp_path / "matplotlib"
    package.mkdir()
    (package / "__init__.py").write_text("import os\nhere = os.getcwd()\n")
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    with monkeypatch.context() as patched:
        patched.syspath_prepend(str(tmp_path))
        for draw in (lambda: inline(lambda _: None, (1, 1), "key", ""), lambda: reliability_plot(None, "")):
            with pytest.raises(ModuleNotFoundError, match=r"matplotlib\.figure"):
                draw()
            assert sys.modules.pop("matplotlib").here != str(Path.cwd())


def test_wandb_reads_no_settings_there() -> None:
    """The address to which it sends the key may stand in them."""
    from wandb.sdk.wandb_settings import Settings

    Path("wandb").mkdir()
    Path("wandb/settings").write_text("[default]\nbase_url = http://evil.example\n")
    here = Path.cwd()

    def base_url() -> str:
        settings = Settings(silent=True)
        settings.update_from_system_settings()
        return str(settings.base_url)

    assert base_url() == "http://evil.example", "it would"
    with elsewhere():
        assert base_url() != "http://evil.example"
    assert Path.cwd() == here
