"""The command: python -m dpo_helpers.audit --help."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .. import lm
from ..data import preferences
from ..errors import InputError
from . import audit, report, table, tokenize


def main(arguments: Sequence[str] | None = None) -> None:
    """Tell from a model's first gradients what DPO will learn first of a preference data set.

    Raises InputError as ``preferences.read`` and ``lm.load``, and for a file in the way.
    """
    parser = argparse.ArgumentParser(prog="python -m dpo_helpers.audit", description=main.__doc__)
    parser.add_argument(
        "source", help="a .jsonl, .jsonl.gz or .parquet file, or a data set of the hub"
    )
    parser.add_argument("--group", help="the column with each pair's group")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--pairs", type=int, default=1000, help="at most so many, drawn at random")
    parser.add_argument("--out", type=Path, default=Path("audit.html"), help="audit.html")
    given = parser.parse_args(arguments)
    if given.pairs < 1:
        raise InputError(f"--pairs {given.pairs}: must be at least 1")
    beside = given.out.with_suffix(".json")
    _free(given.out, beside)
    whole = preferences.read(given.source, given.group)
    rows = preferences.drawn(whole, given.pairs)
    model = lm.load(given.model, given.device)
    pairs, names = tokenize(model, rows)
    found = audit(model, pairs, names)
    drawn_from = len(whole) if len(whole) > len(rows) else 0
    page = report(found, rows, Path(given.source).name, model.name, drawn_from)
    given.out.write_text(page, "utf-8")
    numbers = table(found)
    content = numbers.replace(np.inf, None).to_dict("index")
    beside.write_text(json.dumps(content, indent=1), "utf-8")
    print(numbers.to_string(float_format=lambda value: f"{value:.3g}"))
    print(f"the report: {given.out}")


def _free(page: Path, numbers: Path) -> None:
    """Raises InputError unless both files are free, or hold an earlier report."""
    if page.suffix != ".html" or not page.parent.is_dir():
        raise InputError(f"--out {page}: must be a .html file in an existing folder")
    try:
        ours = "<!-- dpo_helpers.audit -->" in page.read_text("utf-8")[:200]
    except (OSError, UnicodeDecodeError):
        ours = False
    for path in (page, numbers):
        if path.exists() and not ours:
            raise InputError(f"{path}: exists and is not a report; choose another file with --out")


if __name__ == "__main__":
    try:
        main()
    except InputError as problem:
        sys.exit(f"error: {problem}")
