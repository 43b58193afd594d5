"""The report of an audit: one page of HTML that needs nothing else."""

from collections.abc import Sequence
from importlib import resources

import numpy as np

from .summary import TERMS, Audit, cosines, table


def report(found: Audit, rows: Sequence[dict], source: str, model: str, drawn: int = 0) -> str:
    """The report as HTML.

    ``rows`` are the pairs' texts, as ``preferences.read`` gives them. ``drawn`` is the number of
    pairs from which they were drawn at random, 0 if all are audited.
    """
    import jinja2

    def shown(number: int, value: float) -> dict:
        texts = {key: _text(rows[number][key]) for key in ("prompt", "chosen", "rejected")}
        group = found.names[found.group[number]]
        row = rows[number].get("row", number + 1)
        return {"number": row, "group": group, "value": f"{value:.3g}"} | texts

    score = found.leave_one_out_score
    order = np.argsort(score, kind="stable")
    lists = {
        "Pairs that agree most with the rest of their group": [
            shown(i, score[i]) for i in order[::-1][:10]
        ],
        "Pairs that point against the rest of their group": [
            shown(i, score[i]) for i in order[:10] if score[i] < 0
        ],
        "The same pair with the opposite preference": [
            shown(i, score[i]) for i in np.flatnonzero(found.contradicted_by >= 0)[:10]
        ],
    }
    twice = int((found.duplicate_of != np.arange(len(rows))).sum())
    contradicted = int((found.contradicted_by >= 0).sum())
    warnings = []
    if twice:
        warnings.append(f"{twice} pairs repeat an earlier one, token by token.")
    if contradicted:
        warnings.append(
            f"{contradicted} pairs contradict another: same responses, opposite preference."
        )
    groups = table(found)
    page = resources.files(__package__).joinpath("report.html").read_text("utf-8")
    return (
        jinja2.Environment(autoescape=True)
        .from_string(page)
        .render(
            source=source,
            pairs=len(rows),
            drawn=drawn,
            model=model,
            warnings=warnings,
            columns=list(groups),
            groups=[(name, [f"{v:.3g}" for v in values]) for name, *values in groups.itertuples()],
            cosines=[
                (name, ["–" if np.isnan(v) else f"{v:.2f}" for v in row])
                for name, *row in cosines(found).itertuples()
            ],
            lists=[(caption, pairs) for caption, pairs in lists.items() if pairs],
            terms=TERMS,
        )
    )


def _text(value: str | list[dict], most: int = 400) -> str:
    """A text, or messages as text; the end of it, if it is long."""
    if not isinstance(value, str):
        value = "\n".join(f"{m['role']}: {m['content']}" for m in value)
    return value if len(value) <= most else "… " + value[-most:]
