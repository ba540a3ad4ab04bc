"""Checks of a configuration that need neither a model nor data."""

from collections.abc import Mapping
from typing import Any, TypeVar

from alignrun import distributed
from alignrun.algorithms.base import Algorithm, discover
from alignrun.config import (
    AdapterConfig,
    AdapterKind,
    Artifact,
    Config,
    Engine,
    ModelSource,
    Opponents,
    ReferenceKind,
    ServerKind,
)
from alignrun.errors import InputError
from alignrun.generation.server.dialect import SGLANG, VLLM, supported_rank
from alignrun.models.adapters import quantization
from alignrun.models.backbone import check_split
from alignrun.models.device import resolve
from alignrun.preferences import base as preferences

Registered = TypeVar("Registered", type[Algorithm], preferences.PreferenceKind)


def check(config: Config) -> None:
    """Refuse a bad configuration before a model or a data set is loaded.

    Raises:
        InputError: settings contradict each other, or hardware is missing.
    """
    kind = _chosen("algo", config.algo, discover())
    preference = chosen_preference(config.preference)
    kind.check(config)
    preference.check(config.preference)
    check_length(config)
    if config.model.source is ModelSource.game:
        if config.preference.name != "matrix" and not kind.judged_whole:
            raise InputError("config: model=game plays a matrix game: choose preference=matrix")
        if config.generation.max_new_tokens != 1:
            raise InputError("config: model=game plays one action, of one token: set generation.max_new_tokens=1")
    plain = AdapterConfig(name=config.adapter.name)
    copied = "reference=adapter" if config.reference.name is ReferenceKind.adapter else "algo.opponent"
    if (copied == "reference=adapter" or kind.opponent(config)) and config.adapter != plain:
        raise InputError(f"config: adapter.* cannot be set with {copied}: the policy is a copy of that adapter")
    if config.generation.engine is Engine.server and config.adapter.name is AdapterKind.none:
        raise InputError(
            "config: generation.engine=server receives an adapter at every step: use adapter=lora or qlora"
        )
    check_server(config, kind)
    check_opponents(config, kind)
    resolved = resolve(config.model, config.adapter)
    check_split(config.adapter)
    whole = config.adapter.name is AdapterKind.none
    if distributed.sharded() and whole and config.tracker.artifact is Artifact.best:
        raise InputError(
            "config: tracker.artifact=best would gather weights split by --use_fsdp at every evaluation: use "
            "tracker.artifact=end or never"
        )
    if distributed.sharded() and config.model.cuda_graphs is True and resolved.device.type == "cuda":
        raise InputError(
            "config: model.cuda_graphs=true cannot record a base sharded by --use_fsdp: set it to auto or false"
        )
    if config.adapter.name is AdapterKind.qlora:
        if config.model.source in (ModelSource.random, ModelSource.game):
            raise InputError(
                f"config: adapter=qlora is for real models, not model={config.model.name}: use adapter=lora"
            )
        quantization(config.adapter, resolved.device, resolved.dtype)


def chosen_preference(section: Any) -> preferences.PreferenceKind:
    """How the preference of a section is made. Raises InputError for a name that does not fit the section."""
    return _chosen("preference", section, preferences.discover())


def check_length(config: Config) -> None:
    """Refuse a warm-up that is longer than the run, where its length is known. Raises InputError."""
    if 0 < config.train.steps < config.optim.warmup_steps:
        warmup, steps = config.optim.warmup_steps, config.train.steps
        raise InputError(
            f"config: optim.warmup_steps={warmup} is more than train.steps={steps}, the whole run: lower it, as with "
            "optim.warmup_steps=0"
        )


def check_opponents(config: Config, kind: type[Algorithm]) -> None:
    """Refuse `generation.opponents=drafted` where no opponent can be. Raises InputError."""
    if config.generation.opponents is not Opponents.drafted:
        return
    if config.generation.engine is Engine.server:
        reason = "a rollout server drafts mixtures by itself"
    elif distributed.sharded():
        reason = "a base sharded by --use_fsdp cannot continue drafts"
    elif not any(stream.drafted for stream in kind.streams(config, 0)):
        reason = f"algo={config.algo.name} has no opponent that its samples can draft"
    elif all(stream.samples == 1 for stream in kind.streams(config, 0)):
        reason = "algo.samples_per_prompt=1 leaves no opponent that a sample has not drafted"
    else:
        return
    raise InputError(f"config: generation.opponents=drafted: {reason}: leave it out")


def check_server(config: Config, kind: type[Algorithm]) -> None:
    """Refuse what the rollout server would, before anything is loaded. Raises InputError."""
    generation = config.generation
    if generation.engine is not Engine.server or not kind.online:
        return
    dialect = SGLANG if generation.server_kind is ServerKind.sglang else VLLM
    elsewhere = "or serve it with SGLang (generation.server_kind=sglang)"
    hottest = max(
        stream.temperature or generation.temperature for streams in kind.declared(config) for stream in streams
    )
    if dialect.hottest is not None and hottest > dialect.hottest:
        lower = "generation.temperature"
        if hottest > generation.temperature:
            lower += f", of which algo={config.algo.name} samples a multiple,"
        raise InputError(
            f"config: {dialect.name} samples at temperatures up to {dialect.hottest:g}, and {hottest:g} is asked for: "
            f"lower {lower} {elsewhere}"
        )
    if supported_rank(config.adapter.rank, dialect) is None:
        raise InputError(
            f"config: {dialect.name} takes adapters of up to rank {dialect.ranks[-1]}: lower adapter.rank="
            f"{config.adapter.rank} {elsewhere}"
        )


def _chosen(group: str, section: Any, registered: Mapping[str, Registered]) -> Registered:
    """The registered entry of a section's name. Raises InputError if the section has another type."""
    kind = registered.get(section.name)
    if kind is None:
        known = ", ".join(sorted(registered))
        raise InputError(f"config: {group}.name={section.name} is unknown: write {group}=NAME, one of {known}")
    if not isinstance(section, kind.config_class):
        raise InputError(f"config: {group}.name cannot be changed by itself: write {group}={section.name}")
    return kind
