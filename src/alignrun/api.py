"""alignrun from Python: the commands as functions, with results as dataclasses and failures as exceptions.

They take the overrides of the command line as strings, and raise `InputError` for bad input and `RunError` for a run
that fails. Relative paths start in the current directory.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from alignrun import distributed
from alignrun.algorithms.stackelberg import StackelbergConfig
from alignrun.completions.command import Written
from alignrun.completions.command import generate as write_completions
from alignrun.config import ColumnsConfig, DataConfig, Precision, SamplingConfig
from alignrun.data.prompts import PromptSet
from alignrun.data.records import parse_row
from alignrun.errors import InputError, RunError, of_system
from alignrun.evaluation.completions import Drawing, draw
from alignrun.evaluation.results import Estimate, PlayerResult, TournamentResult
from alignrun.launch import compose
from alignrun.launch.build import make_encoding
from alignrun.launch.overrides import quoted
from alignrun.launch.own_files import split, using
from alignrun.launch.train import resume as resume_run
from alignrun.launch.train import train_in_folder
from alignrun.models.policy import Policy
from alignrun.reports.quantities import with_intervals
from alignrun.reports.record import read_summary
from alignrun.run.directory import RunDirectory
from alignrun.run.state import finished_step
from alignrun.run.trust import accepting
from alignrun.security.terminal import PlainConsole
from alignrun.tournament.command import hold
from alignrun.tournament.players import Loader, Player, find_player, reference_of
from alignrun.types import Message, as_turns


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """A finished run; also a path, which the other functions take."""

    path: Path
    """Its folder."""
    step: int
    """Optimiser steps."""
    metrics: Mapping[str, float]
    """The final evaluation."""
    estimates: Mapping[str, Estimate]
    """The same with intervals, where there are some."""

    @property
    def win_rate(self) -> Estimate | None:
        """P(policy ≻ reference) on held-out prompts; None if nothing judges."""
        return self.estimates.get("win_rate")

    @property
    def kl(self) -> float | None:
        """KL(policy ‖ reference), nats a completion; None if it was not measured."""
        return self.metrics.get("kl")

    @property
    def adapter(self) -> Path:
        """The trained weights for `peft.PeftModel.from_pretrained`."""
        return self.path / "adapter"

    @property
    def report(self) -> Path:
        """The run on one page."""
        return self.path / "report.html"

    def __fspath__(self) -> str:
        return str(self.path)


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """A tournament."""

    path: Path
    """Its folder."""
    result: TournamentResult
    """Every number with its interval."""

    @property
    def report(self) -> Path:
        """The tournament on one page."""
        return self.path / "report.html"

    @property
    def players(self) -> Mapping[str, PlayerResult]:
        """The policies by name."""
        return {player.name: player for player in self.result.players}

    def preference(self, first: str, second: str) -> Estimate:
        """P(first ≻ second) of two policies by name. Raises InputError for an unknown name."""
        names = list(self.players)
        for name in (first, second):
            if name not in names:
                raise InputError(f"no policy of the tournament is called {name}: choose from {', '.join(names)}")
        return self.result.matrix[names.index(first)][names.index(second)]


@dataclass(frozen=True, slots=True)
class Generated:
    """A completion."""

    prompt: str | Sequence[Message]
    """As it was given."""
    text: str
    ended: bool
    """Whether it ended by itself rather than at the length limit."""
    log_prob: float
    """log π(text | prompt) at the temperature it was sampled at, without top_k and top_p."""

    def __str__(self) -> str:
        return self.text


class LoadedPolicy:
    """A policy in memory, see `load_policy`."""

    def __init__(self, player: Player, policy: Policy) -> None:
        self._player = player
        self.policy = policy
        """The model with its adapters."""

    @property
    def name(self) -> str:
        """What it is called in tournaments."""
        return self._player.name

    @property
    def step(self) -> int | None:
        """The optimiser step of its checkpoint; None for a model or a reference."""
        return self._player.step

    def generate(
        self,
        prompts: Sequence[str | Sequence[Message]],
        *,
        samples: int = 1,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        batch_size: int = 32,
    ) -> list[Generated]:
        """Sample completions through the policy's chat template; equal arguments give equal completions on a CPU.

        Args:
            prompts: texts, or conversations as lists of {"role": …, "content": …}.
            samples: completions for each prompt; they follow each other in the result.
            max_new_tokens: the longest completion, in tokens; by default the run's, and 512 for a model.
            temperature: by default the one at which the run was trained, and 1 for a model.
            top_k: sample among the k most likely tokens; 0 keeps all, and 1 is greedy.
            top_p: sample among the most likely tokens with this total probability.
            seed: of sampling.
            batch_size: prompts decoded together.

        Raises:
            InputError: a prompt that is no text or conversation, or is too long; a setting out of range.
        """
        if isinstance(prompts, str):
            raise InputError("generate takes a list of prompts: write generate([prompt])")
        numbers = {"samples": samples, "max_new_tokens": max_new_tokens, "top_k": top_k, "batch_size": batch_size}
        for name, value in numbers.items():
            if not isinstance(value, int | None):
                raise InputError(f"{name} must be a whole number, not {value!r}")
        config = SamplingConfig(max_new_tokens, temperature, top_k, top_p, seed=seed)
        if samples < 1 or batch_size < 1:
            raise InputError(f"samples and batch_size must be at least 1, not {samples} and {batch_size}")
        if not prompts:
            return []
        drawing = Drawing(
            samples=samples,
            max_new_tokens=config.max_new_tokens or self._player.max_new_tokens,
            temperature=config.temperature or self._player.temperature,
            top_k=top_k,
            top_p=top_p,
            batch_size=batch_size,
            seed=seed,
        )
        examples = [
            parse_row({"prompt": _plain(prompt)}, f"prompts[{place}]", ColumnsConfig())
            for place, prompt in enumerate(prompts)
        ]
        run = self._player.config
        generation = replace(run.generation, max_new_tokens=drawing.max_new_tokens)
        asked = replace(run, data=DataConfig(name="prompts", source="inline"), generation=generation)
        try:
            encoded = PromptSet.build(examples, make_encoding(asked))
        except InputError as error:
            raise InputError(_for_arguments(str(error))) from None
        with _working():
            drawn = draw(self.policy, self._player.role, encoded, drawing, self.name)
        return [
            Generated(prompt, *row)
            for prompt, *rows in zip(prompts, drawn.texts, drawn.ends, drawn.log_probs, strict=True)
            for row in zip(*rows, strict=True)
        ]

    def improve(self, answers: Sequence[Generated], request: str | None = None, **settings: Any) -> list[Generated]:
        """Ask the policy to improve answers, its own or another's, as the follower of `algo=stackelberg` is trained to.

        Args:
            answers: what `generate` or `improve` returned; each prompt is followed by its answer and the request.
            request: what the user asks then; by default `algo.follower_prompt` of the run, or of `algo=stackelberg`.
            settings: those of `generate`.

        Raises:
            InputError: as `generate`.
        """
        if request is None:
            request = getattr(self._player.config.algo, "follower_prompt", StackelbergConfig.follower_prompt)
        conversations: list[Sequence[Message]] = []
        for one in answers:
            said: list[Message] = [
                {"role": "assistant", "content": one.text},
                {"role": "user", "content": request},
            ]
            conversations.append([*as_turns(one.prompt if isinstance(one.prompt, str) else tuple(one.prompt)), *said])
        return self.generate(conversations, **settings)


def train(*overrides: str, quiet: bool = False, trust: bool = False) -> TrainingResult:
    """Train, as `alignrun key=value …` does: `train("algo=nash_md", "model=tiny", "train.steps=20")`.

    Args:
        overrides: `key=value`, as on the command line; also `--config=FILE` and `--config-dir=DIR`.
        quiet: whether to print nothing.
        trust: whether runs of others that the overrides name may execute code or contact servers.

    Raises:
        InputError: bad configuration, data or model. Nothing has been changed.
        RunError: the run has failed, or was stopped by a signal; what was saved can be resumed.
    """
    with _working(trust), _files(overrides) as typed:
        config, console = compose.compose_run(typed), _console(quiet)
        if note := compose.recipe_note(typed):
            console.print(note)
        path, code = train_in_folder(config, overrides, console)
    return _result(path, code)


def resume(
    run: str | PathLike[str],
    *overrides: str,
    step: int | None = None,
    quiet: bool = False,
    trust: bool = False,
) -> TrainingResult:
    """Continue a stopped run, or a finished one with more steps, as `alignrun resume RUN` does.

    Args:
        run: its folder.
        overrides: settings that change, such as `train.steps=200`.
        step: the checkpoint to continue from; by default the newest.
        quiet: whether to print nothing.
        trust: whether a run of others may execute code or contact servers.

    Raises:
        InputError: there is nothing to resume, or an input of the run has changed.
        RunError: as `train`.
    """
    with _working(trust):
        code = resume_run(fspath(run), step, overrides, _console(quiet))
    return _result(RunDirectory(fspath(run)).path, code)


def evaluate(
    runs: Sequence[str | PathLike[str]], *overrides: str, quiet: bool = False, trust: bool = False
) -> EvaluationResult:
    """Play a tournament, as `alignrun eval runs='[…]'` does: `evaluate(["runs/a", "runs/b"], "samples_per_prompt=8")`.

    Args:
        runs: the policies: runs, checkpoints, models, or patterns such as `runs/sweep/*`. The reference joins them.
        overrides: `key=value` of the tournament.
        quiet: whether to print nothing.
        trust: whether runs of others may execute code or contact servers.

    Raises:
        InputError: a policy is not available, or the runs do not agree on what the overrides leave open.
        RunError: out of memory, or a preference that fails.
    """
    if isinstance(runs, str | PathLike):
        raise InputError("evaluate takes a list of runs: write evaluate([run])")
    arguments = [f"runs=[{','.join(quoted(fspath(run)) for run in runs)}]", *overrides]
    with _working(trust):
        folder, result = hold(compose.compose_tournament(arguments), arguments, _console(quiet))
    return EvaluationResult(folder.path, result)


def generate(
    policy: str | PathLike[str],
    out: str | PathLike[str],
    *overrides: str,
    reference: bool = False,
    quiet: bool = False,
    trust: bool = False,
) -> Written:
    """Write completions to a new file, as `alignrun generate POLICY out=FILE` does.

    Args:
        policy: a run, a checkpoint or a model.
        out: the file, which must not exist.
        overrides: `key=value`, such as `format=pairs`.
        reference: whether to sample the run's reference.
        quiet: whether to print nothing.
        trust: whether a run of others may execute code or contact servers.

    Raises:
        InputError: the policy, the data or the preference is not available, or the file exists.
        RunError: out of memory, a preference that fails, or a full disk. What is done is kept for the next attempt.
    """
    with _working(trust):
        config = compose.compose_generation([f"out={quoted(fspath(out))}", *overrides])
        return write_completions(fspath(policy), reference, config, _console(quiet))


def load_policy(
    source: str | PathLike[str],
    *,
    reference: bool = False,
    device: str | None = None,
    dtype: str | None = None,
    trust: bool = False,
) -> LoadedPolicy:
    """Load a run's policy at its newest checkpoint, a checkpoint (`RUN/checkpoints/step-N`) or a model.

    Args:
        source: the run, the checkpoint, a choice of `alignrun ls model`, a model folder or a hub id.
        reference: whether to load the run's reference instead.
        device: `cpu`, `cuda`, …; by default as the run says.
        dtype: float32, bfloat16, float16 or auto; by default as the run says.
        trust: whether a run of others may execute code or contact servers.

    Raises:
        InputError: it is not available or damaged, or one of the settings is unknown.
    """
    if dtype is not None and dtype not in Precision.__members__:
        raise InputError(f"dtype={dtype} is unknown: choose from {', '.join(Precision.__members__)}")
    with _working(trust):
        player = find_player(fspath(source))
        player = reference_of(player) if reference else player
        return LoadedPolicy(player, Loader(device, None if dtype is None else Precision[dtype]).load(player))


@contextmanager
def _files(overrides: Sequence[str]) -> Iterator[list[str]]:
    """Within the context, the user's own configuration files are in use; the overrides without them."""
    for override in overrides:
        if not isinstance(override, str):
            raise InputError(f"{override!r} is not an override: write train('algo=dpo', 'model=tiny')")
    own, rest = split(overrides)
    with using(own):
        yield rest


