"""The page of a sweep (a table of its cells and their curves), and a page for each notebook."""

import base64
import html
import math
import re
import shlex
import textwrap
from collections.abc import Mapping
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import yaml
from matplotlib.figure import Figure
from nbconvert import HTMLExporter
from nbconvert.preprocessors import TagRemovePreprocessor

from dpo_helpers import plots
from dpo_helpers.files import atomic_write

from .grid import Sweep, text

# The files of a finished cell.
MADE = (".ipynb", ".html", ".csv")


def outcome(sweep: Sweep, cell: str) -> str:
    """Why a cell is not done, in one line; empty if it is done."""
    if all((sweep.folder / f"{cell}{kind}").exists() for kind in MADE):
        return ""
    try:
        return (sweep.folder / f"{cell}.failed").read_text("utf-8")
    except FileNotFoundError:
        return "did not finish; run the same command again"


def render(sweep: Sweep) -> Path:
    """Write ``index.html`` and one picture per curve into the sweep's folder.

    Cells may be missing. The page is self-contained: it embeds its pictures.
    """
    tables = {
        cell: pd.read_csv(
            sweep.folder / f"{cell}.csv", index_col="step", float_precision="round_trip"
        )
        for cell in sweep.cells
        if not outcome(sweep, cell)
    }
    names = list(dict.fromkeys(name for table in tables.values() for name in table))
    chapter, count = sweep.notebook, len(sweep.cells)
    swept = list(next(iter(sweep.cells.values())))
    facts = {
        "notebook": f"{chapter}, tier {sweep.tier}",
        "swept": ", ".join(swept),
        "the same in all cells": ", ".join(_labels(sweep.fixed)) or "the tier's settings",
        "done": f"{len(tables)} of {count}",
    }
    page = PAGE.format(
        name=html.escape(sweep.name),
        facts="".join(
            f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>" for k, v in facts.items()
        ),
        table=_table(sweep, tables, names),
        figures="".join(_figure(sweep, tables, name) for name in names)
        or "<p>No finished cell has a curve.</p>",
    )
    index = sweep.folder / "index.html"
    atomic_write(index, page.encode())
    return index


def notebook_page(executed: Path) -> str:
    """A notebook as a web page, without the code that the book folds, and with alt texts."""
    page = nbformat.read(executed, as_version=4)
    for cell in page.cells:
        cell.metadata["alt"] = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
    exporter = HTMLExporter(template_name="classic")
    hidden = TagRemovePreprocessor(remove_input_tags={"hide-input"}, enabled=True)
    exporter.register_preprocessor(hidden)
    return exporter.from_notebook_node(page, {"metadata": {"name": executed.stem}})[0]


def command(sweep: Sweep, row: Mapping[str, object]) -> str:
    """The command that executes one cell alone."""
    parameters = {"tier": sweep.tier, **sweep.fixed, **row}
    given = yaml.safe_dump(parameters, default_flow_style=True, sort_keys=False, width=math.inf)
    return f"papermill notebooks/{sweep.notebook}.ipynb out.ipynb -y {shlex.quote(given.strip())}"


def _labels(row: Mapping[str, object]) -> list[str]:
    """Parameters with their values; behaviors are shown without the parameter's name."""
    return [text(v) if name == "behaviors" else f"{name} {text(v)}" for name, v in row.items()]


def _table(sweep: Sweep, tables: Mapping[str, pd.DataFrame], names: list[str]) -> str:
    rows = []
    for cell, row in sweep.cells.items():
        line = {html.escape(name): html.escape(text(value)) for name, value in row.items()}
        for name in names:
            curve = tables.get(cell, pd.DataFrame()).get(name, pd.Series(dtype=float)).dropna()
            shown = f"{curve.iloc[-1]:.4g} ({curve.mean():.4g})" if len(curve) else "–"
            line[html.escape(name)] = shown
        links = ", ".join(
            f'<a href="{cell}{kind}" aria-label="{kind} of {cell}">{kind}</a>'
            for kind in (".html", ".ipynb", ".csv")
        )
        failed = f"<strong>failed</strong>: {html.escape(outcome(sweep, cell))}"
        line["notebook, curves"] = links if cell in tables else failed
        again = html.escape(command(sweep, row))
        line["run alone"] = f"<details><summary>command</summary><code>{again}</code></details>"
        rows.append(line)
    table = pd.DataFrame(rows).to_html(escape=False, index=False, border=0, justify="left")
    return table.replace("<th>", '<th scope="col">')


