"""The training algorithms, one per file."""

from alignrun.discovery import install

install()
