"""Preferences over pairs of completions. Reading `PREFERENCES` registers every file of the package that is one."""

from typing import TYPE_CHECKING, Any

from alignrun.discovery import import_all, install

if TYPE_CHECKING:
    from alignrun.preferences.base import PREFERENCES, Kind, Preference, Reward, discover

__all__ = ["PREFERENCES", "Kind", "Preference", "Reward", "discover"]

install()


def __getattr__(name: str) -> Any:
    """What needs torch, imported when it is first read."""
    if name not in __all__:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    from alignrun.preferences import base

    import_all("preference")
    return getattr(base, name)
