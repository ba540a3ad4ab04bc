"""Build a run from a typed Config: the only place that maps configurations to classes."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from alignrun import distributed
from alignrun.algorithms.base import (
    Algorithm,
    FeedbackTools,
    Measure,
    Tools,
    Trained,
    discover,
    opponent_of,
)
from alignrun.algorithms.common.feedback import FeedbackAlgorithm
from alignrun.config import Config, ModelSource, TooLong
from alignrun.data.completions import end_of_turn
from alignrun.data.dataset import Dataset
from alignrun.data.demonstrations import DemonstrationSet
from alignrun.data.encoding import Encoding
from alignrun.data.loading import load_examples, remarks
from alignrun.data.pairs import PairSet, check_labels
from alignrun.data.prompts import PromptSet
from alignrun.errors import InputError, RunError, one_line
from alignrun.evaluation.exact import GameEvaluator
from alignrun.evaluation.heldout import LikelihoodEvaluator, PairsEvaluator
from alignrun.evaluation.human_agreement import FeedbackEvaluator
from alignrun.evaluation.opponent import OpponentEvaluator
from alignrun.evaluation.together import Together
from alignrun.evaluation.truncation import truncation
from alignrun.evaluation.win_rate import WinRateEvaluator
from alignrun.launch.checks import check, check_length
from alignrun.launch.pins import Pins, take_pins
from alignrun.models.backbone import Backbone
from alignrun.models.cards import Training
from alignrun.models.device import free_memory, resolve
from alignrun.models.policy import Policy
from alignrun.models.saving import check_saving
from alignrun.models.scorer import Scorer
from alignrun.models.sources import context_length, load_architecture, load_tokenizer, vocabulary_size
from alignrun.planning.automatic import choose
from alignrun.preferences import base as preferences
from alignrun.preferences.base import Preference, build_preference
from alignrun.preferences.matrix import MatrixPreference
from alignrun.security.text import counted
from alignrun.types import Evaluation, Evaluator, Example

LENGTHS = 1000
"""Rows whose lengths are looked at for the memory plan."""


@dataclass(frozen=True, slots=True)
class Assembly:
    """The parts of a run."""

    trained: Trained
    """The policy, or the feedback model."""
    algorithm: Algorithm
    data: Dataset[Any]
    evaluate: Evaluator
    pins: Pins
    """Digests of the run's inputs."""
    config: Config
    """The configuration, with its number of steps and the values that were chosen for `auto`."""


