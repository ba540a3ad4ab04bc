"""`python -m alignrun`, for launchers that start modules."""

import sys

if not sys.flags.safe_path:
    # Python puts the current directory there, before the standard library. No other import may come before this one.
    del sys.path[0]

from alignrun.cli import entry

entry()
