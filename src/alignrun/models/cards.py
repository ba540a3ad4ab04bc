"""What a saved adapter says about itself, beside PEFT's own files: alignrun.json."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from alignrun.errors import InputError, one_line
from alignrun.models.backbone import Backbone

FILE = "alignrun.json"


@dataclass(frozen=True, slots=True)
class AdapterCard:
    """What the adapter is for and which base it belongs to."""

    kind: str
    """`policy`, `reward` or `preference`."""
    base: str
    """The fingerprint of the base's weights; empty where they have none."""
    template: str = ""
    """How a feedback model's prompt and completions are put before it."""
    model: dict[str, Any] = field(default_factory=dict)
    """The model section of a feedback model's configuration, from which its base can be loaded again."""
    seed: int = 0
    """The seed of the run; random bases depend on it."""
    adapter: str = "lora"
    """`lora`, or `qlora` where the base was quantised."""


def write_card(folder: Path, card: AdapterCard) -> None:
    """Write the card into an adapter's folder."""
    (folder / FILE).write_text(json.dumps(asdict(card), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_card(folder: Path, key: str) -> AdapterCard | None:
    """The card of an adapter's folder; None where there is none, as in adapters that others have made.

    Raises:
        InputError: it is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        return AdapterCard(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{key}: {path} is damaged ({one_line(error, 120)}): export the run again") from None


def check_card(backbone: Backbone, folder: Path, kind: str, key: str) -> None:
    """Refuse an adapter that says it is something else, or was trained on other weights; it would fit in shape only.

    Raises:
        InputError: the kinds or the fingerprints differ.
    """
    card = read_card(folder, key)
    if card and card.kind != kind:
        raise InputError(f"{key}: {folder} holds a {card.kind} model and not a {kind}: name another run")
    if card and card.base and backbone.fingerprint and card.base != backbone.fingerprint:
        raise InputError(
            f"{key}: {folder} was trained on another base than model={backbone.config.name} "
            "(the fingerprints of the weights differ): use the model and the seed of its run"
        )


def adapter_folder(path: str) -> Path:
    """The adapter inside a run directory, or the folder itself."""
    folder = Path(path).expanduser()
    inside = folder / "adapter"
    return inside if inside.is_dir() else folder
