"""The page on how far the tests can be trusted, and the runs; its numbers are computed.

python -m workflow.trust
"""

import json
import textwrap
from collections import Counter

from benchmarks import mutations, reliability
from dpo_helpers.files import atomic_write
from ledger.store import ROOT

_PAGE = """# How far to trust the tests

A test that cannot fail is worth nothing. We therefore change formulas of the code on purpose, one
at a time: a sign, a factor, a bound, or an index. After each change we run the tests of that
module. If at least one of them fails, the change is caught. `benchmarks/mutations.yml` lists the
changes. They were written by hand, before it was known which of them the tests catch.
`python -m benchmarks.mutations` makes the changes and runs the tests.

{tried}

{table}
A missed change does not prove that there is an error. A caught change does not prove that there is
none. The result says only whether a change of that line would go unnoticed.

## Killed at a random moment

A run can be stopped at any time: a laptop is closed, or a job reaches the time limit of its queue.
We therefore started work and killed it, with all processes that it had started. The moment of the
kill was drawn uniformly from the time that the work takes. After the kill, every file under its
final name had to be as it was before, or as an undisturbed run leaves it. Files that grow had to be
readable. Then we gave the same command again. It had to finish, and to leave the same numbers as
the undisturbed run, bit by bit. `python -m benchmarks.reliability` makes these kills.

{reliability}
*At* is the moment of the kill, as a share of the duration of the undisturbed work. *Unfinished*
counts the kills that left an unfinished file, under a name that says so. Of {kills}
kills, {bad} left a damaged file, stopped the next run, or changed a number.
"""


def page() -> str:
    """The page, from ``mutations.json`` and ``reliability.json``."""
    listed, found = mutations.listed(), mutations.results()
    valid = found.valid(listed, ROOT)
    kills = json.loads(reliability.RESULTS.read_text("utf-8"))
    return _PAGE.format(
        tried=_tried(listed, found, valid),
        table=_mutated(listed, valid),
        kills=len(kills),
        bad=sum(bool(kill["corrupt"] or kill["problem"] or kill["differs"]) for kill in kills),
        reliability=_killed(kills),
    )


def _tried(listed: list[mutations.Mutation], found: mutations.Results, valid: list[dict]) -> str:
    """How many changes were tried, with the present code and before, and which were missed."""
    parts = [f"None of the {len(listed)} listed changes has been tried with the present code yet."]
    if valid:
        parts = [
            f"With the present code and tests, we have tried {len(valid)} of {len(listed)} listed "
            f"changes. {_outcomes(valid)}",
            *_missed(valid),
        ]
    if outdated := sum(m.place in found.known for m in listed) - len(valid):
        parts.append(
            f"We have tried {outdated} more, but their files or tests have changed since. Those "
            "results do not count."
        )
    if found.earlier:
        parts.append(
            f"Before the code was restructured, we had tried {len(found.earlier)} such changes, in "
            f"the files and with the tests of that time. {_outcomes(found.earlier)}"
        )
        parts += _missed(found.earlier)
    return "\n\n".join(part if part[0] == "-" else _wrapped(part) for part in parts)


def _outcomes(rows: list[dict]) -> str:
    """How many changes the tests caught and missed, now and at first."""
    missed = sum(row["outcome"] == "survived" for row in rows)
    mended = sum(row["first"] == "survived" for row in rows) - missed
    text = f"The tests **caught {len(rows) - missed}** of them and missed {missed}."
    if mended:
        text += f" At first they had missed {mended} more, and tests that catch those were added."
    return text


def _missed(rows: list[dict]) -> list[str]:
    """The changes that the tests missed, as a heading and a list; nothing if there are none."""
    found = [
        f"- `{row['file']}`: `{row['old'].strip()}` to `{row['new'].strip()}`"
        for row in rows
        if row["outcome"] == "survived"
    ]
    return ["Missed:", "\n".join(found)] if found else []


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 100, break_long_words=False, break_on_hyphens=False)


def _mutated(listed: list[mutations.Mutation], valid: list[dict]) -> str:
    """The table of changes, a row for each file."""
    total = Counter(mutation.file for mutation in listed)
    tried = Counter(row["file"] for row in valid)
    caught = Counter(row["file"] for row in valid if row["outcome"] == "killed")
    table = ["| module | listed | tried | caught |", "|---|---:|---:|---:|"]
    table += [f"| `{name}` | {total[name]} | {tried[name]} | {caught[name]} |" for name in total]
    return "\n".join(table) + "\n"


def _killed(kills: list[dict]) -> str:
    """The table of kills, a row a kind of work."""
    table = ["| work | kills | at | unfinished | damaged | next run failed | other numbers |"]
    table += ["|---|---:|---|---:|---:|---:|---:|"]
    for kind in dict.fromkeys(kill["kind"] for kill in kills):
        rows = [kill for kill in kills if kill["kind"] == kind]
        moments = [row["moment"] for row in rows]
        cells = [
            reliability.KINDS[kind].what,
            len(rows),
            f"{min(moments):.0%} – {max(moments):.0%}",
        ]
        for what in ("unfinished", "corrupt", "problem", "differs"):
            cells.append(sum(bool(row[what]) for row in rows))
        table.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(table) + "\n"


if __name__ == "__main__":
    atomic_write(ROOT / "book" / "trust.md", page().encode())
