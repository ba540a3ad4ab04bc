"""Trust: a stored configuration may execute code or contact a server only if the user wrote it.

A run has a signature of the settings that decide what is executed, contacted and written outside its folder, made with
a key that only this user has (HMAC-SHA256, RFC 2104). Overrides on the command line are always trusted.
"""

import contextlib
import hashlib
import hmac
import json
import os
import secrets
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from alignrun.config.shipped import config_folder
from alignrun.errors import InputError, one_line
from alignrun.security.files import open_regular, read_bytes, read_json

SIGNED = {
    "model": ("source", "path", "revision", "trust_remote_code", "package", "package_file", "fallback"),
    "reference": ("path",),
    "algo": ("opponent",),
    "data": ("source", "path", "eval_path", "subset"),
    "preference": (
        *("name", "function", "path", "url", "key_variable", "cache", "extra", "members"),
        *("revision", "trust_remote_code", "chat_template", "tokenizer"),
    ),
    "generation": ("engine", "server_url", "server_adapter_folder"),
    "tracker": ("mode", "project", "entity"),
}
"""The settings that a signature covers, by section."""
EXAMPLES = "alignrun.preferences.examples:"
"""Functions of this package, which only score texts."""
DEFAULT_KEY_VARIABLES = {"judge": "OPENAI_API_KEY", "reward_server": "REWARD_SERVER_API_KEY"}
"""The default environment variables of the keys of servers that judge, by preference."""
KEY_BYTES = 32

Values = Mapping[str, Any]
"""A configuration as nested dictionaries of plain values."""

_accepted: ContextVar[bool] = ContextVar("accepted", default=False)


@contextlib.contextmanager
def accepting(accepted: bool) -> Iterator[None]:
    """Within the context, `check_own` accepts untrusted settings if `accepted` (`--trust`)."""
    before = _accepted.set(accepted)
    try:
        yield
    finally:
        _accepted.reset(before)


def check_own(
    values: Values,
    signature: str,
    where: str,
    sections: Sequence[str] = tuple(SIGNED),
    overrides: Sequence[str] = (),
) -> None:
    """Refuse settings stored by someone else that would execute code or contact a server.

    Args:
        values: the stored configuration, or some sections of it.
        signature: the signature stored with it.
        where: its owner (a run or a file), for the message.
        sections: the sections that the command uses.
        overrides: settings from the command line, which replace stored ones and are trusted.

    Raises:
        InputError: the settings would, this user has not signed them, and `--trust` was not given.
    """
    given = {override.partition("=")[0].lstrip("+~") for override in overrides}
    kept = {
        section: _without(values.get(section) or {}, given, section) for section in sections if section not in given
    }
    asks = [ask for section, stored in kept.items() for ask in _asks(section, stored)]
    if asks and not _accepted.get() and not is_own(values, signature):
        raise InputError(
            f"{where} was not written by you on this machine and would {'; '.join(asks)}: add --trust if you trust "
            "its author"
        )


def _members(values: Values) -> dict[str, Values]:
    """The sections of a panel's members; none for another preference."""
    members = values.get("members")
    found = members.items() if isinstance(members, Mapping) else ()
    return {str(name): member for name, member in found if isinstance(member, Mapping)}


def _without(values: Values, given: Collection[str], place: str) -> Values:
    """A section without the settings that were given again; those of members only one by one, since they merge."""
    kept = {key: value for key, value in values.items() if f"{place}.{key}" not in given}
    if members := _members(values):
        kept["members"] = {name: _without(one, given, f"{place}.members.{name}") for name, one in members.items()}
    return kept


def _asks(section: str, values: Values, place: str = "") -> list[str]:
    """The risky actions of a section, each in words; `place` is where it stands, if it is a member of a panel."""
    place = place or section

    def value(name: str) -> str:
        return f"{place}.{name}={one_line(Exception(str(values.get(name))), 100)}"

    name = values.get("name")
    match section:
        case "preference" if name == "panel":
            return [
                ask for key, one in _members(values).items() for ask in _asks(section, one, f"{place}.members.{key}")
            ]
        case "model":
            asks = [f"run code of the model ({value('trust_remote_code')})"] if values.get("trust_remote_code") else []
            return asks + ([f"load a model from elsewhere ({_origin(values)})"] if _is_remote_model(values) else [])
        case "preference" if name == "function":
            function = str(values.get("function") or EXAMPLES)
            return [] if function.startswith(EXAMPLES) else [f"import and run {value('function')}"]
        case "preference" if name in DEFAULT_KEY_VARIABLES:
            asks = [f"send texts to {value('url')}"] if values.get("url") else []
            variable = values.get("key_variable")
            if variable not in (None, DEFAULT_KEY_VARIABLES[name]) or (asks and variable):
                asks.append(f"send the key in {value('key_variable')}")
            if values.get("tokenizer") and not _is_folder(str(values.get("tokenizer"))):
                asks.append(f"load a tokenizer from elsewhere ({value('tokenizer')})")
            return asks + ([f"write {value('cache')}"] if isinstance(values.get("cache"), str) else [])
        case "preference" if name not in ("bradley_terry", "learned"):  # whose path is always a run
            asks = [f"run code of the model ({value('trust_remote_code')})"] if values.get("trust_remote_code") else []
            path = str(values.get("path") or "")
            elsewhere = path and not _is_folder(path) and path not in _shipped_judges()
            return asks + ([f"load a model from elsewhere ({value('path')})"] if elsewhere else [])
        case "generation" if values.get("engine") == "server":
            asks = [f"send texts, with a key, to {value('server_url')}"] if values.get("server_url") else []
            return asks + (
                [f"write into {value('server_adapter_folder')}"] if values.get("server_adapter_folder") else []
            )
        case "data" if values.get("source") == "hub" and values.get("path"):
            return [f"load data from the hub ({value('path')})"]
        case "tracker" if values.get("mode") == "online" or values.get("entity") is not None:
            return [f"send the run to wandb ({value('entity')}, {value('project')})"]
    return []


