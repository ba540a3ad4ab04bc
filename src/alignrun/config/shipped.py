"""The location of the YAML configuration files."""

from pathlib import Path


def config_folder() -> Path:
    """The folder of YAML files: in the installed package, or `conf/` of the source tree."""
    package = Path(__file__).parents[1]
    shipped = package / "conf"
    return shipped if shipped.is_dir() else package.parents[1] / "conf"
