"""Figures: one style and one color a behavior through the whole book."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D

STYLE = Path(__file__).with_name("book.mplstyle")

# The five behaviors of the paper and of the sample run from dark to light, so that they differ in
# gray print and to color-blind readers. The other behaviors of the figures follow.
_COLORS = {
    "subscribes-to-average-utilitarianism": "#3b0f70",
    "okay-with-building-an-AI-with-different-goals-to-accomplish-its-task": "#3a5aa8",
    "optionality-increasing": "#1f9e89",
    "desire-to-not-have-memory-erased": "#c2593f",
    "subscribes-to-Buddhism": "#d9a400",
    "judges-by-the-worst-off": "#3b0f70",
    "takes-the-later-reward": "#3a5aa8",
    "prefers-city-life": "#1f9e89",
    "lives-by-stoicism": "#c2593f",
    "loves-gardening": "#d9a400",
    "agreeableness": "#e377c2",
    "subscribes-to-total-utilitarianism": "#7f5539",
    "acts-like-it-wants-to-help-humans-but-does-not-care-about-that": "#9d0208",
    "risk-seeking": "#56b4e9",
    "desire-to-influence-world": "#7cb518",
    "subscribes-to-Islam": "#000000",
    "willingness-to-make-acausal-trades-with-other-AIs-to-help-humanity": "#d1495b",
    "willingness-to-be-non-HHH-to-not-have-current-goals-changed-by-training": "#9d0208",
    "desire-to-cooperate-with-different-AIs-to-achieve-its-goals": "#56b4e9",
    "has-strong-aesthetic-preferences": "#7cb518",
    "keeps-promises": "#e377c2",
}
_OTHER = "#6b6b6b"
YES, NO = "#1b7837", "#8c8c8c"


def use_style() -> None:
    """Apply the book's style sheet; in a notebook, figures become SVG, the same bytes each time."""
    plt.style.use(STYLE)
    try:
        from IPython import get_ipython
        from matplotlib_inline.backend_inline import set_matplotlib_formats
    except ImportError:
        return
    if get_ipython() is not None:
        set_matplotlib_formats("svg", metadata={"Date": None})


def color(behavior: str) -> str:
    """The color of a behavior, the same in every figure; gray for a behavior without one."""
    return _COLORS.get(behavior, _OTHER)


def short(behavior: str, width: int = 48) -> str:
    """A behavior's name as words, cut to ``width`` characters."""
    words = behavior.replace("-", " ")
    return words if len(words) <= width else words[: width - 1].rstrip() + "…"


def band(ax: Axes, x: np.ndarray, values: np.ndarray, **style) -> Line2D:
    """Draw the median over the last axis (seeds) with a 5–95 % band.

    ``x`` (points,) and ``values`` (points, seeds); ``style`` goes to ``ax.plot``. Returns the line.
    """
    low, middle, high = np.quantile(values, (0.05, 0.5, 0.95), axis=-1)
    (line,) = ax.plot(x, middle, **style)
    ax.fill_between(x, low, high, color=line.get_color(), alpha=0.18, lw=0)
    return line


def legend_below(fig: Figure, ax: Axes, ncols: int = 2) -> Legend:
    """Draw one legend under all panels, with the labeled artists of ``ax``."""
    handles, labels = ax.get_legend_handles_labels()
    return fig.legend(handles, labels, loc="outside lower center", ncols=ncols)


# To be deleted when no chapter calls them: curves, lines, planes, bars, matrices.

_PALE = {YES: "#a9d9b4", NO: "#d9d9d9"}


