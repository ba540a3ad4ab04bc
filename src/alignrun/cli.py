"""The command line: the verbs, the overrides, and the one-line errors."""

import argparse
import gc
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from rich.console import Console

from alignrun import __version__
from alignrun.errors import AlignrunError, InputError, of_system
from alignrun.launch.commands import COMMANDS, OPTIONS, VERBS
from alignrun.launch.own_files import named, split, using
from alignrun.launch.suggestions import close_option, stray
from alignrun.security.terminal import PlainConsole, guard, say
from alignrun.security.working_directory import distrust

ALONE = (
    *("ls", "plan", "config", "data", "eval", "eval-preference", "top", "export", "runs", "diff", "chat", "generate"),
)
"""Commands of one process."""
OPENS_NOTHING = {"ls", "plan", "config", "data", "top", "runs", "diff"}
"""Commands that take nothing from a stored run that would need trust."""
HELP = {"-h", "--help"}
MULTIRUN = {"-m", "--multirun"}


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


@contextmanager
def _quickly() -> Iterator[None]:
    """Context for the first import of torch and transformers: without garbage collection, then or of their objects."""
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()  # the objects of modules stay anyway; every full collection would traverse a million of them
        gc.enable()


def dispatch(arguments: Sequence[str], console: Console) -> int:
    """Pass the arguments to the command that they name.

    The configuration is composed before the command is imported, so that mistakes are reported before torch is loaded.

    Raises:
        AlignrunError: the command failed.
    """
    if "--trust" in arguments:
        return _trusting([argument for argument in arguments if argument != "--trust"], console)
    for argument in arguments:
        if any("\ud800" <= character <= "\udfff" for character in argument):  # a byte that Python could not decode
            raise InputError(f"{argument!a} is not UTF-8: rename the file, or type it again")
    own, others = split(arguments)
    if others != list(arguments):
        with using(own):
            return dispatch(others, console)
    verb, rest = (arguments[0], list(arguments[1:])) if arguments else ("", [])
    if (not arguments and not named().configs) or verb == "help" or not HELP.isdisjoint(arguments):
        return _help(arguments, console)
    if verb == "--version":
        console.print(f"alignrun {__version__}", highlight=False)
        return 0
    alone = verb in ALONE or not MULTIRUN.isdisjoint(arguments)
    if alone and (job := _job()) and job.launched() > 1:
        raise InputError(f"alignrun {verb} is one process: start it without accelerate launch or torchrun")
    # No command gains from tokenizer threads; the user's own setting takes precedence.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers\..*")
    if verb == "cp":
        given = _parse(verb, rest)
        from alignrun.launch.copying import copy

        copy(given.choice, given.dest, console)
        return 0
    if verb == "completion":
        from alignrun.launch.completion import complete

        return complete(rest, console)
    if verb == "ls":
        given = _parse(verb, rest)
        from alignrun.launch.listing import show

        show(given.group, console)
        return 0
    if verb == "plan":
        from alignrun.launch.compose import compose, with_recipe

        hardware = [argument for argument in rest if argument.startswith("plan.")]
        config = compose(with_recipe([argument for argument in rest if argument not in hardware]), verb)
        with _quickly():
            from alignrun.planning.gpus import planned_gpus
            from alignrun.planning.show import show_plan

        show_plan(config, console, *planned_gpus(hardware))
        return 0
    if verb == "config":
        from alignrun.launch.compose import compose, dump, dump_explained, with_recipe

        shown = dump_explained if "--explain" in rest else dump
        config = compose(with_recipe([argument for argument in rest if argument != "--explain"]), verb)
        console.print(shown(config), end="", highlight=False, markup=False, soft_wrap=True)
        return 0
    if verb == "data":
        overrides, others = _split(rest)
        given = _parse(verb, others)
        from alignrun.launch.compose import compose, with_recipe

        config = compose(with_recipe(overrides), verb)
        with _quickly():
            from alignrun.launch.data_view import show_data

        show_data(config, given.examples, console)
        return 0
    if verb == "eval":
        from alignrun.launch.compose import compose_tournament

        tournament = compose_tournament(rest)
        with _quickly():
            from alignrun.tournament.command import play

        return play(tournament, [*named().arguments(), *rest], console)
    if verb == "eval-preference":
        from alignrun.launch.compose import compose_preference_evaluation

        evaluation = compose_preference_evaluation(rest)
        with _quickly():
            from alignrun.assessment.command import evaluate

        return evaluate(evaluation, [*named().arguments(), *rest], console)
    if verb == "exploit":
        overrides, others = _split(rest)
        given = _parse(verb, others)
        with _quickly():
            from alignrun.launch.train import exploit

        return exploit(given.run, overrides, console)
    if verb == "resume":
        overrides, others = _split(rest)
        given = _parse(verb, others)
        with _quickly():
            from alignrun.launch.train import resume

        return resume(given.run, given.step, overrides, console)
    if verb == "top":
        given = _parse(verb, rest)
        from alignrun.top import top

        return top(given.run, given.once, given.interval, console)
    if verb == "runs":
        given = _parse(verb, rest)
        from alignrun.browse.table import show_runs

        return show_runs(given.folders, given.sort, given.reverse, console)
    if verb == "diff":
        given = _parse(verb, rest)
        from alignrun.browse.diff import show_diff

        return show_diff(given.a, given.b, given.all, console)
    if verb == "chat":
        overrides, others = _split(rest)
        given = _parse(verb, others)
        from alignrun.launch.compose import compose_sampling

        sampling = compose_sampling(overrides)
        with _quickly():
            from alignrun.chat.command import chat

        return chat(given.policies, given.reference, sampling, console)
    if verb == "generate":
        overrides, others = _split(rest)
        given = _parse(verb, others)
        from alignrun.launch.compose import compose_generation

        generation = compose_generation(overrides)
        with _quickly():
            from alignrun.completions.command import generate

        generate(given.policy, given.reference, generation, console)
        return 0
    if verb == "export":
        given = _parse(verb, rest)
        if given.public and given.push is None:
            raise InputError("alignrun export: --public is for an upload: name it with --push OWNER/NAME")
        with _quickly():
            from alignrun.launch.export import export

        return export(given.run, given.step, given.merge, given.to, console, given.push, given.public)
    if not MULTIRUN.isdisjoint(arguments):
        overrides = [argument for argument in arguments if argument not in MULTIRUN]
        if not overrides:
            raise InputError("alignrun -m is a sweep: name its values, as in alignrun -m experiment=demo seed=1,2")
        if problem := stray(overrides):
            raise InputError(problem)
        from alignrun.sweeps.sweep import sweep

        return sweep(list(arguments), console)
    if problem := stray(arguments):
        raise InputError(problem)
    from alignrun.launch.compose import compose_run, recipe_note

    config = compose_run(arguments)
    if note := recipe_note(arguments):
        console.print(note, highlight=False, markup=False)
    with _quickly():
        from alignrun.launch.train import train

    return train(config, [*named().arguments(), *arguments], console)


