import atexit
import os
import shutil
import signal
import tempfile

# Set before anything imports torch, transformers or wandb: tests never reach for a network, and tiny tensors are
# slower on several threads than on one.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ["WANDB_SILENT"] = "true"
os.environ.setdefault("OMP_NUM_THREADS", "1")
# The key that signs runs is one of these tests, and not the user's.
os.environ["ALIGNRUN_CONFIG"] = tempfile.mkdtemp(prefix="alignrun-tests-")

import pytest
import quick
import torch
from helpers import load_policy

from alignrun.models.policy import Policy

quick.install()


def pytest_configure() -> None:
    atexit.register(shutil.rmtree, os.environ["ALIGNRUN_CONFIG"], ignore_errors=True)
    # A shell starts background jobs with Ctrl-C ignored, and so would be the commands that tests interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)


LONGEST = (
    *("test_processes", "test_real_model", "test_sweep_plugins", "test_soak", "test_trainer", "test_commands"),
    *("test_memory", "test_hostile", "test_resume", "test_bad_input_at_scale", "test_feedback", "test_resuming"),
    *("test_command", "test_game_pairs", "test_online_games", "test_game_lm", "test_best_response", "test_standings"),
    *("test_damaged_runs", "test_export", "test_server", "test_bad_input", "test_serving"),
)
"""Files that take longest, in order: they start first, so that no worker is left with one of them at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def private_folders(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs land in a folder of the test's own."""
    monkeypatch.chdir(tmp_path_factory.mktemp("cwd"))


@pytest.fixture(scope="session")
def policy() -> Policy:
    return load_policy()[0]
