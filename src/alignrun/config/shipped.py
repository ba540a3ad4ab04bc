"""Where the YAML files of the configuration are."""

from pathlib import Path


def config_folder() -> Path:
    """The YAML files: inside the installed package, or `conf/` of the source tree it runs from."""
    package = Path(__file__).parents[1]
    shipped = package / "conf"
    return shipped if shipped.is_dir() else package.parents[1] / "conf"
