"""The cache by itself; test_judge.py has what the judge makes of it."""

import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

from alignrun.preferences.served import cache as answer_cache

WRITER = """
import sys
from pathlib import Path
from alignrun.preferences.served.cache import AnswerCache
cache = AnswerCache(Path(sys.argv[1]))
for number in range(200):
    cache.put(f"{sys.argv[2]} {number}", "x")
    assert cache.get(f"{sys.argv[2]} {number}") == "x"
"""


def test_several_processes_share_a_cache(tmp_path: Path) -> None:
    file = tmp_path / "answers.sqlite"
    # Loaded by its path, without the package around it, which would take its time to import torch.
    source = WRITER.replace(
        "from alignrun.preferences.served.cache import AnswerCache",
        f"import importlib.util as u; s = u.spec_from_file_location('c', {answer_cache.__file__!r})\n"
        "m = u.module_from_spec(s); s.loader.exec_module(m); AnswerCache = m.AnswerCache",
    )
    writers = [subprocess.Popen([sys.executable, "-c", source, str(file), str(n)]) for n in range(4)]
    assert [writer.wait() for writer in writers] == [0] * 4
    cache = answer_cache.AnswerCache(file)
    assert all(cache.get(f"{n} {number}") == "x" for n in range(4) for number in range(200))


def test_opening_waits_for_another_process_that_is_making_the_file(tmp_path: Path) -> None:
    file = tmp_path / "answers.sqlite"
    other = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
    other.execute("CREATE TABLE made (by TEXT)")
    other.execute("BEGIN IMMEDIATE")  # what SQLite answers "locked" to at once, however long it may wait
    threading.Timer(0.2, other.execute, ["COMMIT"]).start()
    cache = answer_cache.AnswerCache(file)
    cache.put("question", "answer")
    assert cache.get("question") == "answer"
