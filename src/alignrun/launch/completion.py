"""`alignrun completion`: completes commands, options, groups, choices, keys, values and runs in a shell.

Hydra has its own completion, which composes the configuration at every press of Tab and knows no commands. This one
reads only the YAML files that the word needs, and imports neither Hydra nor torch.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from rich.console import Console

from alignrun.config.paths import FILES
from alignrun.config.roots import ROOTS, command_file
from alignrun.config.shipped import config_folder
from alignrun.errors import InputError
from alignrun.launch.choices import choice_files, choices, groups
from alignrun.launch.commands import COMMANDS, VERBS
from alignrun.launch.yaml_files import contents
from alignrun.security.text import visible

BASH = r"""_alignrun() {
    local line=${COMP_LINE:0:COMP_POINT}
    local word=${line##*[[:space:]]}
    local before=''
    # Readline breaks words at = and :, and replaces only what follows the last of them.
    [[ $COMP_WORDBREAKS == *=* && $word == *[=:]* ]] && before=${word%"${word##*[=:]}"}
    mapfile -t COMPREPLY < <(alignrun completion --line "$line" 2>/dev/null)
    COMPREPLY=("${COMPREPLY[@]#"$before"}")
}
complete -o nospace -F _alignrun alignrun
"""
ZSH = r"""#compdef alignrun
_alignrun() {
    local -a found whole begun
    local one
    found=("${(@f)$(alignrun completion --words "${(@Q)words[2,CURRENT]}" 2>/dev/null)}")
    for one in $found; do
        if [[ $one == *' ' ]]; then whole+=("${one% }"); else begun+=("$one"); fi
    done
    (( $#whole )) && compadd -- $whole
    (( $#begun )) && compadd -S '' -- $begun
}
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then _alignrun "$@"; else compdef _alignrun alignrun; fi
"""
FISH = r"""function __alignrun
    set -l words (commandline -opc) (commandline -ct)
    alignrun completion --words $words[2..-1] 2>/dev/null | string trim --right
end
complete -c alignrun -f -a '(__alignrun)'
"""
SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}
"""Shell → the script that asks for candidates."""

RUNS = ("runs", "runs/*")
"""Folders in which `RUN` is looked for: runs, and those of sweeps and tournaments."""


def complete(arguments: Sequence[str], console: Console) -> int:
    """Print the script of a shell or, for such a script, the candidates for the last word; returns the exit code.

    Raises:
        InputError: the shell is unknown.
    """
    match arguments:
        case ["--line", line]:
            found = [escaped(one) for one in candidates(words_of(line))]
        case ["--words", *words]:
            found = candidates(words)
        case [shell] if shell in SCRIPTS:
            found = SCRIPTS[shell].splitlines()
        case _:
            raise InputError(f"alignrun completion: name your shell: {', '.join(SCRIPTS)}")
    for line in found:
        console.out(line, highlight=False)
    return 0


def words_of(line: str) -> list[str]:
    """The words after `alignrun` in the line up to the cursor; the last one may be empty."""
    words = [re.sub(r"\\(.)", r"\1", word) for word in re.split(r"(?<!\\)\s+", line.lstrip())]
    start = next((place for place, word in enumerate(words) if Path(word).name == "alignrun"), 0)
    return words[start + 1 :] or [""]


def escaped(candidate: str) -> str:
    """A candidate as bash reads it, up to the space at its end."""
    text = candidate.removesuffix(" ")
    return re.sub(r"([^\w@%+=:,./~\[-])", r"\\\1", text) + candidate[len(text) :]


def candidates(words: Sequence[str]) -> list[str]:
    """What the last word can become: followed by a space where the word is complete."""
    *before, word = words or [""]
    return sorted({one for one in _candidates(before, word) if one.startswith(word)})


def _candidates(before: list[str], word: str) -> Iterator[str]:
    verb = before[0] if before and before[0] in VERBS else ""
    command = COMMANDS[verb]
    previous = before[-1] if before else ""
    if previous in ("--config", "--config-dir", "--to") or (verb == "cp" and len(before) > 1):
        yield from _paths(word, folders=previous == "--config-dir")
        return
    if word.startswith("-"):
        yield from (f"{option} " for option in (*command.options, *command.files))
        yield from ("--help ", *(["-m ", "--version "] if not before else []))
        return
    key, given, value = word.partition("=")
    if given:
        yield from (f"{key}={one}" for one in _values(key, value, before))
        return
    if not before:
        yield from (f"{name} " for name in VERBS)
    match command.positional:
        case ("RUN" | "POLICY",) if not [other for other in before[1:] if "=" not in other and other[:1] != "-"]:
            yield from _runs(word)
        case ("POLICIES",) | ("A", "B"):
            yield from _runs(word)
        case ("FOLDERS",):
            yield from _paths(word, folders=True)
        case ("GROUP",):
            yield from (f"{group} " for group in groups())
        case ("CHOICE", "DEST"):
            yield from (f"{group}/{choice} " for group in groups() for choice in choices(group))
        case ("SHELL",):
            yield from (f"{name} " for name in SCRIPTS)
        case ("TOPIC",):
            yield from (f"{name} " for name in (*VERBS, *groups()))
            yield from (_to_the_dot(f"{key} ", word) for key in _keys(word, before, ""))
    root = verb if command.keys == "own" else ""
    if root:
        yield from (f"{group}=" for group in _groups_of(root))
    elif command.keys and not command.positional:
        yield from (f"{group}=" for group in groups())
    if command.keys:
        yield from (_to_the_dot(f"{key}=", word) for key in (*command.own_keys, *_keys(word, before, root)))


def _to_the_dot(key: str, word: str) -> str:
    """A key, or its section before one is typed."""
    return key if "." in word or "." not in key else key[: key.index(".") + 1]


def _keys(word: str, before: Sequence[str], root: str) -> Iterator[str]:
    """The keys of a command of `ROOTS` that begin with a word, of the chosen algorithm and preference or of all."""
    own = contents(config_folder() / f"{command_file(root)}.yaml")
    yield from _flat({name: value for name, value in own.items() if name not in ("defaults", "hydra")}, "")
    for group in _groups_of(root):
        if word.startswith(f"{group}.") or f"{group}.".startswith(word):
            yield from (key for file in _files(group, before) for key in _flat(contents(file), f"{group}."))


def _groups_of(root: str) -> list[str]:
    """The groups that the sections of a command come from."""
    own = {field.name for field in fields(ROOTS[root])}
    return [group for group in groups() if group in own]


def _flat(content: dict[str, Any], prefix: str) -> Iterator[str]:
    for name, value in content.items():
        if name == "defaults":
            continue
        if name == "architecture" or not isinstance(value, dict) or not value:
            yield f"{prefix}{name}"
        else:
            yield from _flat(value, f"{prefix}{name}.")


def _files(group: str, before: Iterable[str]) -> list[Path]:
    """The files of a group: that of the choice on the command line, or all."""
    files = choice_files(group)
    chosen = [override.partition("=")[2] for override in before if override.startswith(f"{group}=")]
    return [files[name] for name in chosen if name in files] or list(files.values())


def _values(key: str, value: str, before: Sequence[str]) -> Iterator[str]:
    """The values of a key: choices, those of an enumeration, true and false, or paths."""
    if key in groups():
        begun = value.rpartition(",")[0]  # several, in a sweep
        yield from (f"{begun}{',' if begun else ''}{choice} " for choice in choices(key))
        return
    if key == "runs":
        begun, mark, last = re.fullmatch(r"(.*?)([\[,]?)([^\[,]*)", value).groups()  # type: ignore[union-attr]
        yield from (f"{begun}{mark}{run.strip()}" for run in _runs(last))
        return
    if key in FILES:
        yield from _paths(value)
    group, _, name = key.partition(".")
    files = (
        _files(group, before)
        if group in groups()
        else [config_folder() / f"{command_file(command)}.yaml" for command in ROOTS]
    )
    for file in files:
        yield from (f"{one} " for one in _named(file, name if group in groups() else key))


def _named(file: Path, key: str) -> list[str]:
    """The values that the comment above a key lists, or those of a switch."""
    last = key.rpartition(".")[2]
    text = file.read_text(encoding="utf-8")
    found = re.search(rf"((?:^ *#.*\n)*)^ *{re.escape(last)}: *(.*)$", text, re.MULTILINE)
    if found is None:
        return []
    comment = " ".join(line.strip(" #") for line in found[1].splitlines())
    if listed := re.search(r"One of ([\w, -]+)\.$", comment):
        return listed[1].split(", ")
    return ["true", "false"] if found[2] in ("true", "false") else []


def _paths(begun: str, folders: bool = False) -> Iterator[str]:
    """The files and folders whose paths begin like this."""
    folder, _, name = begun.rpartition("/")
    place = Path(f"{folder}/" if begun.startswith("/") and not folder else folder or ".").expanduser()
    try:
        entries = sorted(entry for entry in place.iterdir() if name.startswith(".") or not entry.name.startswith("."))
        entries = [entry for entry in entries if visible(entry.name) == entry.name]
    except OSError:
        return
    for entry in entries:
        path = f"{folder}/{entry.name}" if "/" in begun else entry.name
        if entry.is_dir():
            yield f"{path}/"
        elif not folders:
            yield f"{path} "


def _runs(begun: str) -> Iterator[str]:
    """The runs under runs/, or the folders on the way to another."""
    for pattern in RUNS:
        yield from (f"{file.parent} " for file in sorted(Path().glob(f"{pattern}/*/config.yaml")))
    if begun:
        yield from (path for path in _paths(begun, folders=True))
