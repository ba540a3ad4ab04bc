from pathlib import Path

import pytest

from alignrun import cli


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of finished runs: four on texts, one of them from another, and two on a game."""
    folder = tmp_path_factory.mktemp("tournament")
    smoke = ["experiment=smoke", "optim.learning_rate=0.05", "model.dtype=float32"]
    for name, overrides in {
        "a": [*smoke],
        "b": [*smoke, "algo.mix_beta=1"],
        "judged_otherwise": [*smoke, "preference=sentiment"],
        "from_a": [*smoke, "reference=adapter", f"reference.path={folder / 'a'}"],
        "nash": ["experiment=game", "train.steps=60"],
        "greedy": ["experiment=game", "algo.mix_beta=1", "train.steps=60"],
    }.items():
        assert cli.main([*overrides, f"run.dir={folder / name}"]) == 0
    return folder


@pytest.fixture(autouse=True)
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGNRUN_CACHE", str(tmp_path / "cache"))
