"""The code that a function uses, found from its source: its hash is part of the key of a run.

From a function the search follows names and attributes to every function, class and constant of
the project that it reaches, wherever it stands. What decides no number does not count: imports,
docstrings, comments, annotations, formatting, the words of an error, the name and the place of a
definition. What ``content_keyed`` marks does not count either: it enters a key by its content.
"""

import ast
import functools
import hashlib
import importlib.util
import symtable
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from dpo_helpers.files import content_keyed

PACKAGES = ("dpo_helpers", "experiments", "ledger")
_ROUNDS = 3  # of telling alike definitions apart by what they refer to
_DEFINITION = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(frozen=True)
class _Unit:
    """A definition: a function, a constant, a class without its methods, or one method."""

    module: str
    name: str

    @property
    def module_source(self) -> "_Source":
        return _source(self.module)


@dataclass
class _Source:
    """A module: the statements of each definition, where imported names lead, global names."""

    statements: dict[str, list[ast.stmt]] = field(default_factory=lambda: defaultdict(list))
    imports: dict[str, tuple[str, str]] = field(default_factory=dict)
    methods: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    free: dict[str, set[str]] = field(default_factory=dict)
    marked: set[str] = field(default_factory=set)


@content_keyed
def code_sha256(function: Callable, *present: type) -> str:
    """Hash of all code of the project that ``function`` uses; ``present`` are classes it is given.

    Raises ValueError for a function without a source file, as of a notebook's cell.
    """
    return _sha256_of(tuple(sorted(set(_roots(function)))), tuple(_names(present)))


def _names(present: tuple[type, ...]) -> list[tuple[str, str]]:
    return [(kind.__module__, kind.__qualname__) for kind in present]


def _roots(function: object) -> Iterator[tuple[str, str]]:
    """The definitions in which a function stands, and those of the functions that it encloses."""
    if isinstance(function, functools.partial):
        for part in (function.func, *function.args, *function.keywords.values()):
            yield from _roots(part)
        return
    function = getattr(function, "__func__", function)
    code = getattr(function, "__code__", None)
    if code is None or not _belongs(function.__module__, code.co_filename):
        return
    yield function.__module__, function.__qualname__.split(".<locals>")[0]
    for cell in function.__closure__ or ():
        try:
            content = cell.cell_contents
        except ValueError:  # not assigned yet
            continue
        if callable(content) and content is not function:
            yield from _roots(content)


def _belongs(module: str, file: str) -> bool:
    if module.split(".")[0] in PACKAGES:
        return True
    if file.startswith("<") or module == "__main__":
        raise ValueError(f"{module}: a run's function must be defined in a module's file")
    return "site-packages" not in file and not file.startswith(sys.base_prefix)


@functools.cache
def _sha256_of(roots: tuple[tuple[str, str], ...], present: tuple[tuple[str, str], ...]) -> str:
    units = _reached([_Unit(*root) for root in roots], [_Unit(*kind) for kind in present])
    # A definition is named by what it is and refers to, not by what it is called.
    texts = {unit: _normalized(unit) for unit in units}
    labels = {unit: _digest(parts) for unit, (parts, _) in texts.items()}
    for _ in range(_ROUNDS):
        labels = {
            unit: _digest([*parts, *(labels.get(r, "content") for r in references)])
            for unit, (parts, references) in texts.items()
        }
    return _digest([*sorted(labels[_Unit(*root)] for root in roots), "", *sorted(labels.values())])


