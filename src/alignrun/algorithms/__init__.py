"""Algorithms, one file each."""

from alignrun.discovery import install

install()
