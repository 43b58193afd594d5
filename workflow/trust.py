"""Write the page on how far to trust the tests and the runs. Its numbers are computed.

python -m workflow.trust
"""

import json
from collections import Counter

from benchmarks import mutations, reliability
from dpo_helpers.runs import ROOT, replace

_PAGE = """# How far to trust the tests

A test that cannot fail is worth nothing. We therefore changed formulas of `dpo_helpers` on purpose,
one at a time: a sign, a factor, a bound, an index. After each change we ran the tests of the
module. At least one of them should fail. `benchmarks/mutations.yml` lists the changes. They were
written by hand, before we knew which of them the tests catch. `python -m benchmarks.mutations`
tries them.

The list has {listed} changes. So far, {tried} were tried: **{killed} were caught**, {survived} not.
When first tried, {first} more were not caught. We then added tests that catch them.

{table}
{survivors}
A change that is *not caught* does not prove an error, and a change that is *caught* does not prove
that there is none. The result only says whether a change of that line would go unnoticed.

## Killed at a random moment

A run can stop at any time: someone closes the laptop, or a job reaches its time limit. We therefore
started a run and killed it, with all processes that it had started. The moment was drawn uniformly
from the run's duration. After a kill, every file under its final name had to be as before, or as an
undisturbed run leaves it. A file that grows during the run had to be readable. Then we ran the same
command again. It had to finish, with the same numbers as the undisturbed run, bit by bit.
`python -m benchmarks.reliability` does this.

{reliability}
*Unfinished* counts the kills that left a partly written file, under a name that marks it as such.
Of {kills} kills, {bad} left a damaged file, stopped the next run, or changed a number.
"""


def page() -> str:
    """The text of the page, from ``mutations.json`` and ``reliability.json``."""
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
    """The table of kills, one row for each kind of work."""
    table = ["| killed run | kills | at | unfinished | damaged | next run failed | other numbers |"]
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
