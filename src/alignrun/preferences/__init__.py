"""Preferences over pairs of completions. Importing the package registers every file of it that is one."""

import importlib
import pkgutil

from alignrun.preferences.base import PREFERENCES, Preference, Reward

for _module in pkgutil.walk_packages(__path__, f"{__name__}."):
    importlib.import_module(_module.name)

__all__ = ["PREFERENCES", "Preference", "Reward"]
