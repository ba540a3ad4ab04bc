"""The command line: the verbs, the overrides, and the one-line errors."""

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from rich.console import Console

from alignrun import __version__
from alignrun.errors import AlignrunError, InputError, of_system
from alignrun.launch.suggestions import stray
from alignrun.security.terminal import PlainConsole, guard, say
from alignrun.security.working_directory import distrust

USAGE = """\
alignrun [key=value …]                train: algo=nash_md model=smollm2-135m unless overridden
alignrun -m key=a,b [key=value …]     sweep: one run for each combination, and a table
alignrun eval runs='[A,B]' [key=value …]  a tournament: win rates, the equilibrium, and how exploitable each policy is
alignrun exploit RUN [key=value …]    train a best response to a run's policy: a lower bound on its exploitability
alignrun resume RUN [--step N] [key=value …]  continue a stopped run, bit for bit unless a value is changed
alignrun top RUN [--once]             a live view of a run: progress, metrics as sparklines, the last completions
alignrun plan [plan.gpu=24GB] [key=value …]  parameters, predicted memory, and the batches that fit a GPU
alignrun export RUN [--merge]         a PEFT adapter, or a merged model, for transformers and vLLM
alignrun runs [DIR…] [--sort KEY]     the runs in a folder: steps, win rate, KL and state of each
alignrun diff A B [--all]             what differs between two runs: configuration, inputs and results
alignrun chat POLICY [POLICY] [--reference]  talk to a run or a model, or to two at once
alignrun generate POLICY out=FILE [key=value …]  completions in a file; format=pairs labels them for algo=dpo
    eval, exploit, resume, export, chat and generate take --trust, for other people's runs that execute code or contact
    a server
alignrun ls [GROUP]                   the available choices: algorithms, models, data, preferences, …
alignrun config [key=value …]         the whole configuration that the overrides select, as YAML
"""

OPTIONS: dict[str, dict[str, Any]] = {
    "--step": {"type": int},
    "--merge": {"action": "store_true"},
    "--to": {},
    "--once": {"action": "store_true"},
    "--interval": {"type": float, "default": 2.0},
    "--sort": {},
    "--reverse": {"action": "store_true"},
    "--all": {"action": "store_true"},
    "--reference": {"action": "store_true"},
}
"""argparse settings of the options of all commands."""
COUNTS = {"ls": "?", "runs": "*", "chat": "+"}
"""Commands that do not take exactly one of each positional argument."""


ALONE = ("ls", "plan", "config", "eval", "top", "export", "runs", "diff", "chat", "generate")
"""Commands that are one process."""
OPENS_NOTHING = {"ls", "plan", "config", "top", "runs", "diff"}
"""Commands that take nothing from a stored run that would need trust."""


def entry() -> None:
    """Entry point of the `alignrun` script and of `python -m alignrun`."""
    distrust()
    guard()
    code = main()
    if job := _job():
        job.leave(code)
    sys.exit(code)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 1 failed run, 2 bad input, 128+n stopped by signal n."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    # torch reads it once, on import. By default OpenMP's threads spin for milliseconds after every parallel region;
    # next to another busy process, threads then wait for a core that a spinning thread occupies.
    os.environ.setdefault("GOMP_SPINCOUNT", "100")
    # Without a terminal, lines are not wrapped to its width.
    console = PlainConsole(width=None if sys.stdout.isatty() else 160)
    try:
        return dispatch(arguments, console)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except Exception as error:
        if _began_with_an_interrupt(error):
            return _fail("interrupted", 130)
        if isinstance(error, AlignrunError):
            job = _job()
            return _fail(str(error), error.exit_code) if job is None or job.should_report(error) else error.exit_code
        if isinstance(error, OSError):
            return _fail(str(of_system(error)), 1)
        raise


