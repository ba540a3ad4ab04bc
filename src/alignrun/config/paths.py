"""The keys whose values may be paths, and making such values absolute."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from alignrun.config import Config

NAMES_OR_PATHS = (
    "model.path",
    "data.path",
    "data.eval_path",
    "reference.path",
    "preference.path",
    "preference.tokenizer",
    "algo.opponent",
)
"""Keys whose value is a path or a name on the hub."""
GAMES = ("preference.game", "data.game")
"""Keys whose value is a file or the name of a game."""
PATHS = ("preference.cache", "generation.server_adapter_folder", "run.dir")
"""Keys whose value is always a path, even if it does not exist yet."""
FILES = frozenset([*NAMES_OR_PATHS, *GAMES, *PATHS, "out", "hydra.sweep.dir"])
FILES |= {"model.chat_template", "preference.chat_template"}
"""All keys whose values may be paths, for completion."""


def anchored(config: Config) -> Config:
    """The configuration with all local paths made absolute, so that it is valid in any folder."""

    def placed(key: str, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        path = Path(value).expanduser()
        local = path.suffix == ".json" if key in GAMES else key in PATHS or path.exists()
        return str(path.absolute()) if local else value

    def whole(group: str, section: Any) -> Any:
        own = [key for key in (*NAMES_OR_PATHS, *GAMES, *PATHS) if key.partition(".")[0] == group]
        values = {
            name: placed(key, getattr(section, name)) for key in own if hasattr(section, name := key.split(".")[1])
        }
        if members := getattr(section, "members", None):
            values["members"] = {name: whole(group, member) for name, member in members.items()}
        return replace(section, **values)

    sections = {key.partition(".")[0] for key in (*NAMES_OR_PATHS, *GAMES, *PATHS)}
    config = replace(config, **{group: whole(group, getattr(config, group)) for group in sections})
    architecture = {
        name: placed(GAMES[0], value) if name == "game" else value for name, value in config.model.architecture.items()
    }
    return replace(config, model=replace(config.model, architecture=architecture))
