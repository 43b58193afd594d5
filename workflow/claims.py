"""The claims ledger: verdicts computed from recorded runs, and the scorecard they write."""

import json
import operator
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from dpo_helpers import lm
from dpo_helpers.errors import InputError, unknown
from dpo_helpers.files import atomic_write
from experiments import CHAPTERS, MEASURES
from experiments.second_llm import second
from ledger.config import configure
from ledger.paths import ROOT
from ledger.store import RunStore

_COMPARE = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt}
_KEYS = {"id", "where", "statement", "notebook", "run", "measure", "reproduced", "partly", "why"}


@dataclass(frozen=True)
class Claim:
    """A row of the ledger, as ``claims.yml`` spells it out.

    ``run`` is a pattern of run names; where it says SECOND for the model, the claim is judged on
    the records of the tier's second model. ``measure`` names a function of the chapter's module in
    ``experiments``; it returns one value a seed.
    ``reproduced`` and ``partly`` compare the median of the values with a
    number ("<= 1e-6"). A claim without ``run`` is not run, ``why`` says why.
    """

    id: str
    where: str
    statement: str
    notebook: str
    run: str = ""
    measure: str = ""
    reproduced: str = ""
    partly: str = ""
    why: str = ""


@dataclass(frozen=True)
class Verdict:
    """What a claim came to: reproduced, partly, not reproduced, or not run."""

    claim: Claim
    verdict: str
    values: tuple[float, ...] = ()

    @property
    def value(self) -> str:
        """The median, with the range over seeds where there are several."""
        if not self.values:
            return "–"
        low, middle, high = np.quantile(self.values, (0, 0.5, 1))
        spread = f" ({low:.3g} … {high:.3g})" if len(self.values) > 1 else ""
        return f"{middle:.3g}{spread}"


def ledger(path: Path = ROOT / "claims.yml") -> list[Claim]:
    """The claims of ``claims.yml``.

    Raises InputError for a row with a missing or unknown key, a measure that
    does not exist, or an id given twice.
    """
    claims: dict[str, Claim] = {}
    for number, row in enumerate(yaml.safe_load(path.read_text("utf-8")), 1):
        where = f"{path.name}, row {number} ({row.get('id', 'no id')})"
        for key in set(row) - _KEYS:
            raise InputError(f"{where}: {unknown('key', key, _KEYS)}")
        for key in ("id", "where", "statement", "notebook"):
            if not row.get(key):
                raise InputError(f"{where}: key {key!r} is missing; add it")
        claim = Claim(**row)
        if claim.run and claim.measure not in MEASURES:
            raise InputError(f"{where}: {unknown('measure', claim.measure, MEASURES)}")
        if not claim.run and not claim.why:
            raise InputError(f"{where}: has neither a run nor a why; add one")
        if claim.id in claims:
            raise InputError(f"{where}: the id is given twice; rename one")
        for rule in (claim.reproduced, claim.partly):
            if rule:
                _rule(rule, where)
        claims[claim.id] = claim
    return list(claims.values())


def judge(claim: Claim, records: RunStore) -> Verdict:
    """The verdict on a claim, from the runs of ``records``."""
    if not claim.run:
        return Verdict(claim, f"not run ({claim.why})")
    pattern = claim.run
    if "/SECOND/" in pattern:
        records = second(records)
        if lm.CARDS[records.config.model].tiny:
            return Verdict(claim, "not run (its model has random weights)")
        pattern = pattern.replace("SECOND", records.config.model)
    if not records.matching(pattern):
        return Verdict(claim, "not run (no recorded run)")
    values = tuple(np.atleast_1d(MEASURES[claim.measure](records, pattern)).tolist())
    stale = ", stale" * any(run.stale for run in records.matching(pattern))
    middle = float(f"{np.median(values):.12g}")
    for verdict, rule in (("reproduced", claim.reproduced), ("partly", claim.partly)):
        if rule:
            compare, bound = _rule(rule, claim.id)
            if compare(middle, bound):
                return Verdict(claim, verdict + stale, values)
    return Verdict(claim, "not reproduced" + stale, values)


