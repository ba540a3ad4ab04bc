"""Metadata of a saved adapter or model: alignrun.json for this program, README.md for people."""

import contextlib
import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from alignrun.errors import InputError, one_line
from alignrun.models.backbone import Backbone
from alignrun.run.trust import sign
from alignrun.security.files import read_json, refuse_links

FILE = "alignrun.json"
README = "README.md"


@dataclass(frozen=True, slots=True)
class AdapterCard:
    """What the adapter is for and which base it belongs to."""

    kind: str
    """`policy`, `reward`, `preference` or `embedding`, a preference model that embeds each completion."""
    base: str
    """The fingerprint of the base's weights; empty if they have none."""
    template: str = ""
    """The template that presents a prompt and completions to a feedback model."""
    model: dict[str, Any] = field(default_factory=dict)
    """The model section of a feedback model's configuration, from which its base can be loaded again."""
    seed: int = 0
    """The seed of the run; random bases depend on it."""
    adapter: str = "lora"
    """`lora`, or `qlora` if the base was quantised."""
    temperature: float = 1.0
    """The temperature of an embedding model's logits."""
    signature: str = ""
    """The signature of the model section by the user who trained it; empty if it could not be signed."""


@dataclass(frozen=True, slots=True)
class Training:
    """How a policy was trained, for its users."""

    algorithm: str
    temperature: float
    """T of the policy π(y | x) ∝ exp(logits/T) that is trained."""
    evaluation_temperature: float
    """T at which the run's own win rate and KL are measured."""
    max_new_tokens: int
    """The longest completion in training and evaluation."""
    reference: str
    preference: str
    data: str
    seed: int
    step: int | None = None
    """The step of the weights; None for the end of a run."""


UNTRAINED = Training("none", 1.0, 1.0, 0, "base", "none", "none", 0)
"""The metadata of an untrained policy."""


def write_card(folder: Path, card: AdapterCard) -> None:
    """Write the card into an adapter's folder, signed if it names a model to load."""
    if card.model:
        with contextlib.suppress(InputError):  # without a key, even this user needs --trust
            card = replace(card, signature=sign({"model": card.model}))
    (folder / FILE).write_text(json.dumps(asdict(card), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_card(folder: Path, key: str) -> AdapterCard | None:
    """The card of an adapter's folder; None if there is none, as in adapters from other programs.

    Raises:
        InputError: it is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        card = AdapterCard(**read_json(path))
        _check_types(card)
    except (InputError, TypeError) as error:
        raise InputError(f"{key}: {path} is damaged ({one_line(error, 120)}): export the run again") from None
    return card


def _check_types(card: AdapterCard) -> None:
    """Raises TypeError if a value is not of its field's type."""
    for name, value in asdict(AdapterCard("", "")).items():
        if type(getattr(card, name)) is not type(value):
            raise TypeError(f"{name} is no {type(value).__name__}")
    if not card.temperature > 0:
        raise TypeError(f"temperature is {card.temperature}, which is not positive")
    if card.adapter not in ("lora", "qlora"):
        raise TypeError(f"adapter is {card.adapter!r}, which is neither lora nor qlora")


def check_card(backbone: Backbone, folder: Path, kind: str, key: str) -> None:
    """Refuse an adapter of another kind, or one that was trained on other weights.

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
    """The adapter inside a run directory, or the folder itself. Raises InputError if a link leads out of the run."""
    folder = Path(path).expanduser()
    inside = folder / "adapter"
    refuse_links(folder, [inside.name])
    return inside if inside.is_dir() else folder


def write_policy_readme(folder: Path, backbone: Backbone, training: Training, *, whole: bool) -> None:
    """Write the README of a policy: how it was trained, and how to load and sample it."""
    body = f"""# {training.algorithm} on {backbone.config.name}

A {"model" if whole else "LoRA adapter"}, trained by alignrun:

```yaml
{_yaml({**_base_facts(backbone), **asdict(training), "system_prompt": backbone.config.system_prompt})}
```

## Sampling

The policy that was trained is the softmax of the logits divided by T = {training.temperature:g}, with no token cut off
(`top_k=0`, `top_p=1`) and no penalty, as `generation_config.json` has it. At another temperature the same weights are
another policy. The evaluations of the run sampled at T = {training.evaluation_temperature:g}.

The chat template writes the prompts of training: conversations without a system turn get the one above, if any.

## Loading

```python
{_LOAD_WHOLE if whole else _LOAD_ADAPTER}
```
"""
    library = "transformers" if whole else "peft"
    _write_readme(folder, {"library_name": library, "pipeline_tag": "text-generation"}, backbone.base, body)


def write_feedback_readme(folder: Path, backbone: Backbone, card: AdapterCard) -> None:
    """Write the README of a feedback model: what it is and what it reads."""
    body = f"""# {card.kind} model on {backbone.config.name}

A LoRA adapter and a linear head on the hidden state of the last token (`head.safetensors`), trained by alignrun. Both
are needed, and transformers alone does not read the head. The model reads the template as one user turn:

```yaml
{_yaml({**_base_facts(backbone), "template": card.template})}
```
"""
    _write_readme(folder, {"library_name": "peft"}, backbone.base, body)


_LOAD_WHOLE = """from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(FOLDER)
model = AutoModelForCausalLM.from_pretrained(FOLDER)"""

_LOAD_ADAPTER = """from peft import PeftModel
from transformers import AutoTokenizer, GenerationConfig

tokenizer = AutoTokenizer.from_pretrained(FOLDER)
model = PeftModel.from_pretrained(base, FOLDER)  # the base as above, loaded by AutoModelForCausalLM
model.generation_config = GenerationConfig.from_pretrained(FOLDER)  # PEFT keeps that of the base otherwise"""


def _base_facts(backbone: Backbone) -> dict[str, str | None]:
    base = backbone.base or f"{backbone.config.name}, whose weights alignrun creates itself"
    return {"base": base, "revision": backbone.revision}


def _write_readme(folder: Path, front: dict[str, Any], base: str | None, body: str) -> None:
    if base and not Path(base).is_absolute():  # paths mean nothing on the hub
        front = {**front, "base_model": base}
    head = _yaml({**front, "tags": ["alignrun"]})
    (folder / README).write_text(f"---\n{head}\n---\n\n{body}", encoding="utf-8")


def _yaml(values: dict[str, Any]) -> str:
    """A line per value that is set, in JSON, which is valid YAML: no text is misread as another type."""
    there = {key: value for key, value in values.items() if value is not None}
    return "\n".join(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in there.items())
