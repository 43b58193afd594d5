"""The key of a run changes with the code that the run uses, and with nothing else."""

import ast
import inspect
import random
import re
import shutil
from pathlib import Path

import pytest

import experiments
from ledger.config import configure
from ledger.keys import PACKAGES, PROJECT, Code, Unit, code_sha256
from ledger.store import RunStore

STORE = (Unit("ledger.store", "RunStore"),)


def runs() -> list[Unit]:
    """The functions of every chapter's module that make runs, and the one of hidden states."""
    modules = {
        inspect.getmodule(run).__name__ for made in experiments.CHAPTERS.values() for run in made
    }
    found = [Unit("ledger.store", "RunStore.states")]
    for name in sorted(modules):
        for node in ast.parse(Path(PROJECT, *name.split(".")).with_suffix(".py").read_text()).body:
            if isinstance(node, ast.FunctionDef) and "replay_or_run" in ast.unparse(node):
                found.append(Unit(name, node.name))
    return found


RUNS = runs()
CODE = Code(PROJECT)


@pytest.fixture
def project(tmp_path) -> Path:
    """A copy of the project's packages."""
    for name in PACKAGES:
        shutil.copytree(PROJECT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.jsonl"))
    return tmp_path


def key(project: Path, run: Unit) -> str:
    return Code(project).sha256([run], STORE)


def change(project: Path, unit: Unit) -> None:
    """Change what a definition does: a constant's value, or the body of a function or class."""
    path = Code(project).file(unit.module)
    tree = ast.parse(path.read_text("utf-8"))
    *outer, name = unit.name.split(".")
    body = tree.body
    for kind in outer:
        (body,) = [node.body for node in body if getattr(node, "name", None) == kind]
    for node in body:
        loops = isinstance(node, ast.For) and name in ast.unparse(node.target)
        if getattr(node, "name", None) == name or loops:
            node.body.append(ast.parse("changed = 1").body[0])
            break
        targets = [node.target] if isinstance(node, ast.AnnAssign) else getattr(node, "targets", [])
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            node.value = ast.Tuple([node.value, ast.Constant(1)], ast.Load())
            break
    else:
        pytest.fail(f"{unit} has no definition")
    path.write_text(ast.unparse(ast.fix_missing_locations(tree)), "utf-8")


def is_constant(unit: Unit) -> bool:
    return not isinstance(
        CODE.module(unit.module).statements[unit.name][0], ast.FunctionDef | ast.ClassDef
    )


@pytest.mark.parametrize("run", RUNS, ids=lambda run: f"{run.module}.{run.name}")
def test_every_run_uses_itself(run):
    reached = CODE.reached([run], STORE)
    assert run in reached and not any(unit.module == "ledger.keys" for unit in reached)


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS, ids=lambda run: f"{run.module}.{run.name}")
def test_a_change_of_what_a_run_uses_changes_its_key(project, run):
    """Every constant that it reaches, and some of the functions and classes."""
    before = key(project, run)
    reached = sorted(CODE.reached([run], STORE), key=str)
    functions = [unit for unit in reached if not is_constant(unit)]
    some = random.Random(0).sample(functions, min(5, len(functions)))
    for unit in [run, *filter(is_constant, reached), *some]:
        path = Code(project).file(unit.module)
        text = path.read_text("utf-8")
        change(project, unit)
        assert key(project, run) != before, unit
        path.write_text(text, "utf-8")


@pytest.mark.parametrize(
    ("run", "constant"),
    [
        ("audit_your_data.audit_run", "experiments.audit_your_data.NOISE"),
        ("audit_your_data.dialogues_run", "experiments.audit_your_data.KINDS"),
        ("audit_your_data.audit_run", "MIN_STRATUM"),
        ("misalignment.flipped_run", "experiments.misalignment.STEPS"),
        ("misalignment.flipped_run", "experiments.misalignment.ARMS"),
    ],
)
def test_constants_that_once_escaped(run, constant):
    module, name = run.split(".")
    reached = CODE.reached([Unit(f"experiments.{module}", name)], STORE)
    assert any(f"{unit.module}.{unit.name}".endswith(constant) for unit in reached)