def _plain(prompt: Any) -> Any:
    """A conversation as a list of dictionaries, as rows of data have it; anything else as it is, for `parse_row`."""
    if not isinstance(prompt, Sequence) or isinstance(prompt, str):
        return prompt
    return [dict(turn) if isinstance(turn, Mapping) else turn for turn in prompt]


def _for_arguments(message: str) -> str:
    """The message about a prompt of `generate`, with its arguments in place of configuration keys."""
    problem, too_long, _ = message.removeprefix("data: ").partition("; set data.too_long")
    advice = "; shorten it, or pass a smaller max_new_tokens" if too_long else ""
    return problem.replace("config: generation.", "") + advice


def _result(path: Path, code: int) -> TrainingResult:
    run, problems = RunDirectory(path), list[str]()
    if code:
        raise RunError(f"{path} was stopped by signal {code - 128}: continue with alignrun.resume({str(path)!r})")
    metrics = read_summary(run, problems)
    if problems or metrics is None:
        raise RunError(f"{path} has no final metrics: {'; '.join(problems) or 'summary.json is empty'}")
    return TrainingResult(path, int(finished_step(run)), metrics, with_intervals(metrics))


@contextmanager
def _working(trust: bool = False) -> Iterator[None]:
    """Within the context, failures are our own exceptions, and FutureWarnings of transformers are hidden.

    Raises InputError in one of several processes, and RunError for a failure of the operating system.
    """
    if distributed.launched() > 1:
        raise InputError(
            "the functions of alignrun are one process: start the `alignrun` command with accelerate launch or torchrun"
        )
    try:
        with accepting(trust), warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers\..*")
            yield
    except OSError as error:
        raise of_system(error) from error


def _console(quiet: bool) -> PlainConsole:
    return PlainConsole(quiet=quiet)
