"""A table and scatter plot of many behaviors to search and sort, in self-contained HTML."""

import html
from collections.abc import Mapping, Sequence
from importlib import resources
from string import Template

import pandas as pd
from IPython.display import HTML


def browse(
    rows: pd.DataFrame,
    caption: str,
    *,
    name: str,
    axes: Sequence[str],
    colors: Mapping[str, str] | None = None,
) -> HTML:
    """The table ``rows``, with names as its index, and a scatter plot of two of its columns.

    ``axes`` are the columns shown first, on the x and the y axis; ``colors`` maps names to colors;
    ``name`` is the element's id. NaN is blank. Without JavaScript only the table is shown.
    """
    columns = [str(column) for column in rows.columns]
    head = "".join(
        f'<th scope="col"><button type="button">{html.escape(column)}</button></th>'
        for column in ("name", *columns)
    )

    def cell(value: float) -> str:
        return "<td></td>" if pd.isna(value) else f'<td data-v="{value:.6g}">{value:.3g}</td>'

    body = "\n".join(
        f'<tr data-hue="{(colors or {}).get(row, "")}"><th scope="row">{html.escape(row)}</th>'
        + "".join(map(cell, values))
        + "</tr>"
        for row, *values in rows.itertuples()
    )
    page = Template(resources.files(__package__).joinpath("browse.html").read_text("utf-8"))
    right, up = map(columns.index, axes)
    filled = {"name": name, "caption": html.escape(caption), "head": head, "body": body}
    return HTML(page.substitute(filled, right=right, up=up))
