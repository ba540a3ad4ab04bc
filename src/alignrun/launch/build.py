"""The only place where a configuration meets a class: from a typed Config to something that can run."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from alignrun import distributed
from alignrun.algorithms.base import (
    ALGORITHMS,
    Algorithm,
    Dataset,
    Encoding,
    FeedbackTools,
    Tools,
    Trained,
    discover,
    prompt_set,
)
from alignrun.algorithms.common.feedback import FeedbackAlgorithm
from alignrun.config import AdapterConfig, AdapterKind, Config, Engine, ModelSource, ReferenceKind, TooLong
from alignrun.data import PairSet, check_labels, end_of_turn, load_examples
from alignrun.errors import InputError, RunError, one_line
from alignrun.evaluation.exact import GameEvaluator
from alignrun.evaluation.feedback import FeedbackEvaluator
from alignrun.evaluation.heldout import LikelihoodEvaluator, PairsEvaluator
from alignrun.evaluation.opponent import OpponentEvaluator
from alignrun.evaluation.together import Together
from alignrun.evaluation.truncation import truncation
from alignrun.evaluation.win_rate import WinRateEvaluator
from alignrun.launch.pins import Pins, take_pins
from alignrun.models.adapters import quantization
from alignrun.models.backbone import Backbone, check_split
from alignrun.models.cards import Training
from alignrun.models.device import resolve_device, resolve_dtype
from alignrun.models.policy import Policy
from alignrun.models.saving import check_saving
from alignrun.models.scorer import Scorer
from alignrun.models.sources import context_length, load_architecture, load_tokenizer, vocabulary_size
from alignrun.planning.plan import count_parameters, describe
from alignrun.preferences import PREFERENCES, Preference
from alignrun.preferences.matrix import MatrixPreference
from alignrun.types import Evaluation, Evaluator, Example


@dataclass(frozen=True, slots=True)
class Assembly:
    """Everything that one run is made of."""

    trained: Trained
    """The policy, or the feedback model."""
    algorithm: Algorithm
    data: Dataset
    evaluate: Evaluator
    pins: Pins
    """What the run stands on, by content."""


def check(config: Config) -> None:
    """Everything about a configuration that can be refused before a model or a data set is loaded.

    Raises:
        InputError: settings that contradict each other, or hardware that is not here.
    """
    discover()
    name: str = config.algo.name
    if name not in ALGORITHMS:
        raise InputError(f"config: algo.name={name} is unknown: choose from {', '.join(sorted(ALGORITHMS))}")
    if not isinstance(config.algo, ALGORITHMS[name].config_class):
        raise InputError(f"config: algo.name cannot be changed by itself: write algo={name}")
    preference: str = config.preference.name
    entry = PREFERENCES.get(preference)
    if entry is None or not isinstance(config.preference, entry.config_class):
        raise InputError(
            "config: preference.name cannot be changed by itself: write preference=NAME, of "
            + ", ".join(sorted(PREFERENCES))
        )
    _check_algorithm(config, name, ALGORITHMS[name])
    entry.check(config.preference)
    if config.optim.warmup_steps > config.train.steps:
        raise InputError(
            f"config: optim.warmup_steps={config.optim.warmup_steps} is more than train.steps={config.train.steps}"
        )
    minibatches = getattr(config.algo, "minibatches", 1)
    if minibatches > config.train.batch_size:
        raise InputError(
            f"config: algo.minibatches={minibatches} is more than train.batch_size={config.train.batch_size}, the "
            "prompts of which they are made"
        )
    if config.model.source is ModelSource.game:
        if preference != "matrix":
            raise InputError("config: model=game plays a matrix game: choose preference=matrix")
        if config.generation.max_new_tokens != 1:
            raise InputError("config: model=game plays one action, of one token: set generation.max_new_tokens=1")
    plain = AdapterConfig(name=config.adapter.name)
    copied = "reference=adapter" if config.reference.name is ReferenceKind.adapter else "algo.opponent"
    if (copied == "reference=adapter" or opponent_of(config)) and config.adapter != plain:
        raise InputError(f"config: adapter.* cannot be set with {copied}: the policy is a copy of that adapter")
    device = resolve_device(config.model.device)
    check_split(config.adapter)
    if (sharding := distributed.sharding()) and config.model.cuda_graphs is True and device.type == "cuda":
        raise InputError(
            f"config: model.cuda_graphs=true records no base that is split by {sharding.value}: set it to auto or false"
        )
    if config.adapter.name is AdapterKind.qlora:
        if config.model.source in (ModelSource.random, ModelSource.game):
            raise InputError(
                f"config: adapter=qlora is for real models, not model={config.model.name}: use adapter=lora"
            )
        quantization(config.adapter, device, resolve_dtype(config.model.dtype, device))


def _check_algorithm(config: Config, name: str, kind: type[Algorithm]) -> None:
    """What an algorithm that learns from data, or that trains no policy, cannot go with."""
    if kind.online and config.preference.name == "none":
        raise InputError(f"config: algo={name} needs a preference to judge what it samples: choose preference=NAME")
    if config.train.max_kl is not None and not kind.online:
        raise InputError(f"config: train.max_kl needs samples of the policy, and algo={name} draws none: leave it out")
    if config.generation.engine is Engine.server and config.adapter.name is AdapterKind.none:
        raise InputError(
            "config: generation.engine=server is given an adapter at every step: use adapter=lora or qlora"
        )
    if name == "sft" and config.model.source is ModelSource.game:
        raise InputError("config: algo=sft learns texts, and model=game has none: choose another model")
    if issubclass(kind, FeedbackAlgorithm):
        if config.adapter.name is AdapterKind.none:
            raise InputError(f"config: algo={name} trains an adapter: use adapter=lora or adapter=qlora")
        if config.reference.name is ReferenceKind.adapter:
            raise InputError(f"config: algo={name} has no reference policy: leave reference=base")
        if config.model.source is ModelSource.game:
            raise InputError(f"config: algo={name} reads texts, and model=game has none: choose another model")


@contextlib.contextmanager
def memory_errors(config: Config) -> Iterator[None]:
    """Running out of memory, in one line."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise RunError(
            f"out of memory ({one_line(error, 120)}): lower train.micro_batch_size (now "
            f"{config.train.micro_batch_size or config.train.batch_size}), evaluation.batch_size (now "
            f"{config.evaluation.batch_size}) or generation.batch_size, or use "
            "model.gradient_checkpointing=true or adapter=qlora"
        ) from error


