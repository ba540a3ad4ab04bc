"""The current directory is not trusted: people try out runs inside downloads, clones and archives.

Libraries could import or read untrusted files from it. So it is importable only while a function of the user is
imported, and after everything that is installed.
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path


def distrust() -> None:
    """Stop child Python processes from importing from the current directory, and wandb from running git in it.

    Variables that the user has set stay.
    """
    os.environ.setdefault("PYTHONSAFEPATH", "1")
    os.environ.setdefault("WANDB_DISABLE_GIT", "true")  # the repository's configuration may name programs to run


@contextlib.contextmanager
def importable() -> Iterator[None]:
    """Within the context, modules of the current directory can be imported unless an installed one has the name."""
    folder = str(Path.cwd())
    sys.path.append(folder)
    try:
        yield
    finally:
        del sys.path[len(sys.path) - 1 - sys.path[::-1].index(folder)]


@contextlib.contextmanager
def elsewhere() -> Iterator[None]:
    """Within the context, the current directory is alignrun's own folder, for libraries that read settings there."""
    with contextlib.chdir(Path(__file__).parent):
        yield
