"""Resolve the name of a player: a run, one of its checkpoints, or a model that was not trained here."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from alignrun.algorithms.base import discover, opponent_of
from alignrun.algorithms.common.feedback import FeedbackAlgorithm
from alignrun.config import (
    AUTO,
    MODEL_TOKENS,
    AdapterConfig,
    AdapterKind,
    Config,
    Precision,
    ReferenceConfig,
    ReferenceKind,
    Selection,
)
from alignrun.errors import InputError, one_line
from alignrun.evaluation.selection import Chooser
from alignrun.launch import compose
from alignrun.launch.build import load_trained, trained_temperature
from alignrun.launch.choices import choices
from alignrun.launch.overrides import quoted
from alignrun.launch.pins import check_base
from alignrun.models.backbone import Backbone
from alignrun.models.policy import Policy
from alignrun.models.sources import load_tokenizer
from alignrun.run.directory import RunDirectory
from alignrun.run.trust import check_own, read_signature
from alignrun.security.files import read_json, refuse_links
from alignrun.training.checkpoint import Checkpoint, latest_checkpoint, load_checkpoint, restore_weights
from alignrun.types import Role

CHECKPOINT = re.compile(r"step-\d+")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True, slots=True)
class Player:
    """A policy in the tournament, before anything is loaded."""

    name: str
    source: str
    """The name that the user gave."""
    config: Config
    """The configuration from which it is loaded; for a run, its own."""
    checkpoint: Path | None
    """The weights of a run's policy; None for the reference, whose weights the configuration names."""
    trained_from: Config | None = None
    """The configuration with the reference it was trained from; None for a model that was not trained here."""
    chooser: Chooser | None = None
    """How it chooses among several completions of these weights; None if it plays its only one."""

    @property
    def role(self) -> Role:
        """The role of the loaded policy that plays."""
        return Role.reference if self.checkpoint is None else Role.policy

    @property
    def step(self) -> int | None:
        """The optimiser step of the checkpoint."""
        return None if self.checkpoint is None else int(self.checkpoint.name.removeprefix("step-").partition(".")[0])

    @property
    def temperature(self) -> float:
        """The temperature at which it was trained; 1 for a model that was not trained here."""
        return 1.0 if self.trained_from is None else trained_temperature(self.trained_from)

    @property
    def max_new_tokens(self) -> int:
        """The longest completion of its run, in tokens."""
        return MODEL_TOKENS if self.trained_from is None else self.trained_from.generation.max_new_tokens


def find_player(source: str, name: str | None = None, sections: Sequence[str] = ("model",)) -> Player:
    """The player for a path, a name of `alignrun ls model`, or a hub id.

    Args:
        source: the path or the name.
        name: the name to show.
        sections: the parts of a run's configuration that will be used.

    Raises:
        InputError: there is no such run, checkpoint or model, or another user's run needs a permission.
    """
    if rule := rule_of(source):
        raise InputError(
            f"{source} chooses among several samples, which only `alignrun eval` and `alignrun generate` do: leave out "
            f"{rule}: (a folder of this name is ./{source})"
        )
    path = Path(source).expanduser()
    if CHECKPOINT.fullmatch(path.name) and path.parent.name == "checkpoints":
        run = RunDirectory.open(path.parents[1])
        if not path.is_dir():
            raise InputError(f"{path} does not exist: see {run.checkpoints}")
        return _of_run(run, path, source, name or f"{run.path.name}@{path.name.removeprefix('step-')}", sections)
    if (path / "config.yaml").is_file():
        run = RunDirectory.open(path)
        newest = latest_checkpoint(run.checkpoints)
        if newest is None:
            raise InputError(f"{run.path} has no checkpoint yet: let the run reach one first")
        return _of_run(run, newest, source, name or run.path.name, sections)
    if (path / "adapter_config.json").is_file() and (path.parent / "config.yaml").is_file():
        return _run_export(RunDirectory.open(path.parent), path, source, name or f"{path.parent.name}/{path.name}")
    return Player(name or path.name, source, _model_config(source, path), None)


def rule_of(source: str) -> str | None:
    """The rule before the name of a policy, such as the best_of_nash of best_of_nash:RUN."""
    rule, colon, rest = source.partition(":")
    return rule if colon and rest and rule in Selection.__members__ else None


def reference_of(player: Player) -> Player:
    """The reference of a run's policy. Raises InputError for a model that was not trained here."""
    config = player.trained_from
    if config is None:
        raise InputError(f"{player.source} was not trained here and has no reference: leave out --reference")
    return Player(
        f"reference of {player.name}", f"the reference of {player.source}", config, None, config, player.chooser
    )


