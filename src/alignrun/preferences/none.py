"""No preference: for algorithms that learn from data alone."""

from collections.abc import Sequence

from torch import Tensor

from alignrun.config import schema
from alignrun.preferences.base import Preference, preference


@schema
class NoPreferenceConfig:
    """Nothing to set."""

    name: str = "none"


class NoPreference(Preference):
    """A placeholder for a preference, which is never called."""

    def __call__(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> Tensor:
        """Raises AssertionError: configurations that need a preference are refused before a run starts."""
        raise AssertionError("preference=none was asked")


@preference("none", NoPreferenceConfig)
def build(config: NoPreferenceConfig) -> Preference:
    """The preference that the configuration asks for."""
    return NoPreference()
