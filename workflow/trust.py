"""The page on how far the tests can be trusted, its numbers computed.

python -m workflow.trust
"""

import json
from collections import Counter

from benchmarks.mutations import RESULTS, listed
from dpo_helpers.runs import ROOT, replace

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
"""


def page() -> str:
    """The page, from ``mutations.json``."""
    rows = json.loads(RESULTS.read_text("utf-8"))
    killed = Counter(row["file"] for row in rows if row["outcome"] == "killed")
    tried = Counter(row["file"] for row in rows)
    total = Counter(mutation.file for mutation in listed())
    table = ["| module | listed | tried | caught |", "|---|---:|---:|---:|"]
    table += [f"| `{name}` | {total[name]} | {tried[name]} | {killed[name]} |" for name in total]
    survivors = [
        f"- `{row['file']}`: `{row['old'].strip()}` to `{row['new'].strip()}`"
        for row in rows
        if row["outcome"] == "survived"
    ]
    mended = sum(row["first"] == "survived" and row["outcome"] == "killed" for row in rows)
    return _PAGE.format(
        listed=total.total(),
        tried=len(rows),
        killed=killed.total(),
        survived=len(survivors),
        first=mended,
        table="\n".join(table) + "\n",
        survivors="\nNot caught:\n\n" + "\n".join(survivors) + "\n" if survivors else "",
    )


if __name__ == "__main__":
    replace(ROOT / "book" / "trust.md", page().encode())
