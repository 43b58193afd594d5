"""The page on how far the tests can be trusted, and the runs; its numbers are computed.

python -m workflow.trust
"""

import json
from collections import Counter

from benchmarks import mutations, reliability
from dpo_helpers.runs import ROOT, replace

_PAGE = """# How far to trust the tests

A test that cannot fail is worth nothing. We therefore changed formulas of `dpo_helpers` on purpose,
one at a time: a sign, a factor, a bound, or an index. After each change we ran the tests of that
module. If at least one of them fails, the change is caught. `benchmarks/mutations.yml` lists the
changes. They were written by hand, before it was known which of them the tests catch.
`python -m benchmarks.mutations` makes the changes and runs the tests.

So far we have tried {tried} of {listed} listed changes. The tests **caught {killed}** of them and
missed {survived}. At first they had missed {first} more, and tests that catch those were added.

{table}
{survivors}
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
    rows = json.loads(mutations.RESULTS.read_text("utf-8"))
    killed = Counter(row["file"] for row in rows if row["outcome"] == "killed")
    tried = Counter(row["file"] for row in rows)
    total = Counter(mutation.file for mutation in mutations.listed())
    table = ["| module | listed | tried | caught |", "|---|---:|---:|---:|"]
    table += [f"| `{name}` | {total[name]} | {tried[name]} | {killed[name]} |" for name in total]
    survivors = [
        f"- `{row['file']}`: `{row['old'].strip()}` to `{row['new'].strip()}`"
        for row in rows
        if row["outcome"] == "survived"
    ]
    kills = json.loads(reliability.RESULTS.read_text("utf-8"))
    mended = sum(row["first"] == "survived" and row["outcome"] == "killed" for row in rows)
    return _PAGE.format(
        listed=total.total(),
        tried=len(rows),
        killed=killed.total(),
        survived=len(survivors),
        first=mended,
        table="\n".join(table) + "\n",
        kills=len(kills),
        bad=sum(bool(kill["corrupt"] or kill["problem"] or kill["differs"]) for kill in kills),
        reliability=_killed(kills),
        survivors="\nMissed:\n\n" + "\n".join(survivors) + "\n" if survivors else "",
    )


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
    replace(ROOT / "book" / "trust.md", page().encode())