def assemble(config: Config, report: Callable[[str], None] = lambda _: None) -> Assembly:
    """Load and connect the parts, the cheap ones first, so that bad input fails before gigabytes are read.

    Args:
        config: the configuration of the run.
        report: told in a few words what is being loaded.

    Raises:
        InputError: any part is not to be had.
    """
    # Before the first of them waits for another one in `prepare`.
    with distributed.raise_together(), memory_errors(config):
        check(config)
        kind, needs_base = ALGORITHMS[config.algo.name], PREFERENCES[config.preference.name].on_base
        trains_policy = not issubclass(kind, FeedbackAlgorithm)
        preference = build_preference(config.preference) if trains_policy and not needs_base else None
        report(f"data: {config.data.name}")
        loaded = load_examples(config.data)
        if loaded.skipped:
            report(f"data: {loaded.skipped} rows that cannot be used skipped")
        for note in loaded.notes:
            report(f"data: {note}")
        report(f"model: {config.model.name}")
        if config.model.source is ModelSource.hub and config.model.architecture:
            report(describe(count_parameters(config), config))
        encoding = make_encoding(config)
        ahead = getattr(config.algo, "precompute_reference", False)  # which reads every row before the first step
        data = kind.dataset(config.algo, loaded.train, encoding if ahead else replace(encoding, drawn=report))
        heldout = kind.dataset(config.algo, loaded.heldout, encoding)
        if data.refused + heldout.refused:
            report(f"data: {data.refused + heldout.refused} rows that the model cannot read skipped")
        if data.skipped + heldout.skipped:
            report(f"data: {data.skipped + heldout.skipped} examples that are too long skipped")
        if isinstance(data, PairSet):
            check_labels(data.examples)
        trained = load_trained(config, encoding.tokenizer)
        check_saving(trained.describe)
        for note in trained.backbone.notes:
            report(note)
        if isinstance(trained, Scorer):
            algorithm = kind(config.algo, FeedbackTools(trained, config))
            encode = partial(kind.dataset, config.algo, encoding=skipping(encoding))
            evaluator = FeedbackEvaluator(algorithm, heldout, encode, trained.device, config)
            return Assembly(trained, algorithm, data, evaluator, take_pins(config, loaded, trained.backbone))
        policy = trained
        if preference is None:
            preference = build_preference(config.preference, policy.backbone)
        preference.check([*loaded.train, *loaded.heldout])
        pins = take_pins(config, loaded, policy.backbone, preference)
        algorithm = kind(config.algo, Tools(policy, preference, config))
        for note in algorithm.notes():
            report(note)
    if getattr(config.algo, "precompute_reference", False):
        report(f"reference: log-probabilities of {len(data) + len(heldout)} pairs")
    data, heldout = algorithm.prepare(data), algorithm.prepare(heldout)
    questions = distinct_prompts(loaded.heldout)
    evaluate = build_evaluator(config, policy, preference, algorithm, heldout, questions, encoding)
    return Assembly(trained, algorithm, data, evaluate, pins)


