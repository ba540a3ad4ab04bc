"""Where the rows of a data set come from, one file a source."""

from alignrun.data.sources.base import SOURCES, Source, Split, check_source, discover, source

__all__ = ["SOURCES", "Source", "Split", "check_source", "discover", "source"]
