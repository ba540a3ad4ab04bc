"""How a player chooses among several completions of one model, without training."""

from enum import Enum
from typing import Any

from alignrun.config.schema import require


class Selection(str, Enum):
    """The rule by which one of N completions is drawn, from the matrix P of their preferences."""

    best_of_nash = "best_of_nash"
    """From the equilibrium of P."""
    mirror = "mirror"
    """From the last of T steps of mirror descent on P, which start at the uniform distribution."""
    borda = "borda"
    """The completion that wins most often on average."""
    bradley_terry = "bradley_terry"
    """The completion of the largest Bradley-Terry strength."""


def check_selection(config: Any) -> None:
    """Check the settings of selection, which several commands share. Raises InputError."""
    require(config.candidates >= 2, "candidates", f"must be at least 2, not {config.candidates}")
    require(config.mirror_steps >= 1, "mirror_steps", f"must be at least 1, not {config.mirror_steps}")
    require(config.mirror_eta > 0, "mirror_eta", f"must be positive, not {config.mirror_eta}")


def check_unused(config: Any) -> None:
    """Refuse settings of selection where no player chooses. Raises InputError."""
    for key in ("candidates", "mirror_steps", "mirror_eta"):
        unset = getattr(config, key) == type(config).__dataclass_fields__[key].default
        require(unset, key, "is not used: no player chooses; name one as in best_of_nash:RUN")
