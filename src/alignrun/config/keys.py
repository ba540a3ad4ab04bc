"""The keys of the configuration: type, default and meaning, read from the dataclasses that type it.

The meaning of a key is the docstring under its field, or else that of its type. It is written once, there; the comments
of the YAML files and docs/config.md are made from it.
"""

import ast
import inspect
import textwrap
from collections.abc import Mapping
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from functools import cache
from itertools import pairwise
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a section."""

    name: str
    options: tuple[Any, ...]
    """The types of its values."""
    default: Any
    """`???` if the key is required."""
    meaning: str
    """One paragraph on one line; empty if undocumented."""

    @property
    def type_names(self) -> list[str]:
        """The types, readable."""
        return ["null" if option is NoneType else _name(option) for option in self.options]

    @property
    def choices(self) -> Mapping[str, str]:
        """The values of an enumeration with the meaning of each; empty for other types."""
        kinds = [option for option in self.options if isinstance(option, type) and issubclass(option, Enum)]
        return {member.name: docstrings(kind).get(member.name, "") for kind in kinds for member in kind}

    @property
    def section(self) -> type | None:
        """The class of the keys below this one, if it is a section."""
        return next((option for option in self.options if is_dataclass(option)), None)  # type: ignore[return-value]


def keys(section: type) -> list[Key]:
    """The keys of a section, `name` first, then in the order of its fields."""
    hints, documented = get_type_hints(section), docstrings(section)
    found = []
    for field in sorted(fields(section), key=lambda field: field.name != "name"):
        hint = hints[field.name]
        options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        default = field.default if field.default_factory is NO_DEFAULT else field.default_factory()
        of_type = next((summary(option) for option in options if inspect.isclass(option) and _is_ours(option)), "")
        found.append(Key(field.name, options, default, documented.get(field.name) or of_type))
    return found


def summary(documented: Any) -> str:
    """The first paragraph of a docstring, on one line."""
    return " ".join((inspect.getdoc(documented) or "").split("\n\n")[0].split())


@cache
def docstrings(owner: type) -> Mapping[str, str]:
    """The docstrings under the fields of a class and its bases, the first paragraph of each, on one line."""
    found = {"name": "The name of this choice."}
    for part in reversed([base for base in owner.__mro__ if _is_ours(base)]):
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(part))).body
        assert isinstance(definition, ast.ClassDef)
        for field, following in pairwise(definition.body):
            match field, following:
                case (
                    ast.AnnAssign(target=ast.Name(id=name)) | ast.Assign(targets=[ast.Name(id=name)]),
                    ast.Expr(value=ast.Constant(value=str(text))),
                ):
                    found[name] = " ".join(text.split("\n\n")[0].split())
    return found


def _is_ours(kind: type) -> bool:
    return is_dataclass(kind) or (issubclass(kind, Enum) and kind is not Enum)


def _name(option: Any) -> str:
    if option is Any:
        return "any"
    if get_origin(option) is not None:
        return str(option).replace("typing.", "").replace("Any", "any")
    return "section" if is_dataclass(option) else "choice" if issubclass(option, Enum) else str(option.__name__)
