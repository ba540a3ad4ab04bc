"""The overrides that the settings of a sweep share, and those in which they differ."""

from collections.abc import Sequence

from alignrun.evaluation.results import SettingResult


def common_to_all(settings: Sequence[SettingResult]) -> tuple[str, ...]:
    """The overrides common to all settings, in order; none if there is one setting, or they are unknown."""
    if len(settings) < 2:
        return ()
    first, *others = (setting.overrides for setting in settings)
    return tuple(word for word in first if all(word in words for words in others))


def own(setting: str, overrides: Sequence[str], common: Sequence[str]) -> str:
    """The overrides of a setting that are not common to all, as typed; empty for the default."""
    return " ".join(word for word in overrides if word not in common) if overrides else setting