def _began_with_an_interrupt(error: BaseException | None) -> bool:
    """Whether Ctrl-C led to an error: libraries such as OmegaConf can fail while they clean up, with another error."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


def dispatch(arguments: Sequence[str], console: Console) -> int:
    """Pass the arguments to the command that they name.

    The configuration is composed before the command is imported, so that mistakes are reported before torch is loaded.

    Raises:
        AlignrunError: the command failed.
    """
    if "--trust" in arguments:
        return _trusting([argument for argument in arguments if argument != "--trust"], console)
    verb, rest = (arguments[0], list(arguments[1:])) if arguments else ("", [])
    for argument in arguments:
        if any("\ud800" <= character <= "\udfff" for character in argument):  # a byte that Python could not decode
            raise InputError(f"{argument!a} is not UTF-8: rename the file, or type it again")
    if verb == "help" or not {"-h", "--help"}.isdisjoint(arguments):
        from alignrun.launch.verb_help import help_of

        console.print(help_of(verb) or USAGE, end="", highlight=False, markup=False, soft_wrap=True)
        return 0
    if verb == "--version":
        console.print(f"alignrun {__version__}", highlight=False)
        return 0
    alone = verb in ALONE or not {"-m", "--multirun"}.isdisjoint(arguments)
    if alone and (job := _job()) and job.launched() > 1:
        raise InputError(f"alignrun {verb} is one process: start it without accelerate launch or torchrun")
    # No command gains from tokenizer threads; the user's own setting takes precedence.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers\..*")
    if verb == "ls":
        given = _parse(verb, rest, ("group",))
        from alignrun.launch.listing import show

        show(given.group, console)
        return 0
    if verb == "plan":
        from alignrun.launch.compose import compose

        sizes = [argument for argument in rest if argument.startswith("plan.")]
        config = compose([argument for argument in rest if argument not in sizes], verb)
        from alignrun.planning.plan import gpu_sizes, show_plan

        show_plan(config, console, gpu_sizes(sizes))
        return 0
    if verb == "config":
        from alignrun.launch.compose import compose, dump

        console.print(dump(compose(rest, verb)), end="", highlight=False, markup=False, soft_wrap=True)
        return 0
    if verb == "eval":
        from alignrun.launch.compose import compose_tournament

        tournament = compose_tournament(rest)
        from alignrun.tournament.command import play

        return play(tournament, rest, console)
    if verb == "exploit":
        overrides, others = _split(rest)
        given = _parse(verb, others, ("run",))
        from alignrun.launch.train import exploit

        return exploit(given.run, overrides, console)
    if verb == "resume":
        overrides, others = _split(rest)
        given = _parse(verb, others, ("run",), ("--step",))
        from alignrun.launch.train import resume

        return resume(given.run, given.step, overrides, console)
    if verb == "top":
        given = _parse(verb, rest, ("run",), ("--once", "--interval"))
        from alignrun.top import top

        return top(given.run, given.once, given.interval, console)
    if verb == "runs":
        given = _parse(verb, rest, ("folders",), ("--sort", "--reverse"))
        from alignrun.browse.table import show_runs

        return show_runs(given.folders, given.sort, given.reverse, console)
    if verb == "diff":
        given = _parse(verb, rest, ("first", "second"), ("--all",))
        from alignrun.browse.diff import show_diff

        return show_diff(given.first, given.second, given.all, console)
    if verb == "chat":
        overrides, others = _split(rest)
        given = _parse(verb, others, ("policies",), ("--reference",))
        from alignrun.launch.compose import compose_sampling

        sampling = compose_sampling(overrides)
        from alignrun.chat.command import chat

        return chat(given.policies, given.reference, sampling, console)
    if verb == "generate":
        overrides, others = _split(rest)
        given = _parse(verb, others, ("policy",), ("--reference",))
        from alignrun.launch.compose import compose_generation

        generation = compose_generation(overrides)
        from alignrun.completions.command import generate

        generate(given.policy, given.reference, generation, console)
        return 0
    if verb == "export":
        given = _parse(verb, rest, ("run",), ("--step", "--merge", "--to"))
        from alignrun.launch.export import export

        return export(given.run, given.step, given.merge, given.to, console)
    if not {"-m", "--multirun"}.isdisjoint(arguments):
        if problem := stray([argument for argument in arguments if argument not in ("-m", "--multirun")]):
            raise InputError(problem)
        from alignrun.sweeps.sweep import sweep

        return sweep(list(arguments), console)
    if problem := stray(arguments):
        raise InputError(problem)
    from alignrun.launch.compose import compose_run

    config = compose_run(arguments)
    from alignrun.launch.train import train

    return train(config, arguments, console)


def _trusting(arguments: Sequence[str], console: Console) -> int:
    """Run a command with trust in the runs it opens."""
    from alignrun.run.trust import accepting

    if not {"-m", "--multirun"}.isdisjoint(arguments) or set(arguments[:1]) & OPENS_NOTHING:
        raise InputError(
            "--trust is for commands that open a run: resume, eval, exploit, export, chat, generate, or a single "
            "training"
        )
    with accepting(True):
        return dispatch(arguments, console)


def _job() -> ModuleType | None:
    """`alignrun.distributed` if a launcher started this process; None otherwise, to avoid importing torch."""
    if "RANK" not in os.environ:
        return None
    from alignrun import distributed

    return distributed


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split overrides from the other arguments: options, and the run, whose path may contain an equals sign.

    Anything that looks like a path is one. Otherwise the first argument that exists on disk is the path.
    """
    pairs = [place for place, argument in enumerate(arguments) if "=" in argument and not _is_path(argument)]
    rest = [argument for place, argument in enumerate(arguments) if place not in pairs]
    if not any(Path(argument).exists() for argument in rest):
        existing = [place for place in pairs if Path(arguments[place]).exists()]
        pairs = [place for place in pairs if place not in existing[:1]]
    return (
        [arguments[place] for place in pairs],
        [argument for place, argument in enumerate(arguments) if place not in pairs],
    )


def _is_path(argument: str) -> bool:
    return argument.startswith(("-", "/", ".", "~")) or "/" in argument.partition("=")[0]


def _parse(
    verb: str, arguments: Sequence[str], names: Sequence[str], options: Sequence[str] = ()
) -> argparse.Namespace:
    parser = _Parser(prog=f"alignrun {verb}", add_help=False, allow_abbrev=False)
    for name in names:
        parser.add_argument(name, nargs=COUNTS.get(verb))
    for option in options:
        parser.add_argument(option, **OPTIONS[option])
    given, others = parser.parse_known_args(arguments)
    if others and verb in ("resume", "exploit", "generate"):
        raise InputError(stray(others, verb) or "")
    if others:
        parser.error(f"unrecognized arguments: {' '.join(others)}")
    values = [getattr(given, name, None) for name in (*names, "to")]
    if any(value == "" or (isinstance(value, list) and "" in value) for value in values):
        parser.error("an argument is empty: name a folder")
    return given


class _Parser(argparse.ArgumentParser):
    """Reports argument errors on one line, like all others."""

    def error(self, message: str) -> None:  # type: ignore[override]
        raise InputError(f"{self.prog}: {message}: see `alignrun --help`")


def _fail(message: str, code: int) -> int:
    say(f"alignrun: error: {message}")
    return code