def load_trained(config: Config, tokenizer: PreTrainedTokenizerBase) -> Policy | Scorer:
    """What the algorithm trains, as it is before the first step.

    Raises:
        InputError: the model, the adapter or the device is not to be had.
    """
    kind = ALGORITHMS[config.algo.name]
    if issubclass(kind, FeedbackAlgorithm):
        backbone = Backbone.load(config.model, config.adapter, tokenizer, config.seed)
        return Scorer.create(backbone, config.adapter, kind.card(config), kind.embedding_size(config.algo))
    ends = []
    with contextlib.suppress(InputError):  # without a mark of its own, sampling stops where the tokenizer says
        ends = [end_of_turn(tokenizer)]
    return Policy.load(
        config.model,
        config.adapter,
        config.reference,
        tokenizer,
        config.seed,
        ends,
        opponent_of(config),
        describe_training(config),
    )


def describe_training(config: Config) -> Training:
    """How the run's policy is trained, for the files that it is saved in."""
    return Training(
        algorithm=config.algo.name,
        temperature=trained_temperature(config),
        evaluation_temperature=config.evaluation.temperature,
        max_new_tokens=config.generation.max_new_tokens,
        reference=config.reference.path or config.reference.name.value,
        preference=config.preference.name,
        data=config.data.name,
        seed=config.seed,
    )


def trained_temperature(config: Config) -> float:
    """T of the policy that is trained: what is sampled at, or 1 where the algorithm learns from data alone."""
    return config.generation.temperature if ALGORITHMS[config.algo.name].online else 1.0


def opponent_of(config: Config) -> str | None:
    """The frozen policy that the algorithm trains against, where it has one beside the reference."""
    path: str | None = getattr(config.algo, "opponent", None)
    return path


def make_encoding(config: Config) -> Encoding:
    """The tokenizer of the model and the limits for what it is to read.

    Raises:
        InputError: the model is not to be had.
    """
    tokenizer, architecture = load_tokenizer(config.model), load_architecture(config.model)
    return Encoding(
        tokenizer=tokenizer,
        data=config.data,
        system_prompt=config.model.system_prompt,
        context=context_length(architecture),
        max_new_tokens=config.generation.max_new_tokens,
        seed=config.seed,
        append_end_of_turn=config.model.source is not ModelSource.game,
        rows=vocabulary_size(architecture),
    )


def skipping(encoding: Encoding) -> Encoding:
    """The same, leaving out what is too long."""
    return replace(encoding, data=replace(encoding.data, too_long=TooLong.skip))


def build_preference(section: Any, backbone: Backbone | None = None) -> Preference:
    """The preference that a section names; a learned one stands on the backbone where it can."""
    kind = PREFERENCES[section.name]
    made: Preference = kind.build(section, backbone) if kind.on_base else kind.build(section)
    return made


def distinct_prompts(examples: list[Example]) -> list[Example]:
    """One example for each prompt: several pairs may share one, and intervals are over prompts."""
    return list({example.text: example for example in examples}.values())


def build_evaluator(
    config: Config,
    policy: Policy,
    preference: Preference,
    algorithm: Algorithm,
    heldout: Dataset,
    questions: list[Example],
    encoding: Encoding,
) -> Evaluator:
    """Exact measures where the model plays a game, sampled ones otherwise; before them the loss on held-out data."""
    settings = config.evaluation
    sampled: Evaluator
    if config.model.source is ModelSource.game and isinstance(preference, MatrixPreference):
        if truncated := truncation(settings.top_k, settings.top_p):
            raise InputError(
                f"config: {truncated} of evaluation truncates what is sampled, and model=game is evaluated exactly, on "
                "whole distributions: leave out evaluation.top_k and evaluation.top_p"
            )
        prompts = prompt_set(questions, encoding)
        # The equilibrium is what online algorithms look for; offline ones answer their data.
        weight = algorithm.kl_weight if algorithm.online else float
        sampled = GameEvaluator(policy, preference.game, prompts, settings.temperature, weight)
    else:
        judge = None if config.preference.name == "none" else preference
        # Data that fit may leave no room for sampling after the longest of their prompts.
        prompts = prompt_set(questions, encoding if algorithm.online else skipping(encoding))
        length = config.generation.max_new_tokens
        sampled = WinRateEvaluator(policy, judge, prompts, settings, length, config.seed)
        if policy.has_opponent:
            kl_tau = config.algo.kl_tau
            against = OpponentEvaluator(policy, preference, prompts, settings, length, kl_tau, config.seed)
            sampled = Together([against, sampled])
    # What is trained is π at one temperature: at another it is another policy.
    trained_at = trained_temperature(config)
    if settings.temperature != trained_at:
        said = f"{settings.temperature:g} in this evaluation, {trained_at:g} in training"
        sampled = Together([sampled, lambda: Evaluation({}, [("temperature", said)])])
    if algorithm.online:
        return sampled
    if isinstance(heldout, PairSet):
        pairs = PairsEvaluator(algorithm, heldout, settings.batch_size, policy.device, settings.confidence, config.seed)
        return Together([pairs, sampled])
    return Together([LikelihoodEvaluator(algorithm, heldout, settings.batch_size, policy.device), sampled])
