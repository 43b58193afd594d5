"""The code that a run uses, found from its source: its hash is part of the key of a recorded run.

From the function that makes a run the search follows names and attributes to every function, class
and constant of the project that it reaches, wherever it stands. What cannot change a number does
not count: imports, docstrings, comments, annotations, formatting, the words of an error, the name
and the place of a definition. What ``content_keyed`` marks does not count either: its results
enter a key by their own sha256.
"""

import ast
import functools
import hashlib
import symtable
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dpo_helpers.files import content_keyed

PACKAGES = ("dpo_helpers", "experiments", "ledger")
PROJECT = Path(__file__).resolve().parents[1]
_ROUNDS = 3  # of distinguishing equal definitions by their references
_FUNCTION = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Unit:
    """A definition of a module: a function, a constant, a class without its methods, or a method.

    The ``name`` of a method is Class.method.
    """

    module: str
    name: str


@content_keyed
def code_sha256(function: Callable, *present: type) -> str:
    """Hash of all code of the project that ``function`` uses; ``present`` are classes it is given.

    Raises ValueError for a function that has no source file, as in a cell of a notebook.
    """
    return _project().sha256(
        _roots(function), [Unit(p.__module__, p.__qualname__) for p in present]
    )


@functools.cache
def _project() -> "Code":
    return Code(PROJECT)


def _roots(function: object) -> list[Unit]:
    """The definition in which a function stands, and those of the functions in its closure."""
    if isinstance(function, functools.partial):
        parts = (function.func, *function.args, *function.keywords.values())
        return [root for part in parts for root in _roots(part)]
    function = getattr(function, "__func__", function)
    code = getattr(function, "__code__", None)
    if code is None:
        return []
    module, file = function.__module__, code.co_filename
    if module.split(".")[0] not in PACKAGES:
        if file.startswith("<") or module == "__main__" or "ipykernel" in file:
            raise ValueError(f"{function.__qualname__}: define a run's function in a module's file")
        if "site-packages" in file or file.startswith(sys.base_prefix):
            return []
        _project().files[module] = Path(file)
    roots = [Unit(module, function.__qualname__.split(".<locals>")[0])]
    for cell in function.__closure__ or ():
        try:
            content = cell.cell_contents
        except ValueError:  # not assigned yet
            continue
        if callable(content) and content is not function:
            roots += _roots(content)
    return roots