def _drawn(panels: Mapping[str, Mapping[str, pd.Series]], colors: Mapping, name: str) -> Figure:
    """Panels by title, two a row, with curves by label; all with the same vertical axis."""
    rows = -(-len(panels) // 2)
    with plt.style.context(plots.STYLE):
        size = (4.4 * min(2, len(panels)) + 0.4, 3.1 * rows + 0.4)
        figure, axes = plt.subplots(
            rows, min(2, len(panels)), figsize=size, sharey=True, squeeze=False
        )
        for axis in axes.flat[len(panels) :]:
            axis.set_visible(False)
        drawn = {}
        for axis, (title, curves) in zip(axes.flat, panels.items(), strict=False):
            for label, curve in curves.items():
                (drawn[label],) = axis.plot(curve.index, curve, color=colors[label])
            axis.set(xlabel="step", ylabel=name, title=title)
        legend = dict(loc="outside lower center", ncols=2, frameon=False)
        figure.legend(drawn.values(), drawn.keys(), **legend)
    plt.close(figure)
    return figure


def _figure(sweep: Sweep, tables: Mapping[str, pd.DataFrame], name: str) -> str:
    """One curve of all cells: a panel for each value of the first parameter, a line for each cell.

    With a single parameter, there is one panel.
    """
    panels: dict[str, dict] = {}
    colors, last = {}, {}
    for cell, row in sweep.cells.items():
        if cell in tables and name in tables[cell]:
            first, *rest = _labels(row)
            line, panel = (", ".join(rest), first) if rest else (first, "")
            curve = tables[cell][name].dropna()
            panels.setdefault(textwrap.fill(panel, 36), {})[line] = curve
            last[", ".join((first, *rest))] = curve.iloc[-1]
            if len(row.get("behaviors") or []) == 1:
                colors[line] = plots.color(row["behaviors"][0])
    lines = list(dict.fromkeys(line for curves in panels.values() for line in curves))
    if len(set(colors.values())) < len(lines):
        shades = plt.get_cmap("viridis")(np.linspace(0, 0.85, len(lines)))
        colors = dict(zip(lines, shades, strict=True))
    figure = _drawn(panels, colors, name)
    picture = sweep.folder / (re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") + ".svg")
    with plt.rc_context({"svg.hashsalt": sweep.name}):
        figure.savefig(picture, metadata={"Date": None}, bbox_inches="tight")
    lowest, highest = min(last, key=last.get), max(last, key=last.get)
    alt = (
        f"{name} against step for {len(last)} cells in {len(panels)} panels. It ends lowest with "
        f"{lowest}, at {last[lowest]:.3g}, and highest with {highest}, at {last[highest]:.3g}."
    )
    return FIGURE.format(
        alt=html.escape(alt),
        name=html.escape(name),
        content=base64.b64encode(picture.read_bytes()).decode(),
    )


FIGURE = """<figure tabindex="0">
<figcaption>{name}</figcaption>
<img alt="{alt}" src="data:image/svg+xml;base64,{content}">
</figure>
"""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Sweep: {name}</title>
<style>
body {{ font: 1rem/1.5 system-ui, sans-serif; color: #222; background: #fff; margin: 0 auto;
       max-width: 80rem; padding: 1rem; }}
dl {{ display: grid; grid-template-columns: max-content auto; gap: 0 1rem; }}
dd {{ margin: 0; overflow-wrap: anywhere; }}
.wide, figure {{ overflow-x: auto; margin: 1rem 0; }}
table {{ border-collapse: collapse; }}
th, td {{ padding: .3rem .8rem .3rem 0; border-bottom: 1px solid #ccc; vertical-align: top; }}
td {{ max-width: 22rem; overflow-wrap: break-word; }}
img {{ width: 100%; min-width: 34rem; max-width: 60rem; }}
figcaption {{ font-weight: bold; }}
summary {{ white-space: nowrap; }}
</style>
</head>
<body>
<main>
<h1>Sweep: {name}</h1>
<dl>{facts}</dl>
<h2>All runs</h2>
<p>Each curve is shown by its last value and, in brackets, its mean over the measured steps.</p>
<div class="wide" role="region" aria-label="All runs" tabindex="0">
{table}
</div>
<h2>Curves</h2>
<p>All panels of a curve have the same axes.</p>
{figures}
</main>
</body>
</html>
"""
