"""Preferences over pairs of completions, one per file."""

from alignrun.discovery import install

install()
