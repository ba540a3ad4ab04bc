"""The only place where a configuration meets a class: from a typed Config to something that can run."""

from collections.abc import Callable
from dataclasses import dataclass

from alignrun.algorithms.base import ALGORITHMS, Algorithm, Tools, discover
from alignrun.config import AdapterConfig, AdapterKind, Config, ModelSource, ReferenceKind
from alignrun.data import PromptSet, load_examples
from alignrun.errors import InputError
from alignrun.evaluation.exact import GameEvaluator
from alignrun.evaluation.win_rate import WinRateEvaluator
from alignrun.memory_plan import describe, make_plan
from alignrun.models.adapters import quantization
from alignrun.models.device import resolve_device, resolve_dtype
from alignrun.models.policy import Policy
from alignrun.models.sources import load_architecture, load_tokenizer
from alignrun.preferences import PREFERENCES, Preference
from alignrun.preferences.matrix import MatrixPreference
from alignrun.types import Evaluator


@dataclass(frozen=True, slots=True)
class Assembly:
    """Everything that one run is made of."""

    policy: Policy
    algorithm: Algorithm
    prompts: PromptSet
    evaluate: Evaluator


def check(config: Config) -> None:
    """Everything about a configuration that can be refused before a model or a data set is loaded.

    Raises:
        InputError: settings that contradict each other, or hardware that is not here.
    """
    discover()
    if config.algo.name not in ALGORITHMS:
        raise InputError(
            f"config: algo.name={config.algo.name} is unknown: choose from {', '.join(sorted(ALGORITHMS))}"
        )
    if not isinstance(config.algo, ALGORITHMS[config.algo.name].config_class):
        raise InputError(f"config: algo.name cannot be changed by itself: write algo={config.algo.name}")
    preference: str = config.preference.name
    known = PREFERENCES.get(preference)
    if known is None or not isinstance(config.preference, known[0]):
        raise InputError(
            "config: preference.name cannot be changed by itself: write preference=NAME, of "
            + ", ".join(sorted(PREFERENCES))
        )
    if config.optim.warmup_steps > config.train.steps:
        raise InputError(
            f"config: optim.warmup_steps={config.optim.warmup_steps} is more than train.steps={config.train.steps}"
        )
    if config.model.source is ModelSource.game:
        if preference != "matrix":
            raise InputError("config: model=game plays a matrix game: choose preference=matrix")
        if config.generation.max_new_tokens != 1:
            raise InputError("config: model=game plays one action, of one token: set generation.max_new_tokens=1")
    plain = AdapterConfig(name=config.adapter.name)
    if config.reference.name is ReferenceKind.adapter and config.adapter != plain:
        raise InputError("config: adapter.* cannot be set with reference=adapter: the policy is a copy of that adapter")
    device = resolve_device(config.model.device)
    if config.adapter.name is AdapterKind.qlora:
        if config.model.source in (ModelSource.random, ModelSource.game):
            raise InputError(
                f"config: adapter=qlora is for real models, not model={config.model.name}: use adapter=lora"
            )
        quantization(config.adapter, device, resolve_dtype(config.model.dtype, device))


def assemble(config: Config, report: Callable[[str], None] = lambda _: None) -> Assembly:
    """Load and connect the parts, the cheap ones first, so that bad input fails before gigabytes are read.

    Args:
        config: the configuration of the run.
        report: told in a few words what is being loaded.

    Raises:
        InputError: any part is not to be had.
    """
    check(config)
    preference = build_preference(config)
    report(f"data: {config.data.name}")
    train, heldout = load_examples(config.data)
    report(f"model: {config.model.name}")
    if config.model.source is ModelSource.hub and config.model.architecture:
        report(describe(make_plan(config), config))
    tokenizer = load_tokenizer(config.model)
    architecture = load_architecture(config.model).get_text_config()
    context = int(getattr(architecture, "max_position_embeddings", 1 << 20))
    longest = context - config.generation.max_new_tokens
    if longest < 1:
        raise InputError(
            f"config: generation.max_new_tokens={config.generation.max_new_tokens} leaves no room for a prompt in the "
            f"{context} tokens of {config.model.name}: lower it"
        )
    limit = min(longest, config.data.max_prompt_tokens or longest)
    prompts, questions = (
        PromptSet.build(
            examples,
            tokenizer,
            system_prompt=config.model.system_prompt,
            max_tokens=limit,
            too_long=config.data.too_long,
            seed=config.seed,
        )
        for examples in (train, heldout)
    )
    skipped = prompts.skipped + questions.skipped
    if skipped:
        report(f"data: {skipped} prompts of more than {limit} tokens skipped")
    policy = Policy.load(config.model, config.adapter, config.reference, tokenizer, config.seed)
    algorithm = ALGORITHMS[config.algo.name](config.algo, Tools(policy, preference, config))
    return Assembly(policy, algorithm, prompts, build_evaluator(config, policy, preference, questions))


def build_preference(config: Config) -> Preference:
    """The preference that the configuration names."""
    _, builder = PREFERENCES[config.preference.name]
    return builder(config.preference)


def build_evaluator(config: Config, policy: Policy, preference: Preference, questions: PromptSet) -> Evaluator:
    """Exact measures where the model plays a game, sampled win rates otherwise."""
    if config.model.source is ModelSource.game and isinstance(preference, MatrixPreference):
        kl_tau = getattr(config.algo, "kl_tau", 0.0)
        return GameEvaluator(policy, preference.game, questions, kl_tau, config.generation.temperature)
    return WinRateEvaluator(
        policy,
        preference,
        questions,
        config.evaluation,
        config.generation.max_new_tokens,
        config.seed,
    )