@contextlib.contextmanager
def memory_errors(config: Config) -> Iterator[None]:
    """Turn out-of-memory errors into one line."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise RunError(
            f"out of memory ({one_line(error, 120)}): lower train.micro_batch_size (now "
            f"{config.train.micro or config.train.batch_size}), evaluation.batch_size (now "
            f"{config.evaluation.batch_size}) or generation.batch_size, or use "
            "model.gradient_checkpointing=true or adapter=qlora"
        ) from error


def assemble(
    config: Config, report: Callable[[str], None] = lambda _: None, step: int = 0, examples: int = 0
) -> Assembly:
    """Load and connect the parts, the cheap ones first, so that bad input fails before gigabytes are read.

    Args:
        config: the configuration of the run.
        report: gets a few words about each part that is loaded.
        step: from which the run continues.
        examples: what it has taken until then.

    Raises:
        InputError: a part is not available.
    """
    # Check before `prepare`, where processes wait for each other.
    with distributed.raise_together(), memory_errors(config):
        check(config)
        free = free_memory(resolve(config.model, config.adapter).device)  # before anything is loaded
        kind, judging = discover()[config.algo.name], preferences.discover()[config.preference.name]
        trains_policy = not issubclass(kind, FeedbackAlgorithm)
        preference = build_preference(config.preference) if trains_policy and not judging.on_base else None
        report(f"data: {config.data.name}")
        loaded = load_examples(config.data, judging.columns(config.preference) if trains_policy else ())
        for line in remarks(loaded):
            report(line)
        if preference is not None:
            preference.check(chain(loaded.train, loaded.heldout))
        report(f"model: {config.model.name}")
        encoding = make_encoding(config)
        lazily = encoding if kind.precomputes(config) else replace(encoding, drawn=report)
        data = kind.dataset(config.algo, loaded.train, lazily)
        heldout = kind.dataset(config.algo, loaded.heldout, encoding)
        if data.refused + heldout.refused:
            report(f"data: skipped {counted(data.refused + heldout.refused, 'row')} that the model cannot read")
        if data.skipped + heldout.skipped:
            report(f"data: skipped {counted(data.skipped + heldout.skipped, 'example')}, too long")
        if isinstance(data, PairSet):
            check_labels(data.examples)
        for note in data.notes() if isinstance(data, DemonstrationSet) else ():
            report(f"data: {note}")
        config = settled(config, len(data), step, examples)
        if config.train.epochs is not None:
            epochs = counted(config.train.epochs, "epoch").replace(".0 ", " ")
            report(f"train: {epochs} of {counted(len(data), 'row')}: {counted(config.train.steps, 'step')}")
        config = automatic(config, data, free, report)
        trained = load_trained(config, encoding.tokenizer)
        check_saving(trained.describe)
        trainable = sum(weight.numel() for weight in trained.trainable().values())
        report(f"model: {trainable / 1e6:,.1f}M parameters trained")
        for note in trained.backbone.notes:
            report(note)
        if isinstance(trained, Scorer):
            algorithm = kind(config.algo, FeedbackTools(trained, config))
            encode = partial(kind.dataset, config.algo, encoding=skipping(encoding))
            evaluator = FeedbackEvaluator(algorithm, heldout, encode, trained.device, config)
            return Assembly(trained, algorithm, data, evaluator, take_pins(config, loaded, trained.backbone), config)
        policy = trained
        if preference is None:
            preference = build_preference(config.preference, policy.backbone)
            preference.check(chain(loaded.train, loaded.heldout))
        pins = take_pins(config, loaded, policy.backbone, preference)
        algorithm = kind(config.algo, Tools(policy, preference, config))
        for note in algorithm.notes():
            report(note)
    if kind.precomputes(config):
        report(f"reference: log-probabilities of {counted(len(data) + len(heldout), 'pair')}")
    data, heldout = algorithm.prepare(data), algorithm.prepare(heldout)
    questions = distinct_prompts(loaded.heldout)
    evaluate = build_evaluator(config, policy, preference, algorithm, heldout, questions, encoding)
    return Assembly(trained, algorithm, data, evaluate, pins, config)


def settled(config: Config, rows: int, step: int = 0, examples: int = 0) -> Config:
    """The configuration with the steps that its epochs take on this many rows. Raises InputError for a warm-up that is
    longer."""
    config = replace(config, train=replace(config.train, steps=config.train.steps_over(rows, step, examples)))
    check_length(config)
    return config


def automatic(config: Config, data: Dataset[Any], free: int | None, report: Callable[[str], None]) -> Config:
    """The configuration with what `auto` stands for, planned for the longest of the data's rows.

    Args:
        config: the run.
        data: its rows.
        free: the free bytes of its GPU; None for a CPU.
        report: gets a line for each value that is chosen.
    """
    if free is None:
        return choose(config, None).config
    free = -distributed.largest(-free)  # all processes choose alike
    shards = 1
    if distributed.sharded():
        from alignrun.distributed import sharding

        shards = sharding.shards()
    choice = choose(planned_for(config, data), free, distributed.size(), shards)
    for line in choice.why:
        report(f"memory: {line}")
    chosen = choice.config
    return replace(
        config,
        model=chosen.model,
        train=replace(config.train, micro_batch_size=chosen.train.micro_batch_size),
        generation=replace(config.generation, batch_size=chosen.generation.batch_size),
    )


def planned_for(config: Config, data: Dataset[Any]) -> Config:
    """The configuration with limits at the longest prompt and the longest completion of the rows that are looked at."""
    looked_at = [data.lengths(row) for row in range(0, len(data), max(1, len(data) // LENGTHS))]
    prompt = max(lengths["prompt"] for lengths in looked_at)
    others = [length for lengths in looked_at for name, length in lengths.items() if name != "prompt"]
    completion = max(others, default=0) or config.data.max_completion_tokens
    return replace(
        config, data=replace(config.data, max_prompt_tokens=max(1, prompt), max_completion_tokens=completion)
    )


def load_trained(config: Config, tokenizer: PreTrainedTokenizerBase) -> Policy | Scorer:
    """Load the policy or feedback model as it is before the first step.

    Raises:
        InputError: the model, the adapter or the device is not available.
    """
    kind = discover()[config.algo.name]
    if issubclass(kind, FeedbackAlgorithm):
        backbone = Backbone.load(config.model, config.adapter, tokenizer, config.seed)
        return Scorer.create(backbone, config.adapter, kind.card(config), kind.embedding_size(config.algo))
    ends = []
    with contextlib.suppress(InputError):  # without a template's own end token, sampling stops at the tokenizer's
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
    """How the run's policy is trained, recorded in the files it is saved in."""
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
    """Temperature of the trained policy: that of sampling, or 1 if the algorithm learns from data alone."""
    return config.generation.temperature if discover()[config.algo.name].online else 1.0


