"""Where the rows of a data set come from, one file a source."""

from alignrun.data.sources.base import Source, Split, chosen_source, discover, source

__all__ = ["Source", "Split", "chosen_source", "discover", "source"]