def _of_run(run: RunDirectory, checkpoint: Path, source: str, name: str, sections: Sequence[str]) -> Player:
    config = _config_of(run, sections)
    if issubclass(discover()[config.algo.name], FeedbackAlgorithm):
        raise InputError(f"{run.path} is a feedback model, not a policy: it can judge, with preference=NAME")
    return Player(name, source, config, checkpoint, config)


def _config_of(run: RunDirectory, sections: Sequence[str]) -> Config:
    config = compose.load(run.config_file)
    check_own(compose.plain(config), read_signature(run.signature_file), f"{run.path}", sections)
    return config


def _run_export(run: RunDirectory, folder: Path, source: str, name: str) -> Player:
    """Another policy saved by a run, such as the average of its weights: an adapter on the run's base."""
    refuse_links(run.path, [folder.name])
    config = _config_of(run, ("model",))
    reference = ReferenceConfig(name=ReferenceKind.adapter, path=str(folder))
    return Player(name, source, replace(config, reference=reference, adapter=AdapterConfig()), None, config)


def _model_config(source: str, path: Path) -> Config:
    """A configuration with the model as its reference."""
    if (path / "adapter_config.json").is_file():
        return _adapter_config(path)
    if (path / "config.json").is_file():
        return compose.compose(["model=path", f"model.path={quoted(path)}"])
    if source in choices("model") and source not in ("path", "game"):
        return compose.compose([f"model={source}"])
    local = source.startswith(("/", ".", "~")) or path.exists() or path.parent.is_dir()
    if HUB_ID.fullmatch(source) and (not local or path.parent == Path()):
        return compose.compose(["model=path", f"model.path={source}"])
    try:
        RunDirectory.open(path)
    except InputError as error:
        raise InputError(f"{error}, or a model of `alignrun ls model`, or a hub id ORG/NAME") from None
    raise InputError(f"{source} is neither a run nor a model")


def _adapter_config(folder: Path) -> Config:
    """A PEFT adapter folder, on the base that it names."""
    try:
        base = read_json((folder / "adapter_config.json").resolve())["base_model_name_or_path"]  # a link in a hub cache
    except (LookupError, TypeError) as error:
        raise InputError(f"{folder}/adapter_config.json cannot be read ({one_line(error, 100)})") from None
    if not base:
        raise InputError(f"{folder} does not say which base it is for: name its run, or a merged model")
    check_own({"model": {"source": "hub", "path": base}}, "", f"{folder}")
    return compose.compose(
        [
            "model=path",
            f"model.path={quoted(base)}",
            "reference=adapter",
            f"reference.path={quoted(folder)}",
        ]
    )


class Loader:
    """Loads players in sequence; players on the same base, with adapters of the same kind, share it."""

    def __init__(self, device: str | None = None, dtype: Precision | None = None) -> None:
        self._device, self._dtype = device, dtype
        self._loaded: tuple[Config, Policy] | None = None

    def load(self, player: Player) -> Policy:
        """The policy with the player's weights in its role; the previously loaded one must no longer be used.

        Raises:
            InputError: the model or the checkpoint is not available.
        """
        checkpoint: Checkpoint | None = None
        if player.checkpoint is not None:  # before a model is loaded, to report damage early
            checkpoint = load_checkpoint(player.checkpoint)
        config = self._adjusted(player.config)
        if self._loaded is None or not share_base(self._loaded[0], config):
            self._loaded = None  # two bases may not fit in memory
            policy = load_trained(config, load_tokenizer(config.model))
            assert isinstance(policy, Policy)
            self._loaded = config, policy
        policy = self._loaded[1]
        if checkpoint is not None and player.checkpoint is not None:
            check_base(RunDirectory(player.checkpoint.parent.parent), config, policy.backbone)
            restore_weights(policy.trainable(), checkpoint)
        return policy

    @property
    def backbone(self) -> Backbone | None:
        """The base of the last loaded player, for judges that can share it."""
        return None if self._loaded is None else self._loaded[1].backbone

    def _adjusted(self, config: Config) -> Config:
        model, adapter = config.model, config.adapter
        if self._device is not None:
            model = replace(model, device=self._device)
        if self._dtype is not None:
            model = replace(model, dtype=self._dtype)
        if adapter.name is AdapterKind.qlora and not torch.cuda.is_available():
            # The full-precision base gives the same adapter and needs no GPU.
            adapter = replace(adapter, name=AdapterKind.lora)
        return replace(config, model=model, adapter=adapter)


def share_base(one: Config, other: Config) -> bool:
    """Whether two configurations differ only in the trained weights, and in what does not change a model's output."""

    def base(config: Config) -> tuple[object, ...]:
        # On a run these are chosen by its memory.
        model = replace(config.model, gradient_checkpointing=AUTO, cuda_graphs=AUTO)
        return model, config.adapter, config.reference, config.seed, opponent_of(config)

    return base(one) == base(other)
