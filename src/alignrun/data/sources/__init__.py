"""Data sources, one file each."""

from alignrun.data.sources.base import Source, Split, chosen_source, discover, source

__all__ = ["Source", "Split", "chosen_source", "discover", "source"]