def _digest(parts: list[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _reached(roots: list[_Unit], present: list[_Unit]) -> set[_Unit]:
    """All definitions that the roots use, to a fixed point."""
    found, classes, attributes = set(), set(), set()
    waiting, given = list(roots), set(present)
    for unit in present:
        classes |= {r for r in _references(unit, whole=True) if _is_class(r)}
    while waiting:
        while waiting:
            unit = waiting.pop()
            if unit in found or unit in given:
                continue
            if unit not in roots and unit.name in unit.module_source.marked:
                given.add(unit)
                classes |= {r for r in _references(unit, whole=True) if _is_class(r)}
                continue
            found.add(unit)
            if _is_class(unit):
                classes.add(unit)
            waiting += _references(unit)
            attributes |= _attributes(unit)
        waiting = [
            method
            for kind in classes - given
            for name in kind.module_source.methods[kind.name]
            if (method := _Unit(kind.module, f"{kind.name}.{name}")) not in found
            and name in attributes
        ]
    return found


def _is_class(unit: _Unit) -> bool:
    return unit.name in unit.module_source.methods


def _references(unit: _Unit, whole: bool = False) -> list[_Unit]:
    """What a definition refers to, in order; of a ``whole`` class its methods too."""
    found = list(_normalized(unit)[1])
    if whole and _is_class(unit):
        for name in unit.module_source.methods[unit.name]:
            found += _normalized(_Unit(unit.module, f"{unit.name}.{name}"))[1]
    return found


@functools.cache
def _attributes(unit: _Unit) -> frozenset[str]:
    """Names after a dot, and texts, which ``getattr`` may be asked for."""
    found = set()
    for statement in _statements(unit):
        for node in ast.walk(statement):
            if isinstance(node, ast.Attribute):
                found.add(node.attr)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
    return frozenset(found)


def _statements(unit: _Unit) -> list[ast.stmt]:
    source = unit.module_source
    if unit.name not in source.statements:
        raise ValueError(f"{unit.module} has no {unit.name}")
    return source.statements[unit.name]


@functools.cache
def _normalized(unit: _Unit) -> tuple[tuple[str, ...], tuple[_Unit, ...]]:
    """A definition's syntax tree without what does not count, and what it refers to."""
    writer = _Writer(unit)
    parts = tuple(ast.dump(writer.visit(_copy(node))) for node in _statements(unit))
    return parts, tuple(writer.references)


def _copy(node: ast.stmt) -> ast.stmt:
    return ast.parse(ast.unparse(node)).body[0]


class _Writer(ast.NodeTransformer):
    """Takes out what does not count, and puts a blank for each reference."""

    def __init__(self, unit: _Unit) -> None:
        self.unit, self.references, self.depth = unit, [], 0
        source = unit.module_source
        self.free = source.free.get(unit.name)
        self.local: dict[str, tuple[str, str]] = {}
        for statement in _statements(unit):
            for node in ast.walk(statement):
                self.local |= _imported(node, unit.module)

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return self._blank(node)

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        return self._blank(node)

    def _blank(self, node: ast.Name | ast.Attribute) -> ast.AST:
        found = self._resolved(node)
        if isinstance(found, _Unit):
            self.references.append(found)
            return ast.Name("", ast.Load())
        return self.generic_visit(node)

    def _resolved(self, node: ast.AST) -> "_Unit | str | None":
        """The definition, or the name of the module, that an expression leads to."""
        if isinstance(node, ast.Attribute):
            above = self._resolved(node.value)
            return _lookup(above, node.attr) if isinstance(above, str) else None
        if not isinstance(node, ast.Name):
            return None
        if node.id in self.local:
            return _imported_unit(*self.local[node.id])
        if self.free is not None and node.id not in self.free:
            return None
        return _lookup(self.unit.module, node.id)

    def visit_Import(self, node: ast.Import) -> ast.AST:
        return ast.Pass()

    visit_ImportFrom = visit_Import

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        return ast.Raise()

    def visit_arg(self, node: ast.arg) -> ast.AST:
        return ast.arg(node.arg)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        value = self.visit(node.value) if node.value else ast.Constant(None)
        return ast.Assign([self.visit(node.target)], value)

    def _definition(self, node: ast.AST) -> ast.AST:
        if ast.get_docstring(node, clean=False) is not None:
            node.body[0] = ast.Pass()
        if not self.depth:
            node.name = ""
        if not isinstance(node, ast.ClassDef):
            node.returns = None
        self.depth += 1
        self.generic_visit(node)
        self.depth -= 1
        return node

    visit_FunctionDef = visit_AsyncFunctionDef = visit_ClassDef = _definition


def _lookup(module: str, name: str) -> "_Unit | str | None":
    """What ``name`` is in a module: a definition, a module, or neither."""
    if not _is_project(module):
        return None
    source = _source(module)
    if name in source.statements:
        return _Unit(module, name)
    if source.imports.get(name, (module, name)) != (module, name):
        return _imported_unit(*source.imports[name])
    below = f"{module}.{name}"
    return below if _is_project(below) and _file(below) else None


def _imported_unit(module: str, name: str) -> "_Unit | str | None":
    if not name:
        return module if _is_project(module) else None
    return _lookup(module, name)


def _is_project(module: str) -> bool:
    return module.split(".")[0] in PACKAGES or module in _OTHERS


_OTHERS: set[str] = set()  # modules outside the packages in which runs are defined, as of tests


def _file(module: str) -> Path | None:
    if module in sys.modules and getattr(sys.modules[module], "__file__", None):
        return Path(sys.modules[module].__file__)
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        return None
    return Path(spec.origin) if spec and spec.origin and spec.has_location else None


def _imported(node: ast.AST, module: str) -> dict[str, tuple[str, str]]:
    """The names that an import statement binds: where each leads."""
    if isinstance(node, ast.Import):
        return {
            (a.asname or a.name.split(".")[0]): (a.name if a.asname else a.name.split(".")[0], "")
            for a in node.names
        }
    if not isinstance(node, ast.ImportFrom):
        return {}
    base = node.module or ""
    if node.level:
        file = _file(module)
        package = module if file and file.name == "__init__.py" else module.rpartition(".")[0]
        above = package.split(".")[: len(package.split(".")) - node.level + 1]
        base = ".".join([*above, *([node.module] if node.module else [])])
    return {a.asname or a.name: (base, a.name) for a in node.names}


@functools.cache
def _source(module: str) -> _Source:
    """A module read: its definitions and imports."""
    _OTHERS.add(module)
    file = _file(module)
    if file is None:
        raise ValueError(f"module {module} has no source file")
    text, source = file.read_text("utf-8"), _Source()
    body = ast.parse(text).body
    for statement in body:
        for node in ast.walk(statement):
            if not isinstance(statement, _DEFINITION):
                source.imports |= _imported(node, module)
    for statement in body:
        if isinstance(statement, _DEFINITION):
            _define(source, statement)
    own = {name for statement in body for name in _bound(statement)}
    for statement in body:
        if isinstance(statement, ast.Import | ast.ImportFrom | _DEFINITION):
            continue
        if isinstance(statement, ast.Assign | ast.AnnAssign | ast.AugAssign):
            names = _bound(statement)
        else:  # a loop or a call at the top may change whatever it names
            names = {n.id for n in ast.walk(statement) if isinstance(n, ast.Name)} & own
        for name in names if not _is_main(statement) else ():
            source.statements[name].append(statement)
    for table in symtable.symtable(text, str(file), "exec").get_children():
        _free(source, table, table.get_name())
    return source


def _define(source: _Source, node: ast.stmt) -> None:
    marks = [
        d.id if isinstance(d, ast.Name) else getattr(d, "attr", "") for d in node.decorator_list
    ]
    if content_keyed.__name__ in marks:
        source.marked.add(node.name)
    if isinstance(node, ast.ClassDef):
        source.methods[node.name] = []
        kept = []
        for part in node.body:
            if isinstance(part, ast.FunctionDef) and not part.name.startswith("__"):
                source.methods[node.name].append(part.name)
                source.statements[f"{node.name}.{part.name}"] = [part]
            else:
                kept.append(part)
        node.body = kept or [ast.Pass()]
    source.statements[node.name].append(node)


def _free(source: _Source, table: symtable.SymbolTable, name: str) -> None:
    """Global names that a definition uses, in itself or in what is nested in it."""

    def names(t: symtable.SymbolTable) -> set[str]:
        own = {s.get_name() for s in t.get_symbols() if s.is_global()}
        return own.union(*(names(child) for child in t.get_children()))

    source.free.setdefault(name, set()).update(names(table))
    if table.get_type() == "class":
        for child in table.get_children():
            _free(source, child, f"{name}.{child.get_name()}")


def _bound(statement: ast.stmt) -> set[str]:
    """The module's names that an assignment sets or changes."""
    found = set()
    for node in ast.walk(statement):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Subscript | ast.Attribute) and isinstance(node.ctx, ast.Store):
            base = node
            while isinstance(base, ast.Subscript | ast.Attribute):
                base = base.value
            if isinstance(base, ast.Name):
                found.add(base.id)
    return found


def _is_main(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.If) and "__name__" in ast.unparse(statement.test)