class Code:
    """The source code of the project in a folder. ``files`` are modules outside its packages."""

    def __init__(self, root: Path, files: Mapping[str, Path] | None = None) -> None:
        self.root, self.files = root, dict(files or {})
        self._modules: dict[str, _Module] = {}
        self._written: dict[Unit, _Written] = {}
        self._hashes: dict[tuple, str] = {}

    def sha256(self, roots: Iterable[Unit], present: Iterable[Unit] = ()) -> str:
        """Hash of all definitions that the ``roots`` use, given instances of ``present``."""
        key = (tuple(sorted(set(roots), key=str)), tuple(present))
        if key not in self._hashes:
            self._hashes[key] = self._sha256(*key)
        return self._hashes[key]

    def _sha256(self, roots: tuple[Unit, ...], present: tuple[Unit, ...]) -> str:
        written = {unit: self.written(unit) for unit in self.reached(roots, present)}
        labels = {unit: _digest([definition.text]) for unit, definition in written.items()}
        for _ in range(_ROUNDS):
            labels = {
                unit: _digest([d.text, *(labels.get(other, "content") for other in d.references)])
                for unit, d in written.items()
            }
        return _digest([*sorted(labels[root] for root in roots), "", *sorted(labels.values())])

    def sha256_of_all(self) -> str:
        """Hash of all definitions of the project's packages."""
        files = (file for name in PACKAGES for file in (self.root / name).rglob("*.py"))
        names = [file.relative_to(self.root).with_suffix("").parts for file in files]
        modules = [".".join(n[:-1] if n[-1] == "__init__" else n) for n in names]
        units = [Unit(name, unit) for name in modules for unit in self.module(name).statements]
        return _digest(sorted(self.written(unit).text for unit in units))

    def reached(self, roots: Iterable[Unit], present: Iterable[Unit] = ()) -> set[Unit]:
        """All definitions that the roots use.

        Of a class that is used, the methods count whose names the found code mentions. Of what is
        content-keyed, only the classes that it names are used.
        """
        roots, given, found, classes = set(roots), set(present), set(), set()
        words: set[str] = set()
        for unit in given:
            classes |= self._classes_named_by(unit)
        waiting = list(roots)
        while waiting:
            while waiting:
                unit = waiting.pop()
                if unit in found or unit in given:
                    continue
                module = self.module(unit.module)
                if unit not in roots and unit.name in module.content_keyed:
                    given.add(unit)
                    classes |= self._classes_named_by(unit)
                    continue
                found.add(unit)
                classes |= {unit} if unit.name in module.methods else set()
                waiting += self.written(unit).references
                words |= self.written(unit).words
            waiting = [
                Unit(kind.module, f"{kind.name}.{name}")
                for kind in classes - given
                for name in self.module(kind.module).methods[kind.name]
                if name in words and Unit(kind.module, f"{kind.name}.{name}") not in found
            ]
        return found

    def _classes_named_by(self, unit: Unit) -> set[Unit]:
        methods = self.module(unit.module).methods.get(unit.name, ())
        units = [unit, *(Unit(unit.module, f"{unit.name}.{name}") for name in methods)]
        named = {other for each in units for other in self.written(each).references}
        return {other for other in named if other.name in self.module(other.module).methods}

    def written(self, unit: Unit) -> "_Written":
        """A definition as it counts."""
        if unit not in self._written:
            writer = _Writer(self, unit)
            statements = self.module(unit.module).statements_of(unit)
            parts = [writer.visit(_copied(node)) for node in statements]
            nodes = [node for part in parts for node in ast.walk(part)]
            texts = {node.value for node in nodes if isinstance(node, ast.Constant)}
            words = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
            words |= {text for text in texts if isinstance(text, str)}
            text = "\0".join(map(ast.dump, parts))
            self._written[unit] = _Written(text, tuple(writer.references), frozenset(words))
        return self._written[unit]

    def module(self, name: str) -> "_Module":
        """A module, read once. Raises ValueError if it has no source file."""
        if name not in self._modules:
            file = self.file(name)
            if file is None:
                raise ValueError(f"module {name} has no source file")
            self._modules[name] = _Module(name, file)
        return self._modules[name]

    def file(self, module: str) -> Path | None:
        """The file of a module of the project; None if there is none."""
        if module in self.files:
            return self.files[module]
        if module.split(".")[0] not in PACKAGES:
            return None
        path = self.root.joinpath(*module.split("."))
        files = (path / "__init__.py", path.with_suffix(".py"))
        return next((file for file in files if file.is_file()), None)

    def lookup(self, module: str, name: str) -> Unit | str | None:
        """What a name of a module is: a definition, the name of a module, or neither."""
        if not name:
            return module if self.file(module) else None
        if self.file(module) is None:
            return None
        read = self.module(module)
        if name in read.statements:
            return Unit(module, name)
        if read.imports.get(name, (module, name)) != (module, name):
            return self.lookup(*read.imports[name])
        below = f"{module}.{name}"
        return below if self.file(below) else None


@dataclass(frozen=True)
class _Written:
    """A definition without what does not count.

    text         its syntax tree, blank for each reference
    references   what these refer to, in order
    words        what it mentions after a dot, and its texts, which ``getattr`` may be given
    """

    text: str
    references: tuple[Unit, ...]
    words: frozenset[str]


