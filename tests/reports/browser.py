"""A page in a browser, where one is installed."""

import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def dump(file: Path, profile: Path) -> str:
    """The document after a browser has loaded it and run whatever it may run."""
    assert CHROMIUM
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", f"--user-data-dir={profile}",
        "--virtual-time-budget=2000", "--dump-dom", file.as_uri(),
    ]  # fmt: skip
    try:
        return subprocess.run(command, capture_output=True, check=True, timeout=120).stdout.decode()
    except (subprocess.SubprocessError, OSError) as error:
        pytest.skip(f"the browser does not start here: {error}")


def ask(html: str, question: str, folder: Path) -> str:
    """What a script says of a page, which runs its own script first and then this one, in place of its policy."""
    tell = f"<script>document.title = JSON.stringify((() => {{ {question} }})())</script>"
    file = folder / "asked.html"
    html = re.sub(r"<meta http-equiv[^>]*>", "", html)
    file.write_text(html.replace("</body>", f"{tell}</body>"), encoding="utf-8")
    found = re.search(r"<title>(.*?)</title>", dump(file, folder / "profile"), re.S)
    assert found
    return unescape(found[1])
