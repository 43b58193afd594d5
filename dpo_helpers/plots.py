"""Figures: one style and one color a behavior through the whole book."""

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