def _digest(parts: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _copied(node: ast.stmt) -> ast.stmt:
    return ast.parse(ast.unparse(node)).body[0]


@dataclass
class _Module:
    """A module's source.

    statements      of each definition
    imports         of each imported name: the module, and the name there, "" for the module itself
    methods         of each class: the names of its methods, but for those with two underscores
    free            of each function, class and method: the global names that it uses
    content_keyed   the definitions marked so
    """

    name: str
    file: Path
    statements: dict[str, list[ast.stmt]] = field(default_factory=lambda: defaultdict(list))
    imports: dict[str, tuple[str, str]] = field(default_factory=dict)
    methods: dict[str, list[str]] = field(default_factory=dict)
    free: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    content_keyed: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        text = self.file.read_text("utf-8")
        body = ast.parse(text).body
        assigned = {name for statement in body for name in _assigned(statement)}
        for statement in body:
            if isinstance(statement, _FUNCTION | ast.ClassDef):
                self._define(statement)
                continue
            for node in ast.walk(statement):
                self.imports |= self.imported(node)
            if isinstance(statement, ast.If) and "__name__" in ast.unparse(statement.test):
                continue
            names = _assigned(statement)
            if not isinstance(statement, ast.Assign | ast.AnnAssign | ast.AugAssign):
                # A loop or a call at the top may change whatever it names.
                names |= {n.id for n in ast.walk(statement) if isinstance(n, ast.Name)} & assigned
            for name in names:
                self.statements[name].append(statement)
        for table in symtable.symtable(text, str(self.file), "exec").get_children():
            self._find_free(table, table.get_name())

    def _define(self, node: ast.stmt) -> None:
        marks = {getattr(d, "id", getattr(d, "attr", "")) for d in node.decorator_list}
        if content_keyed.__name__ in marks:
            self.content_keyed.add(node.name)
        if isinstance(node, ast.ClassDef):
            own = [n for n in node.body if isinstance(n, _FUNCTION) and n.name[:2] != "__"]
            self.methods[node.name] = [method.name for method in own]
            for method in own:
                self.statements[f"{node.name}.{method.name}"].append(method)
            node.body = [part for part in node.body if part not in own] or [ast.Pass()]
        self.statements[node.name].append(node)

    def _find_free(self, table: symtable.SymbolTable, name: str) -> None:
        def used(t: symtable.SymbolTable) -> set[str]:
            own = {symbol.get_name() for symbol in t.get_symbols() if symbol.is_global()}
            return own.union(*map(used, t.get_children()))

        self.free[name] |= used(table)
        if table.get_type() == "class":
            for child in table.get_children():
                self._find_free(child, f"{name}.{child.get_name()}")

    def statements_of(self, unit: Unit) -> list[ast.stmt]:
        if unit.name not in self.statements:
            raise ValueError(f"{unit.module} has no {unit.name}")
        return self.statements[unit.name]

    def imported(self, node: ast.AST) -> dict[str, tuple[str, str]]:
        """The names that an import statement binds, and where they lead."""
        if isinstance(node, ast.Import):
            pairs = [(a.asname or a.name.split(".")[0], a) for a in node.names]
            return {own: (a.name if a.asname else own, "") for own, a in pairs}
        if not isinstance(node, ast.ImportFrom):
            return {}
        base = node.module or ""
        if node.level:
            package = self.name.split(".")
            above = len(package) - node.level + (self.file.name == "__init__.py")
            base = ".".join([*package[:above], *filter(None, [node.module])])
        return {a.asname or a.name: (base, a.name) for a in node.names}


def _assigned(statement: ast.stmt) -> set[str]:
    """The names of a module that a statement sets, wholly or in part."""
    found = set()
    if isinstance(statement, _FUNCTION | ast.ClassDef | ast.Import | ast.ImportFrom):
        return found
    for node in ast.walk(statement):
        if isinstance(getattr(node, "ctx", None), ast.Store):
            while isinstance(node, ast.Subscript | ast.Attribute):
                node = node.value
            found |= {node.id} if isinstance(node, ast.Name) else set()
    return found


class _Writer(ast.NodeTransformer):
    """Writes a definition: what does not count is left out, a reference is a blank."""

    def __init__(self, code: Code, unit: Unit) -> None:
        self.code, self.unit = code, unit
        self.module = code.module(unit.module)
        self.references: list[Unit] = []
        self.depth = 0
        self.local: dict[str, tuple[str, str]] = {}
        for statement in self.module.statements_of(unit):
            for node in ast.walk(statement):
                self.local |= self.module.imported(node)

    def visit_Name(self, node: ast.Name) -> ast.AST:
        found = self._resolved(node)
        if isinstance(found, Unit):
            self.references.append(found)
            return ast.Name("", ast.Load())
        return self.generic_visit(node)

    visit_Attribute = visit_Name

    def _resolved(self, node: ast.AST) -> Unit | str | None:
        if isinstance(node, ast.Attribute):
            above = self._resolved(node.value)
            return self.code.lookup(above, node.attr) if isinstance(above, str) else None
        if not isinstance(node, ast.Name):
            return None
        if node.id in self.local:
            return self.code.lookup(*self.local[node.id])
        free = self.module.free.get(self.unit.name)
        if free is not None and node.id not in free:
            return None
        return self.code.lookup(self.unit.module, node.id)

    def visit_Import(self, node: ast.AST) -> ast.AST:
        return ast.Pass()

    visit_ImportFrom = visit_Import

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        return ast.Raise()

    def visit_arg(self, node: ast.arg) -> ast.AST:
        return ast.arg(node.arg)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        value = self.visit(node.value) if node.value else ast.Constant(None)
        return ast.Assign([self.visit(node.target)], value)

    def visit_FunctionDef(self, node: ast.AST) -> ast.AST:
        if ast.get_docstring(node, clean=False) is not None:
            node.body[0] = ast.Pass()
        if not self.depth:
            node.name = ""
            node.decorator_list = [
                d for d in node.decorator_list if ast.unparse(d).split(".")[-1] != "content_keyed"
            ]
        if isinstance(node, _FUNCTION):
            node.returns = None
        self.depth += 1
        self.generic_visit(node)
        self.depth -= 1
        return node

    visit_AsyncFunctionDef = visit_ClassDef = visit_FunctionDef