def make_encoding(config: Config) -> Encoding:
    """The tokenizer of the model, with the length limits of its inputs.

    Raises:
        InputError: the model is not available.
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
    """The same, but skipping examples that are too long."""
    return replace(encoding, data=replace(encoding.data, too_long=TooLong.skip))


def distinct_prompts(examples: Iterable[Example]) -> list[Example]:
    """One example per prompt: pairs may share a prompt, and intervals are over prompts."""
    return list({example.text: example for example in examples}.values())


def build_evaluator(
    config: Config,
    policy: Policy,
    preference: Preference,
    algorithm: Algorithm,
    heldout: Dataset[Any],
    questions: list[Example],
    encoding: Encoding,
) -> Evaluator:
    """Build the evaluator of all measures that the algorithm asks for."""
    settings, device = config.evaluation, policy.device
    exact = config.model.source is ModelSource.game and isinstance(preference, MatrixPreference)
    if exact and (truncated := truncation(settings.top_k, settings.top_p)):
        raise InputError(
            f"config: {truncated} of evaluation truncates the distribution, but model=game is evaluated exactly, on "
            "whole distributions: leave out evaluation.top_k and evaluation.top_p"
        )
    # Data may fit the context and still leave no room for sampling after the longest prompt.
    prompts = PromptSet.build(questions, encoding if algorithm.online or exact else skipping(encoding))
    length = config.generation.max_new_tokens

    def against_reference() -> Evaluator:
        if isinstance(preference, MatrixPreference) and exact:
            return GameEvaluator(policy, preference.game, prompts, settings.temperature, algorithm.kl_weight)
        judge = None if config.preference.name == "none" else preference
        return WinRateEvaluator(policy, judge, prompts, settings, length, config.seed)

    def against_opponent() -> Evaluator:
        return OpponentEvaluator(policy, preference, prompts, settings, length, algorithm.tau(config), config.seed)

    def pairs() -> Evaluator:
        assert isinstance(heldout, PairSet)
        return PairsEvaluator(algorithm, heldout, settings.batch_size, device, settings.confidence, config.seed)

    made: dict[Measure, Callable[[], Evaluator]] = {
        Measure.policy: against_reference,
        Measure.opponent: against_opponent,
        Measure.pairs: pairs,
        Measure.loss: lambda: LikelihoodEvaluator(algorithm, heldout, settings.batch_size, device),
    }
    # The exact measures on a game include those against the opponent.
    measures = [measure for measure in algorithm.evaluators() if not (exact and measure is Measure.opponent)]
    evaluators = [made[measure]() for measure in measures]
    # The trained policy is π at one temperature; at another temperature it is another policy.
    trained_at = trained_temperature(config)
    if settings.temperature != trained_at:
        mismatch = f"{settings.temperature:g} in this evaluation, {trained_at:g} in training"
        evaluators.append(lambda: Evaluation({}, [("temperature", mismatch)]))
    return Together(evaluators)
