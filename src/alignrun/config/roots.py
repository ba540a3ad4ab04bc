"""The configurations of the commands, and the files under conf/ that hold their defaults."""

from alignrun.config import Config, GenerateConfig, PreferenceEvaluationConfig, SamplingConfig, TournamentConfig

ROOTS: dict[str, type] = {
    "": Config,
    "eval": TournamentConfig,
    "eval-preference": PreferenceEvaluationConfig,
    "generate": GenerateConfig,
    "chat": SamplingConfig,
}
"""Command → the class of its keys; the empty name trains."""


def command_of(root: type) -> str:
    """The command whose keys a class holds."""
    return next(command for command, kind in ROOTS.items() if kind is root)


def command_file(command: str) -> str:
    """The name of a command's file under conf/, without its ending."""
    return command.replace("-", "_") or "config"
