"""Preferences over pairs of completions. Importing the package registers the ones that are built in."""

from alignrun.preferences import bradley_terry, function, judge, learned, matrix, none, panel, sentiment
from alignrun.preferences.base import PREFERENCES, Preference, Reward

__all__ = [
    "PREFERENCES",
    "Preference",
    "Reward",
    "bradley_terry",
    "function",
    "judge",
    "learned",
    "matrix",
    "none",
    "panel",
    "sentiment",
]