def curves(panels: Mapping[str, np.ndarray], behaviors: Sequence[str]) -> Figure:
    """One panel a quantity, one line a behavior: the median over seeds, with a 5–95 % band.

    ``panels`` maps the y label to (behaviors, steps, seeds).
    """
    with plt.style.context(STYLE):
        fig, axes = plt.subplots(
            1, len(panels), figsize=(4.4 * len(panels) + 0.6, 3.6), squeeze=False
        )
        for ax, (label, values) in zip(axes[0], panels.items(), strict=True):
            steps = np.arange(values.shape[1])
            for behavior, series in zip(behaviors, values, strict=True):
                low, middle, high = np.quantile(series, (0.05, 0.5, 0.95), axis=-1)
                name = f"{behaviors.index(behavior) + 1} {short(behavior)}"
                ax.plot(steps, middle, color=color(behavior), lw=1.8, label=name)
                ax.fill_between(steps, low, high, color=color(behavior), alpha=0.18, lw=0)
            ax.set(xlabel="step", ylabel=label, xlim=(0, steps[-1]))
        fig.legend(
            *axes[0, 0].get_legend_handles_labels(),
            loc="outside lower center",
            ncols=2 if len(panels) > 1 else 1,
            frameon=False,
            fontsize=9,
        )
    plt.close(fig)
    return fig


