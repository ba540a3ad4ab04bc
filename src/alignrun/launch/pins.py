"""Digests of a run's inputs (base, data, preference): their content may change while their paths and names do not."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from alignrun.algorithms.base import opponent_of
from alignrun.config import Config, ModelSource, ReferenceKind
from alignrun.data.loading import Loaded
from alignrun.errors import InputError, one_line
from alignrun.games.files import load_game
from alignrun.models.backbone import Backbone
from alignrun.models.cards import adapter_folder
from alignrun.models.sources import locate
from alignrun.preferences.base import Preference, discover
from alignrun.preferences.feedback_model import find_card
from alignrun.preferences.matrix import MatrixConfig
from alignrun.preferences.members import named_errors
from alignrun.preferences.styles import StylesConfig
from alignrun.run.directory import RunDirectory
from alignrun.security.files import read_json

SAMPLES, SAMPLE_BYTES = 64, 1 << 20
"""A larger file of weights is hashed at this many places, this many bytes each: training changes all of them."""
SCALING = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora")
"""Settings of an adapter that, with its weights, determine its function."""


@dataclass(frozen=True, slots=True)
class Pins:
    """Digests of the inputs of a run."""

    parts: Mapping[str, str]
    """Name → digest; empty if the content is unknown."""
    changed: tuple[str, ...] = field(default=())
    """Changes that the user has accepted, each with its step."""

    def differing(self, now: "Pins") -> list[str]:
        """The names of the parts that have changed; unknown ones are ignored."""
        both = [*self.parts, *(name for name in now.parts if name not in self.parts)]
        return [name for name in both if _differ(self.parts.get(name), now.parts.get(name))]

    def text(self) -> str:
        """The text of pins.json."""
        return json.dumps(asdict(self), indent=2) + "\n"


def _differ(before: str | None, now: str | None) -> bool:
    return before != now and before != "" and now != ""


def take_pins(config: Config, loaded: Loaded, backbone: Backbone, preference: Preference | None = None) -> Pins:
    """Compute the digests of the inputs as they are now.

    Raises:
        InputError: one of the inputs cannot be read.
    """
    parts = {
        "base": backbone.fingerprint or _base_digest(config, backbone),
        "tokenizer": tokenizer_digest(backbone.tokenizer),
    }
    if config.reference.name is ReferenceKind.adapter:
        parts["reference"] = folder_digest(adapter_folder(str(config.reference.path)))
    if opponent := opponent_of(config):
        parts["opponent"] = folder_digest(adapter_folder(opponent))
    if preference is not None:
        parts |= _preference_pins(config.preference)
    parts["training data"] = loaded.train.digest
    parts["held-out data"] = loaded.heldout.digest
    return Pins(parts)


def _preference_pins(section: Any, member: str = "") -> dict[str, str]:
    """The digests of a preference's models and game, and of those of a panel's members."""
    parts: dict[str, str] = {}
    path = getattr(section, "path", None)
    if path and (kind := discover()[section.name].feedback):
        folder, card = find_card(path, kind)
        parts[f"feedback model{member}"] = _digest(folder_digest(folder), card.base, card.template)
    elif path and Path(path).expanduser().is_dir():
        parts[f"feedback model{member}"] = folder_digest(adapter_folder(path))
    if isinstance(section, MatrixConfig | StylesConfig):
        preferences = load_game(section.game).preferences
        parts[f"game{member}"] = _digest(*map(str, preferences.flatten().tolist()))
    for name, one in getattr(section, "members", {}).items():
        with named_errors(name):
            parts |= _preference_pins(one, f"{member} {name}")
    return parts


def read_pins(run: RunDirectory) -> Pins | None:
    """Read pins.json; None for a run of a version that recorded none.

    Raises:
        InputError: it is damaged.
    """
    file = run.pins_file
    if not file.is_file():
        return None
    try:
        found = read_json(file)
        parts = {str(name): str(value) for name, value in found["parts"].items()}
        return Pins(parts, tuple(map(str, found["changed"])))
    except (InputError, TypeError, LookupError, AttributeError) as error:
        raise InputError(
            f"{file} cannot be read ({one_line(error, 120)}): delete it to resume without checking the run's inputs"
        ) from None


def check_pins(now: Pins, run: RunDirectory, accepted: bool, step: int) -> Pins:
    """Compare the inputs with those the run started with; returns the new pins if equal or the change is accepted.

    Args:
        now: the current pins.
        run: the run, whose pins.json has the earlier ones.
        accepted: whether the user accepts a change.
        step: the step from which the run continues.

    Raises:
        InputError: a part has changed.
    """
    before = read_pins(run)
    if before is None or not (parts := before.differing(now)):
        return replace(now, changed=before.changed if before else ())
    if not accepted:
        raise InputError(f"{_changed(run, parts)}, or add resume.changed=accept to continue with what is there now")
    return replace(now, changed=(*before.changed, *(f"{part} from step {step}" for part in parts)))


def check_base(run: RunDirectory, config: Config, backbone: Backbone) -> None:
    """Refuse to load the weights of a run onto another base or tokenizer than it was trained with.

    Args:
        run: the run; without pins.json nothing is checked.
        config: the configuration that loaded the base.
        backbone: the current base, in any precision.

    Raises:
        InputError: the base, its tokenizer or its chat template has changed.
    """
    before = read_pins(run)
    if before is None:
        return
    now = {"tokenizer": tokenizer_digest(backbone.tokenizer), "base": backbone.fingerprint}
    made_here = config.model.source in (ModelSource.random, ModelSource.game)
    if not made_here and _differ(before.parts.get("base"), now["base"]):
        now["base"] = _base_digest(config, backbone)  # recorded this way for a quantised base
    if parts := [part for part in now if part in before.parts and _differ(before.parts[part], now[part])]:
        raise InputError(
            f"{_changed(run, parts)}, or continue from what is there with `alignrun resume {run.path} train.steps=… "
            "resume.changed=accept`"
        )


def _changed(run: RunDirectory, parts: Sequence[str]) -> str:
    verb, pronoun = ("has", "it") if len(parts) == 1 else ("have", "them")
    names = " and the ".join([*([", the ".join(parts[:-1])] if parts[:-1] else []), parts[-1]])
    return f"{run.path}: the {names} of the run {verb} changed: restore {pronoun}"


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """A digest of the tokenizer and its chat template, without its padding and truncation settings."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = json.loads(backend.to_str()) if backend is not None else tokenizer.get_vocab()
    relevant = {name: rule for name, rule in rules.items() if name not in ("padding", "truncation")}
    return _digest(json.dumps(relevant, sort_keys=True), str(tokenizer.chat_template))


