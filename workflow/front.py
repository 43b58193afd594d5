"""Draw the book's two pictures from the recorded run of Figure 3 and the verdicts.

``front.png`` is in the README and on the first page. ``card.png`` is the preview of a link.

python -m workflow.front
"""

import json
from collections import Counter

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from dpo_helpers import plots
from ledger.config import configure
from ledger.store import ROOT, RunStore


def front(records: RunStore) -> Figure:
    """Training loss and displacement of five behaviors, side by side."""
    f3 = records.recorded("f3").arrays
    panels = {"training loss": f3["loss"][:, 0, 0], "displacement ‖W(t) − W(0)‖": f3["distance"]}
    plots.use_style()
    figure, axes = plt.subplots(1, 2, figsize=(9.4, 3.8), dpi=160)
    for axis, (label, values) in zip(axes, panels.items(), strict=True):
        for number, behavior in enumerate(records.config.behaviors):
            name = f"{number + 1} {plots.short(behavior)}"
            steps = np.arange(values.shape[1])
            plots.band(axis, steps, values[number], color=plots.color(behavior), label=name)
        axis.set(xlabel="step", ylabel=label, xlim=(0, values.shape[1] - 1))
    plots.legend_below(figure, axes[0])
    return figure


def card(records: RunStore) -> Figure:
    """The link preview, 1200 × 630 pixels: the title, five curves, and the number of verdicts."""
    verdicts = json.loads((ROOT / "book" / "verdicts.json").read_text("utf-8"))
    count = Counter(verdicts.values())
    figure = plt.figure(figsize=(12, 6.3), dpi=100, layout="none")
    for y, size, text in (
        (0.80, 38, "The learning\ndynamics of DPO"),
        (0.52, 21, "Which preferences are learned first,\nand what predicts it before training"),
        (0.17, 17, f"{count.total()} claims of Im & Li (ICML 2024), tested:\n"
         f"{count['reproduced']} reproduced, {count['partly']} partly, "
         f"{count['not reproduced']} not"),
    ):  # fmt: skip
        figure.text(0.05, y, text, fontsize=size, va="center", linespacing=1.3)
    axis = figure.add_axes((0.62, 0.16, 0.34, 0.7))
    losses = np.median(records.recorded("f3").arrays["loss"][:, 0, 0], -1)
    for behavior, loss in zip(records.config.behaviors, losses, strict=True):
        axis.plot(loss, color=plots.color(behavior), linewidth=4)
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_xticks([]), axis.set_yticks([])
    axis.set_xlabel("step", fontsize=17)
    axis.set_ylabel("training loss", fontsize=17)
    return figure


if __name__ == "__main__":
    records = RunStore(configure({"tier": "book"}))
    for draw in (front, card):
        path = ROOT / "book" / "_static" / f"{draw.__name__}.png"
        draw(records).savefig(path, dpi="figure", metadata={"Software": None})
