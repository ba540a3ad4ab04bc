"""Preferences over pairs of completions, one file a preference."""

from alignrun.preferences.base import PREFERENCES, Kind, Preference, Reward, discover

__all__ = ["PREFERENCES", "Kind", "Preference", "Reward", "discover"]