def _rule(rule: str, where: str) -> tuple[Callable[[float, float], bool], float]:
    try:
        sign, bound = rule.split()
        return _COMPARE[sign], float(bound)
    except (ValueError, KeyError):
        raise InputError(f"{where}: {rule!r} is no comparison; write it as '>= 0.9'") from None


def scorecard(verdicts: list[Verdict], provenance: str) -> str:
    """The scorecard page, in MyST Markdown, with its provenance line."""
    kinds = ("reproduced", "partly", "not reproduced", "not run")
    counts = {kind: sum(v.verdict.startswith(kind) for v in verdicts) for kind in kinds}
    lines = [
        "# Scorecard",
        "",
        "Every claim of the paper, with the test it must pass and what came of it. This page is",
        "written from the recorded runs by `python -m workflow.claims`; nothing on it is typed.",
        "",
        f"Of {len(verdicts)} claims: "
        + ", ".join(f"{n} {kind}" for kind, n in counts.items())
        + ".",
        "",
        ":::{list-table}",
        ":header-rows: 1",
        ":widths: 6 15 41 14 24",
        "",
    ]
    rows = [["Claim", "Where", "Statement and test", "Value", "Verdict"]]
    for v in verdicts:
        claim = v.claim
        test = ""
        if claim.run:
            what = (MEASURES[claim.measure].__doc__ or "").strip().splitlines()[0].rstrip(".")
            partly = f", partly if {claim.partly}" if claim.partly else ""
            test = f" *Test: {what}; reproduced if {claim.reproduced}{partly}.*"
        page = (ROOT / "notebooks" / f"{claim.notebook}.py").exists()
        chapter = f" [→](../notebooks/{claim.notebook}.ipynb)" if page else ""
        rows.append([f"{claim.id}{chapter}", claim.where, claim.statement + test])
        rows[-1] += [v.value, f"**{v.verdict}**" if claim.run else v.verdict]
    for row in rows:
        lines += ["* - " + row[0], *(f"  - {cell}" for cell in row[1:])]
    return "\n".join([*lines, ":::", "", provenance, ""])


def table(notebook: str, records: RunStore) -> str:
    """The verdicts on a chapter's claims from the runs of ``records``, as a Markdown table.

    The sample's behaviors are not the paper's: at the smoke tier nothing is judged.
    """
    if records.config.data == "sample":
        return "*The claims are about the paper's behaviors; those of the sample are not judged.*"
    lines = ["| claim | statement | value | verdict |", "|---|---|---|---|"]
    for claim in ledger():
        if claim.notebook == notebook:
            found = judge(claim, records)
            lines.append(
                f"| {claim.id} | {claim.statement} | {found.value} | **{found.verdict}** |"
            )
    return "\n".join(lines)


def summary(verdicts: list[Verdict]) -> str:
    """The verdict on each claim by its id, as JSON: what pages of prose look up."""
    found = {v.claim.id: v.verdict for v in verdicts}
    return json.dumps(found, indent=1, ensure_ascii=False) + "\n"


def pages() -> dict[str, str]:
    """What the book tier's runs, replayed as for its chapters, say: files of ``book/`` by name."""
    records = RunStore(configure({"tier": "book"}))
    for chapter in CHAPTERS.values():
        for run in chapter:
            run(records)
    verdicts = [judge(claim, records) for claim in ledger()]
    return {
        "scorecard.md": scorecard(verdicts, records.provenance()),
        "verdicts.json": summary(verdicts),
    }


def main() -> None:
    """Write ``book/scorecard.md`` and ``book/verdicts.json``."""
    for name, text in pages().items():
        atomic_write(ROOT / "book" / name, text.encode())


if __name__ == "__main__":
    try:
        main()
    except InputError as problem:
        sys.exit(f"error: {problem}")
