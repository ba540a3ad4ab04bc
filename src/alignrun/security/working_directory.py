"""The current directory is not trusted: downloads, clones and archives are where people stand when they try a run.

What a library would import or read from it is somebody else's, so it is importable only while a function of the
user's own is imported, and behind everything that is installed.
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path


def distrust() -> None:
    """From now on no Python that this process starts imports from it, and wandb runs no git in it.

    A value that the user has set stays.
    """
    os.environ.setdefault("PYTHONSAFEPATH", "1")
    os.environ.setdefault("WANDB_DISABLE_GIT", "true")  # the repository's configuration may name programs to run


@contextlib.contextmanager
def importable() -> Iterator[None]:
    """Within the context its modules can be imported, where no installed one has the name."""
    folder = str(Path.cwd())
    sys.path.append(folder)
    try:
        yield
    finally:
        del sys.path[len(sys.path) - 1 - sys.path[::-1].index(folder)]


@contextlib.contextmanager
def elsewhere() -> Iterator[None]:
    """Within the context it is alignrun's own folder, for libraries that look for settings there."""
    with contextlib.chdir(Path(__file__).parent):
        yield
