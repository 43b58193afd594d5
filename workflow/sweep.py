"""Run a sweep: execute a notebook for each cell of a grid, and write one page of the results.

python -m workflow.sweep sweeps/NAME.yml [options of snakemake]
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from filelock import FileLock

from dpo_helpers.errors import InputError
from dpo_helpers.files import atomic_write
from experiments import SWEPT
from ledger.config import configure
from ledger.store import ROOT, RunStore

from . import grid, notebook, sweep_page


def declare(sweep: grid.Sweep) -> None:
    """Write each cell's ``.json``. If it changed, remove the cell's older results."""
    sweep.folder.mkdir(parents=True, exist_ok=True)
    key = notebook.key(sweep.notebook)
    for cell, row in sweep.cells.items():
        file = sweep.folder / f"{cell}.json"
        facts = {"notebook": sweep.notebook, "tier": sweep.tier, "key": key}
        content = json.dumps(facts | {"parameters": {**sweep.fixed, **row}}, indent=1).encode()
        if not file.exists() or file.read_bytes() != content:
            for kind in (*sweep_page.MADE, ".failed"):
                file.with_suffix(kind).unlink(missing_ok=True)
            atomic_write(file, content)


def execute(file: Path) -> None:
    """Execute the cell declared in ``file``, and write its notebook, web page and curves beside it.

    A failure exits with one line, which is also written to ``.failed``.
    """
    cell = json.loads(file.read_text("utf-8"))
    chapter, tier, parameters = (cell[name] for name in ("notebook", "tier", "parameters"))
    executed, failed = file.with_suffix(".ipynb"), file.with_suffix(".failed")
    # A cell may still be running after Snakemake itself was killed.
    with FileLock(file.with_suffix(".lock")):
        failed.unlink(missing_ok=True)
        try:
            notebook.main(chapter, tier, str(executed), parameters)
            atomic_write(file.with_suffix(".html"), sweep_page.notebook_page(executed).encode())
            records = RunStore(configure({"tier": tier, **parameters}))
            curves = SWEPT[chapter](records) if chapter in SWEPT else {}
            table = pd.DataFrame({name: pd.Series(values) for name, values in curves.items()})
            atomic_write(file.with_suffix(".csv"), table.rename_axis("step").to_csv().encode())
        except (SystemExit, InputError, OSError) as error:
            line = str(error).removeprefix("error: ")
            failed.write_text(line, "utf-8")
            sys.exit(f"error: {file.stem}: {line}")
    print(f"done: {file.stem}", flush=True)


def run(path: Path, options: Sequence[str] = ()) -> None:
    """Run the missing cells of the sweep in the file ``path``, and render the sweep's page.

    ``options`` are passed to Snakemake. Exits with one line for each cell that is not done. Raises
    InputError as ``grid.read`` does.
    """
    sweep = grid.read(path)
    declare(sweep)
    print(f"sweep {sweep.name}: {len(sweep.cells)} cells of {sweep.notebook}", flush=True)
    folder = sweep.folder.relative_to(ROOT)
    command = [sys.executable, "-m", "workflow.progress"]
    command += [str(folder / f"{cell}{kind}") for cell in sweep.cells for kind in sweep_page.MADE]
    command += ["--snakefile", str(Path(__file__).with_suffix(".smk")), "--directory", str(ROOT)]
    # Snakemake's lock would outlast a kill. `execute` has a lock that does not.
    command += ["--keep-going", "--rerun-incomplete", "--nolock", *options]
    programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    with subprocess.Popen(command, env={**os.environ, "PATH": programs}) as snakemake:
        try:
            code = snakemake.wait()
        except KeyboardInterrupt:  # Snakemake gets it too, and stops its jobs
            code = snakemake.wait()
    undone = {cell: sweep_page.outcome(sweep, cell) for cell in sweep.cells}
    undone = {cell: line for cell, line in undone.items() if line}
    page = sweep_page.render(sweep).relative_to(ROOT)
    print(f"{len(sweep.cells) - len(undone)} of {len(sweep.cells)} done: {page}", flush=True)
    if undone:
        sys.exit("\n".join(f"error: {cell}: {line}" for cell, line in undone.items()))
    sys.exit(code)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("error: no sweep given; name its file, such as sweeps/beta.yml")
    try:
        if sys.argv[1] == "cell":
            execute(Path(sys.argv[2]))
        else:
            run(Path(sys.argv[1]), sys.argv[2:])
    except InputError as problem:
        sys.exit(f"error: {problem}")
