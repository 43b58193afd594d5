"""The page on how far the tests can be trusted, and the runs; its numbers are computed.

python -m workflow.trust
"""

import json
from collections import Counter

from benchmarks import mutations, reliability
from dpo_helpers.files import atomic_write
from ledger.store import ROOT

_PAGE = """# How far to trust the tests

A test that cannot fail is worth nothing. So formulas of `dpo_helpers` were changed on purpose, one
at a time: a sign, a factor, a bound, an index. Each time the tests of that module were run, and one
of them should fail. `benchmarks/mutations.yml` lists the changes; they were written by hand, before
it was known what the tests make of them. `python -m benchmarks.mutations` tries them.

Of {listed} changes listed, {tried} were tried so far: **{killed} were caught**, {survived} not.
When it was first tried, {first} more had survived; tests were added that catch them.

{table}
{survivors}
*Not caught* is no proof of an error, nor *caught* of its absence: it says whether a change of that
line would go unnoticed.

## Killed at a random moment

A run may be stopped at any time: a laptop is closed, a queue's time is up. So work was begun and
killed, with all processes it had started, at a moment drawn uniformly from the time that it takes.
Every file under its final name had to be as before, or as an undisturbed run leaves it; what grows,
to be readable. Then the same command was given again. It had to end, and to leave the same numbers,
bit by bit, as the undisturbed run. `python -m benchmarks.reliability` does that.

{reliability}
*Unfinished*: kills that left something still being written, under a name that says so. Of {kills}
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
        survivors="\nNot caught:\n\n" + "\n".join(survivors) + "\n" if survivors else "",
    )


def _killed(kills: list[dict]) -> str:
    """The table of kills, a row a kind of work."""
    table = ["| killed | kills | at | unfinished | damaged | next run failed | other numbers |"]
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
