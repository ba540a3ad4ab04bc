"""Find algorithms and preferences, and import their configuration without torch.

Each file contains both the `@schema` dataclass that types its YAML and the class that needs torch. The command line
needs all dataclasses to compose a configuration, but not torch. So a module of these packages runs in two parts: first
its schemas and the statements they refer to, then the rest, when one of its names is first read. Each statement runs
once, in the same module. A schema that refers to torch works too, but makes the command line slow.
"""

import ast
import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from functools import cache
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from threading import RLock
from types import ModuleType
from typing import Any

PACKAGES = {"algo": "alignrun.algorithms", "preference": "alignrun.preferences"}
"""Configuration group → package whose files type its choices."""

LOCK = RLock()


def install() -> None:
    """Import the modules of these packages in two parts from now on; each package calls it before its first one."""
    if not any(isinstance(finder, SchemasFirst) for finder in sys.meta_path):
        sys.meta_path.insert(0, SchemasFirst())


@cache
def config_classes(group: str) -> dict[str, type]:
    """Name of each choice of a group → its dataclass."""
    found = {}
    for name in _modules(PACKAGES[group]):
        spec = importlib.util.find_spec(name)
        if spec is None or not isinstance(spec.loader, SchemasFirstLoader):
            continue  # it has no schemas
        module = importlib.import_module(name)
        for own in list(vars(module).values()):
            if isinstance(own, type) and own.__module__ == module.__name__ and _is_choice(own):
                found[own.name] = own  # type: ignore[attr-defined]
    return dict(sorted(found.items()))


def _is_choice(own: type) -> bool:
    fields = getattr(own, "__dataclass_fields__", {})
    return "name" in fields and isinstance(fields["name"].default, str)


@cache
@cache
def import_all(package: str) -> None:
    """Import every module of a package and its subpackages completely, so that what they register is registered."""
    for name in _modules(package):
        finish(importlib.import_module(name))


def _modules(package: str) -> Iterator[str]:
    path = importlib.import_module(package).__path__
    for module in pkgutil.walk_packages(path, f"{package}."):
        yield module.name


class SchemasFirst(MetaPathFinder):
    """Finds the modules of these packages, and loads them with `SchemasFirstLoader`."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of a module with schemas; None for any other, which the next finders handle."""
        if not fullname.startswith(tuple(f"{package}." for package in PACKAGES.values())):
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or not isinstance(spec.loader, SourceFileLoader):
            return spec
        if b"@schema" in spec.loader.get_data(spec.loader.path):
            spec.loader = SchemasFirstLoader(fullname, spec.loader.path)
        return spec


class SchemasFirstLoader(SourceFileLoader):
    """Runs the schemas of a module; `finish` runs the rest."""

    def exec_module(self, module: ModuleType) -> None:
        """Run the first part."""
        first, rest = two_parts(ast.parse(self.get_data(self.path), self.path))
        assert module.__spec__ is not None
        module.__spec__.loader_state = rest
        module.__class__ = UnfinishedModule
        _run(first, module)


class UnfinishedModule(ModuleType):
    """A module whose second part has not run yet."""

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("__"):  # the import system reads those
            finish(self)
        return ModuleType.__getattribute__(self, name)


def finish(module: ModuleType) -> None:
    """Run the rest of a module, once."""
    with LOCK:
        spec: Any = module.__spec__
        if not isinstance(module, UnfinishedModule) or spec.loader_state is None:
            return  # already done, or running in this thread
        rest, spec.loader_state = spec.loader_state, None
        try:
            _run(rest, module)
        except BaseException:
            spec.loader_state = rest
            raise
        module.__class__ = ModuleType  # type: ignore[assignment]


def _run(part: ast.Module, module: ModuleType) -> None:
    assert module.__file__ is not None
    exec(compile(part, module.__file__, "exec", dont_inherit=True), module.__dict__)


def two_parts(tree: ast.Module) -> tuple[ast.Module, ast.Module]:
    """Split a module's statements: the docstring, the schemas and their dependencies; and the others, in order."""
    statements = [single for statement in tree.body for single in _singles(statement)]
    bound = [_bound(statement) for statement in statements]
    future = [place for place, statement in enumerate(statements) if _is_future(statement)]
    first: set[int] = set()
    more = {0, *future, *(place for place, statement in enumerate(statements) if _is_schema(statement))}
    while more:
        first |= more
        needed = {name for place in more for name in _names(statements[place], ast.Load)}
        more = {place for place, names in enumerate(bound) if needed & names} - first

    def part(places: Iterable[int]) -> ast.Module:
        return ast.Module([statements[place] for place in sorted(places)], type_ignores=[])

    return part(first), part({*range(len(statements))} - first | {*future})


def _is_future(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.ImportFrom) and statement.module == "__future__"


def _singles(statement: ast.stmt) -> Iterator[ast.stmt]:
    """An import of several names as imports of one name each; any other statement as it is."""
    if not isinstance(statement, ast.Import | ast.ImportFrom):
        yield statement
        return
    for name in statement.names:
        single = copy(statement)
        single.names = [name]
        yield single


def _is_schema(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.ClassDef) and any(
        isinstance(decorator, ast.Name) and decorator.id == "schema" for decorator in statement.decorator_list
    )


def _bound(statement: ast.stmt) -> set[str]:
    """The names that a statement binds at module level."""
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return {name.asname or name.name.partition(".")[0] for name in statement.names}
    if isinstance(statement, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return {statement.name}
    return _names(statement, ast.Store)


def _names(statement: ast.stmt, context: type[ast.expr_context]) -> set[str]:
    return {node.id for node in ast.walk(statement) if isinstance(node, ast.Name) and isinstance(node.ctx, context)}