def _trusting(arguments: Sequence[str], console: Console) -> int:
    """Run a command with trust in the runs it opens."""
    from alignrun.run.trust import accepting

    starts = any(argument.partition("=")[0] == "--config" for argument in arguments)  # with a run, perhaps
    if not MULTIRUN.isdisjoint(arguments) or (set(arguments[:1]) & OPENS_NOTHING and not starts):
        raise InputError(
            "--trust is for commands that open a run: resume, eval, eval-preference, exploit, export, chat, "
            "generate, or a single training"
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


def _help(arguments: Sequence[str], console: Console) -> int:
    """Print the help that the arguments ask for; in short, what alignrun is, if there are none."""
    from alignrun.launch import help as helping

    words = [argument for argument in arguments if argument not in HELP]
    if not arguments:
        helping.show_short(console)
    elif words[:1] == ["help"] and words == arguments:
        helping.show_help(_parse("help", words[1:]).topic or "", console)
    elif not words:
        helping.show_usage(console)
    elif words[0] in VERBS:
        helping.show_command(words[0], console)
    elif problem := stray([word for word in words if word not in MULTIRUN]):
        raise InputError(problem)
    else:
        helping.show_command("", console)
    return 0


def _parse(verb: str, arguments: Sequence[str]) -> argparse.Namespace:
    """The arguments of a command, but for its overrides."""
    command = COMMANDS[verb]
    parser = _Parser(prog=f"alignrun {verb}", add_help=False, allow_abbrev=False)
    for name in command.positional:
        parser.add_argument(
            name.lower(), metavar=name, nargs=command.many or ("?" if f"[{name}" in command.usage else None)
        )
    options = [option for option in command.options if option != "--trust"]
    for option in options:
        parser.add_argument(option, **OPTIONS[option].settings)
    given, others = parser.parse_known_args(arguments)
    if others and others[0].startswith("-") and (near := close_option(others[0], verb)):
        raise InputError(f"{parser.prog}: {others[0]} is not an option{near}")
    if others and command.keys:
        raise InputError(stray(others, verb) or "")
    if others:
        parser.error(f"unrecognized arguments: {' '.join(others)}")
    values = vars(given).values()
    if any(value == "" or (isinstance(value, list) and "" in value) for value in values):
        parser.error("an argument is empty: name a folder")
    return given


class _Parser(argparse.ArgumentParser):
    """Reports argument errors on one line, like all others."""

    def error(self, message: str) -> None:  # type: ignore[override]
        raise InputError(f"{self.prog}: {message}: see `{self.prog} --help`")


def _fail(message: str, code: int) -> int:
    say(f"alignrun: error: {message}")
    return code