def folder_digest(folder: Path) -> str:
    """A digest of the weights in a folder and of their scaling; large files are sampled. Empty without weights.

    Raises:
        InputError: a file cannot be read.
    """
    try:
        files = sorted(folder.glob("*.safetensors"))
        settings = folder / "adapter_config.json"
        scaling = json.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
        relevant = json.dumps([scaling.get(name) for name in SCALING], sort_keys=True)
        return _digest(relevant, *(f"{file.name} {_file_digest(file)}" for file in files)) if files else ""
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{folder} cannot be read ({one_line(error, 120)})") from None


def _base_digest(config: Config, backbone: Backbone) -> str:
    """The digest of a base that is not loaded as it is stored: of its files, or of its revision on the hub."""
    folder = Path(locate(config.model))
    return folder_digest(folder) if folder.is_dir() else getattr(backbone.model.config, "_commit_hash", None) or ""


def _file_digest(path: Path) -> str:
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        if size <= SAMPLES * SAMPLE_BYTES:
            digest.update(file.read())
        else:
            for sample in range(SAMPLES):
                file.seek((size - SAMPLE_BYTES) * sample // (SAMPLES - 1))
                digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()


def _digest(*texts: str) -> str:
    digest = hashlib.sha256()
    for text in texts:
        digest.update(f"{len(text)} {text}".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()
