"""Read the YAML file of a sweep, check it, and list the cells of its grid."""

import ast
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import yaml

from dpo_helpers import data
from dpo_helpers.errors import InputError, first_line, unknown
from ledger.config import Config, configure
from ledger.store import ROOT

from . import notebook

KEYS = ("notebook", "tier", "parameters", "grid")
# YAML 1.1 reads a number with an exponent only if it has a point, and a sign after the e.
_NUMBER = re.compile(r"[-+]?\d+\.?\d*[eE][-+]?\d+")


@dataclass(frozen=True)
class Sweep:
    """A grid of parameters, as read from its file.

    name      the file's name, without ``.yml``
    notebook  the chapter to execute
    tier      the tier to execute it at
    fixed     the parameters with the same value in all cells
    cells     the swept parameters of each cell, by the cell's id
    """

    name: str
    notebook: str
    tier: str
    fixed: Mapping[str, object]
    cells: Mapping[str, Mapping[str, object]]

    @property
    def folder(self) -> Path:
        """The folder of the sweep's results."""
        return ROOT / "build" / "sweeps" / self.name


class _Loader(yaml.SafeLoader):
    """A YAML loader that rejects a key given twice. PyYAML would keep the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [key.value for key, _ in node.value]
        for number, (key, _) in enumerate(node.value):
            if key.value in keys[:number]:
                what = f"key {key.value!r} is given twice"
                raise yaml.constructor.ConstructorError(None, None, what, key.start_mark)
        return super().construct_mapping(node, deep)


def read(path: Path) -> Sweep:
    """The sweep of a file. Every cell is checked as far as possible without executing it.

    Raises InputError, which names the file, for invalid YAML, for an unknown key, notebook, tier or
    behavior, for a parameter that the notebook does not have or that has the wrong type, for an
    empty grid, and for two equal cells.
    """
    data.checked_name(path.stem, "sweep")
    content = _content(path)
    try:
        return _checked(path.stem, content)
    except InputError as problem:
        raise InputError(f"{path}: {problem}") from None


def _content(path: Path) -> object:
    try:
        return yaml.load(path.read_text("utf-8"), _Loader)
    except FileNotFoundError:
        here = ", ".join(map(str, sorted(path.parent.glob("*.yml")))) or "none"
        raise InputError(f"{path}: no such file; sweeps there: {here}") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1
        raise InputError(f"{path}, line {line}: not valid YAML ({error.problem}); fix it") from None
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise InputError(f"{path}: cannot be read ({first_line(error)}); fix it") from None


def _checked(name: str, content: object) -> Sweep:
    if not isinstance(content, dict):
        raise InputError(f"must hold the keys {', '.join(KEYS)}")
    for key in content:
        if key not in KEYS:
            raise unknown("key", str(key), KEYS)
    for key in ("notebook", "grid"):
        if not content.get(key):
            raise InputError(f"key {key!r} is missing or empty; add it")
    known = [path.stem for path in (ROOT / "notebooks").glob("*.py")]
    chapter, tier = content["notebook"], content.get("tier", "book")
    fixed, grid = content.get("parameters") or {}, content["grid"]
    if chapter not in known:
        raise unknown("notebook", str(chapter), known)
    if not isinstance(fixed, dict) or not isinstance(grid, dict):
        raise InputError(
            "parameters and grid must map names of parameters to values; write `beta: …` under each"
        )
    for parameter, values in grid.items():
        if not isinstance(values, list) or not values:
            raise InputError(f"grid, {parameter} = {values!r}: give a list of at least one value")
    _named(chapter, fixed, grid)
    cells: dict[str, dict[str, object]] = {}
    configs: dict[Config, str] = {}
    for values in product(*grid.values()):
        row = dict(zip(grid, values, strict=True))
        cell = identity(row)
        config = configure({"tier": tier, **fixed, **row})
        if config in configs:
            raise InputError(f"cells {configs[config]} and {cell} are the same; leave one out")
        configs[config], cells[cell] = cell, row
    for source, behavior in dict.fromkeys((c.data, b) for c in configs for b in c.behaviors):
        if data.checked_name(behavior, "behavior") and data.at_hand(source):
            data.load_behavior(behavior, source)
    return Sweep(name, chapter, tier, fixed, cells)


def _named(chapter: str, fixed: Mapping[str, object], grid: Mapping[str, object]) -> None:
    """Check the parameters' names against those of the notebook.

    Raises InputError for a parameter that the notebook does not have or that is given twice, and
    for a number that YAML reads as text.
    """
    (cell,) = (
        c for c in notebook.source(chapter).cells if "parameters" in c.metadata.get("tags", ())
    )
    own = [part.targets[0].id for part in ast.parse(cell.source).body]
    own.remove("tier")
    for name, value in (*fixed.items(), *((n, v) for n, values in grid.items() for v in values)):
        if name == "tier":
            raise InputError("tier cannot be swept; write it beside grid")
        if name not in own:
            raise InputError(f"{chapter}: {unknown('parameter', str(name), own)}")
        if isinstance(value, str) and _NUMBER.fullmatch(value):
            number = yaml.safe_dump(float(value)).split()[0]
            raise InputError(f"{name} = {value!r} is text to YAML; write {number}")
    for name in fixed.keys() & grid.keys():
        raise InputError(f"{name} is both under parameters and under grid; leave one out")


def identity(row: Mapping[str, object]) -> str:
    """A cell's id: readable, usable as a file name, and built from its swept parameters only."""
    whole = "-".join(f"{name}-{text(value, '+')}" for name, value in row.items())
    plain = re.sub(r"[^A-Za-z0-9.+_-]", "-", whole)
    if plain == whole and len(whole) <= 100:
        return whole
    digest = hashlib.sha256(json.dumps(row, sort_keys=True).encode()).hexdigest()[:8]
    return f"{plain[:91]}-{digest}"


def text(value: object, joint: str = ", ") -> str:
    """The value of a parameter as text."""
    values = value if isinstance(value, list) else ["default" if value is None else value]
    return joint.join(map(str, values))
