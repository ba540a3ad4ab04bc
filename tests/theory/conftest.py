"""Makes the package scripts/studies importable, and no file next to it: tests have files of the same names."""

import sys
from pathlib import Path

SCRIPTS = str(Path(__file__).parents[2] / "scripts")
sys.path.append(SCRIPTS)
try:
    import studies  # noqa: F401
finally:
    sys.path.remove(SCRIPTS)