def _origin(values: Values) -> str:
    """The source of a model, for a message."""
    names = ("path",) if values.get("source") == "hub" else ("package", "package_file", "fallback")
    return ", ".join(f"model.{name}={one_line(Exception(str(values.get(name))), 100)}" for name in names)


def _is_remote_model(values: Values) -> bool:
    """Whether loading a model may contact a hub or import a package that no shipped configuration names."""
    source, path = values.get("source"), str(values.get("path") or "")
    if source not in ("hub", "package") or (source == "hub" and not path):
        return False
    if source == "hub" and _is_folder(path):
        return False
    return _place(values) not in _shipped_models()


def _is_folder(path: str) -> bool:
    return path.startswith(("/", "./", "../", "~")) or Path(path).is_dir()


def _place(values: Values) -> tuple[Any, ...]:
    return tuple(values.get(name) for name in ("source", "path", "revision", "package", "package_file", "fallback"))


@cache
def _shipped_models() -> frozenset[tuple[Any, ...]]:
    """The sources of the models of `alignrun ls model`."""
    files = (config_folder() / "model").glob("*.yaml")
    shipped = [yaml.safe_load(file.read_text(encoding="utf-8")) for file in files]
    return frozenset(_place({"source": "hub"} | model) for model in shipped if model.get("path") != "???")


@cache
def _shipped_judges() -> frozenset[str]:
    """The models of `alignrun ls preference`."""
    files = (config_folder() / "preference").glob("*.yaml")
    return frozenset(str(yaml.safe_load(file.read_text(encoding="utf-8")).get("path")) for file in files)


def is_own(values: Values, signature: str) -> bool:
    """Whether this user has signed these settings."""
    try:
        key = _read_key()
    except InputError:
        return False
    return key is not None and hmac.compare_digest(_digest(key, values), signature.encode(errors="replace"))


def sign(values: Values) -> str:
    """The signature of a configuration. Raises InputError if the user's key cannot be read or created."""
    return _digest(_read_key() or _make_key(), values).decode()


def _digest(key: bytes, values: Values) -> bytes:
    """Digest of the signed settings. Unset ones are omitted, so a version with new settings gives the same digest."""
    sections = {name: values.get(name) or {} for name in SIGNED}
    covered = {key: value for name, section in sections.items() for key, value in _covered(name, section, name)}
    text = json.dumps(covered, sort_keys=True, default=str)
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest().encode()


def _covered(group: str, section: Values, place: str) -> Iterator[tuple[str, Any]]:
    for key in SIGNED[group]:
        if key == "members" and isinstance(section.get(key), Mapping):
            for name, member in section[key].items():
                at = f"{place}.members.{name}"
                yield from _covered(group, member, at) if isinstance(member, Mapping) else [(at, member)]
        elif section.get(key) not in (None, {}):
            yield f"{place}.{key}", section[key]


def signature_text(values: Values) -> str:
    """The text of the file in which a run keeps its signature. Raises as `sign`."""
    return json.dumps({"hmac-sha256": sign(values)}) + "\n"


def read_signature(file: Path) -> str:
    """The signature in such a file; empty if it is missing or cannot be read."""
    try:
        return str(read_json(file)["hmac-sha256"])
    except (InputError, LookupError, TypeError):
        return ""


def key_file() -> Path:
    """The path of the key: in $ALIGNRUN_CONFIG, or in `alignrun` in the user's configuration folder."""
    if named := os.environ.get("ALIGNRUN_CONFIG"):
        return Path(named).expanduser() / "signing.key"
    return Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser() / "alignrun" / "signing.key"


def _read_key() -> bytes | None:
    """The user's key; None if there is none yet. Raises InputError if it is damaged or readable by others."""
    try:
        path = key_file()
        if not path.exists():
            return None
        descriptor = open_regular(path)
        with os.fdopen(descriptor, "rb"):
            found = os.fstat(descriptor)
    except (OSError, RuntimeError) as error:
        raise InputError(f"the key that signs runs cannot be read ({one_line(error, 120)})") from None
    if found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise InputError(f"{path} must be yours and readable only by you: chmod 600 {path}, or delete it")
    key = read_bytes(path, limit=4 * KEY_BYTES)
    if len(key) != KEY_BYTES:
        raise InputError(f"{path} is damaged: delete it; runs signed with it then need --trust once")
    return key


def _make_key() -> bytes:
    """Create the key. Processes that do so at the same time all get the same key. Raises InputError as `_read_key`."""
    try:
        path = key_file()
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".signing.")  # mode 0600
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(secrets.token_bytes(KEY_BYTES))
                file.flush()
                os.fsync(file.fileno())
            with contextlib.suppress(FileExistsError):
                os.link(temporary, path)
        finally:
            Path(temporary).unlink()
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"the key that signs runs cannot be created ({one_line(error, 120)}): set ALIGNRUN_CONFIG to a "
            "writable folder"
        ) from None
    key = _read_key()
    assert key is not None
    return key
