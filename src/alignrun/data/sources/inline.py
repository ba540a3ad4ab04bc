"""The prompts in data.prompts='[...]'."""

from alignrun.config import DataConfig
from alignrun.data.sources.base import Split, source


@source("inline", reads=("prompts",), needs="prompts", shared=True)
def read(config: DataConfig) -> Split:
    """One row for each prompt."""
    return Split([(f"data.prompts[{index}]", {"prompt": prompt}) for index, prompt in enumerate(config.prompts)])
