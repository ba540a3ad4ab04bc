"""The YAML files and docs/config.md are made from the dataclasses, and a choice composes to what its file shows."""

import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from alignrun.config import Config, TournamentConfig, schema
from alignrun.config.keys import Key, keys
from alignrun.config.shipped import config_folder
from alignrun.launch.overrides import section_classes

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "scripts" / "configs.py"))


def test_files_are_what_make_configs_writes(script: dict[str, Any]) -> None:
    files: dict[Path, str] = script["rendered"]()
    different = [str(path.relative_to(ROOT)) for path, text in files.items() if path.read_text("utf-8") != text]
    assert not different, "run `make configs`"
    documented = files[ROOT / "docs" / "config.md"]
    assert "| `algo.mix_beta` | `float` | `0.125` | β, the weight of μ in the opponent" in documented
    assert "| `train.micro_batch_size` | `any` | `auto` |" in documented
    assert "| `data.columns.votes` | `list[str]` | `[]` |" in documented
    assert "`cosine`: Cosine decay to 0" in documented


def documented(section: type) -> Iterator[tuple[str, Key]]:
    for key in keys(section):
        yield section.__name__, key
        if key.section:
            yield from documented(key.section)


def test_every_key_has_a_meaning_of_one_line() -> None:
    sections = {Config, TournamentConfig, *(kind for kinds in section_classes().values() for kind in kinds.values())}
    for section in sections:
        for owner, key in documented(section):
            if (owner, key.name) not in {("Config", "algo"), ("Config", "preference")}:  # which are groups
                assert 3 <= len(key.meaning) <= 116, (owner, key.name)
            assert all(key.choices.values()), (owner, key.name)


@pytest.mark.parametrize("group", ["algo", "preference"])
def test_a_file_shows_every_value_of_its_class(group: str) -> None:
    for name, kind in section_classes()[group].items():
        shown = yaml.safe_load((config_folder() / group / f"{name}.yaml").read_text("utf-8"))
        del shown["defaults"]
        assert shown.keys() == {key.name for key in keys(kind)}, name
        if "???" not in shown.values():
            assert OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind), shown)) == kind()


@schema
class Inner:
    """Some keys."""

    depth: int = 2
    """How deep."""
    width: float = 0.5
    """How wide."""


@schema
class Outer:
    """More keys."""

    label: str | None = None
    """What it is called.

    With a second paragraph.
    """
    inner: Inner = Inner()


def test_a_file_keeps_what_it_sets(script: dict[str, Any]) -> None:
    """A stale comment is written anew, a remark behind a value stays, and a default follows its class."""
    write: Callable[..., Iterator[str]] = script["_section"]
    marker = script["DEFAULTS"]
    given = ["# An old meaning.", "inner:", "  depth: 3  # measured", f"  {marker}", "  # How wide.", "  width: 0.1"]
    assert list(write(Outer, given, "")) == [
        "# Some keys.", "inner:", "  # How deep.", "  depth: 3  # measured", f"  {marker}", "  # How wide.",
        "  width: 0.5", "", marker, "# What it is called.", "label: null",
    ]  # fmt: skip