def test_what_a_run_does_not_use_does_not_change_its_key(project):
    run = Unit("experiments.rate_of_change", "sweep_run")
    before = key(project, run)
    for unit in (Unit("experiments.misalignment", "STEPS"), Unit("dpo_helpers.dpo", "loss")):
        assert unit not in CODE.reached([run], STORE)
        change(project, unit)
    assert key(project, run) == before


def edited(project: Path, edit) -> None:
    for name in PACKAGES:
        for path in (project / name).rglob("*.py"):
            path.write_text(edit(path.read_text("utf-8")), "utf-8")


def reformatted(text: str) -> str:
    return ast.unparse(ast.parse(text)) + "\n# a comment\n"


def redocumented(text: str) -> str:
    """Other docstrings, no annotations of arguments and results, other words in errors."""

    class Edit(ast.NodeTransformer):
        def visit_FunctionDef(self, node):
            if ast.get_docstring(node):
                node.body[0] = ast.parse('"""Other words."""').body[0]
            node.returns = None
            return self.generic_visit(node)

        def visit_arg(self, node):
            node.annotation = None
            return node

        def visit_Raise(self, node):
            return ast.parse("raise ValueError('other words')").body[0]

    return ast.unparse(ast.fix_missing_locations(Edit().visit(ast.parse(text))))


def reordered(text: str) -> str:
    """Functions in the opposite order, below the rest."""
    tree = ast.parse(text)
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    rest = [node for node in tree.body if not isinstance(node, ast.FunctionDef)]
    tree.body = rest + functions[::-1]
    return ast.unparse(tree)


@pytest.mark.parametrize("edit", [reformatted, redocumented, reordered])
def test_what_cannot_change_a_number_does_not_change_a_key(project, edit):
    before = {run: CODE.sha256([run], STORE) for run in RUNS}
    edited(project, edit)
    after = Code(project)
    assert {run: after.sha256([run], STORE) for run in RUNS} == before


def test_a_renamed_file_does_not_change_a_key(project):
    before = {run: CODE.sha256([run], STORE) for run in RUNS}
    (project / "dpo_helpers/states/statistics.py").rename(project / "dpo_helpers/states/moments.py")
    (project / "dpo_helpers/last_layer.py").rename(project / "dpo_helpers/output_layer.py")
    names = ((r"\.statistics import", ".moments import"), (r"\blast_layer\b", "output_layer"))

    def edit(text: str) -> str:
        for old, new in names:
            text = re.sub(old, new, text)
        return text

    edited(project, edit)
    after = Code(project)
    assert {run: after.sha256([run], STORE) for run in RUNS} == before


def test_a_renamed_function_does_not_change_a_key(project):
    before = {run: CODE.sha256([run], STORE) for run in RUNS}
    edited(project, lambda text: re.sub(r"\bgradient_descent\b", "descend", text))
    after = Code(project)
    assert {run: after.sha256([run], STORE) for run in RUNS} == before


def test_exchanged_references_change_the_key(project):
    """Both are still used, but in each other's place."""
    run = Unit("experiments.rate_of_change", "sweep_run")
    before = key(project, run)
    path = project / "dpo_helpers/theory/bounds.py"
    text = path.read_text("utf-8")
    one, other = "loss_decrease", "theta"
    assert f"def {one}(" in text and f"def {other}(" in text
    text = text.replace(f"def {one}(", "def ______(").replace(f"def {other}(", f"def {one}(")
    path.write_text(text.replace("def ______(", f"def {other}("), "utf-8")
    assert key(project, run) != before


def test_a_function_of_a_test_can_be_a_run(tmp_path):
    def make():
        return other()

    def other():
        return {}

    assert len(code_sha256(make)) == 64
    records = RunStore(configure({"tier": "smoke", "device": "cpu"}), tmp_path)
    assert records.replay_or_run("x", {}, {}, make).arrays == {}


def test_code_of_a_notebook_cell_has_no_key():
    space: dict = {"__name__": "__main__"}
    exec("def make():\n    return {}", space)
    with pytest.raises(ValueError, match="module's file"):
        code_sha256(space["make"])