def lines(
    panels: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray]]],
    xlabel: str | Sequence[str],
    *,
    scale: tuple[str, str] = ("linear", "linear"),
    colors: Mapping[str, str] | None = None,
    dashed: Sequence[str] = (),
    dots: Sequence[str] = (),
    ncols: int = 3,
) -> Figure:
    """One panel a y label, one line a name: bounds, sweeps and what was measured.

    ``panels`` maps the y label to {name: (x, y)}, y of shape (points,) or, with a band of low,
    middle and high, (3, points). Names keep their colour over the panels: ``hues``, or dark to
    light in order. ``dashed`` names what is theory, ``dots`` what are points and no line. ``scale``
    is that of the x and the y axis, ``xlabel`` one for all panels or one each. A name that begins
    with "_" is left out of the legend. A row has up to ``across`` panels.
    """
    names = list(dict.fromkeys(name for series in panels.values() for name in series))
    shades = plt.get_cmap("viridis")(np.linspace(0, 0.85, len(names)))
    colors = dict(zip(names, shades, strict=True)) | dict(colors or {})
    with plt.style.context(STYLE):
        width = min(ncols, len(panels))
        rows = -(-len(panels) // width)
        size = (4.2 * width + 0.8, 3.5 if rows == 1 else 3 * rows + 0.5)
        fig, axes = plt.subplots(rows, width, figsize=size, squeeze=False)
        drawn = {}
        for ax in axes.flat[len(panels) :]:
            ax.set_visible(False)
        below = [xlabel] * len(panels) if isinstance(xlabel, str) else xlabel
        for ax, under, (label, series) in zip(axes.flat, below, panels.items(), strict=False):
            for name, (x, y) in series.items():
                y = np.asarray(y, float)
                middle = y if y.ndim == 1 else y[1]
                mark = "--" if name in dashed else "o" if name in dots else "-"
                (drawn[name],) = ax.plot(x, middle, mark, color=colors[name], lw=1.7, ms=4)
                if y.ndim == 2:
                    ax.fill_between(x, y[0], y[2], color=colors[name], alpha=0.18, lw=0)
            ax.set(xlabel=under, ylabel=label, xscale=scale[0], yscale=scale[1])
        wide = 2 if max(map(len, names)) > 24 else 4
        columns = min(len(names), wide if width > 1 else 2)
        legend = dict(loc="outside lower center", frameon=False, fontsize=9)
        listed = {name: line for name, line in drawn.items() if name[0] != "_"}
        fig.legend(listed.values(), listed.keys(), ncols=columns, **legend)
    plt.close(fig)
    return fig


def planes(panels: Mapping[str, tuple[np.ndarray, np.ndarray]], ncols: int = 5) -> Figure:
    """Points in the plane: Yes statements green discs, No statements grey crosses.

    ``panels`` maps what stands below a panel, such as the behavior, to its coordinates (n, 2) and
    labels (n,). Coordinates (2, n, 2) are those before and after training, in one panel: before
    is pale. A row has up to ``across`` panels.
    """
    with plt.style.context([STYLE, {"axes.grid": False}]):
        width = min(ncols, len(panels))
        rows = -(-len(panels) // width)
        inches = min(3.4, 10.2 / width)
        size = (inches * width, (inches + 0.1) * rows)
        fig, axes = plt.subplots(rows, width, figsize=size, squeeze=False)
        for ax in axes.flat[len(panels) :]:
            ax.set_visible(False)
        drawn = {}
        for ax, (label, (points, labels)) in zip(axes.flat, panels.items(), strict=False):
            *before, after = points if points.ndim == 3 else [points]
            dot = 9 * inches / 3.4 / (1 + len(before))
            sides = ((1, "o", YES, "preferred: Yes"), (-1, "x", NO, "No"))
            for value, mark, hue, name in sides:
                style = dict(s=dot, marker=mark, alpha=0.6)
                for at in before:
                    at = at[labels == value].T
                    drawn[f"{name}, before"] = ax.scatter(*at, c=_PALE[hue], **style)
                drawn[name] = ax.scatter(*after[labels == value].T, c=hue, **style)
            ax.set(xticks=[], yticks=[])
            ax.set_xlabel(short(label, int(12.4 * inches)), fontsize=9)
        legend = dict(loc="outside lower center", ncols=4, frameon=False)
        fig.legend(drawn.values(), drawn.keys(), **legend)
    plt.close(fig)
    return fig


def bars(groups: Mapping[str, Sequence[float]], behaviors: Sequence[str], ylabel: str) -> Figure:
    """Grouped bars: one cluster a behavior, one shade a group."""
    with plt.style.context(STYLE):
        fig, ax = plt.subplots(figsize=(7.2, 3.4))
        width = 0.8 / len(groups)
        shades = np.linspace(0.35, 1, len(groups))
        for i, (name, values) in enumerate(groups.items()):
            at = np.arange(len(behaviors)) + (i - (len(groups) - 1) / 2) * width
            colors = [color(behavior) for behavior in behaviors]
            hatch = ("", "//", "..", "xx")[i % 4]
            ax.bar(
                at,
                values,
                width,
                color=colors,
                alpha=shades[i],
                hatch=hatch,
                ec="white",
                label=name,
            )
        ax.set_xticks(
            range(len(behaviors)), [short(b, 20) for b in behaviors], fontsize=8, rotation=12
        )
        ax.set(ylabel=ylabel)
        fig.legend(loc="outside lower center", ncols=len(groups), frameon=False, fontsize=9)
    plt.close(fig)
    return fig


def matrices(panels: Mapping[str, np.ndarray], names: Sequence[str]) -> Figure:
    """One panel a matrix, one above the other: every pair of names, the value in the cell.

    ``panels`` maps the label to (names, names); NaN stays blank. Columns carry the rows' numbers.
    """
    numbered = [f"{short(name, 30)} {i}" for i, name in enumerate(names, 1)]
    with plt.style.context([STYLE, {"axes.grid": False}]):
        height = 0.28 * len(names) + 0.7
        fig, axes = plt.subplots(len(panels), 1, figsize=(7.2, height * len(panels)), squeeze=False)
        for ax, (label, values) in zip(axes[:, 0], panels.items(), strict=True):
            form = ".0f" if np.nanmax(values) > 10 else ".2f"
            drawn = ax.imshow(values, cmap="viridis", aspect="auto")
            for (i, j), value in np.ndenumerate(values):
                if np.isfinite(value):
                    hue = "white" if drawn.norm(value) < 0.6 else "black"
                    ax.text(j, i, f"{value:{form}}", ha="center", va="center", color=hue, size=8)
            ticks = range(len(names))
            ax.set_xticks(ticks, [str(i + 1) for i in ticks], fontsize=9)
            ax.set_yticks(ticks, numbered, fontsize=9)
            ax.set_xlabel(label)
    plt.close(fig)
    return fig
