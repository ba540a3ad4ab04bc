"""`python -m alignrun`, for launchers that start modules."""

from alignrun.cli import entry

entry()
