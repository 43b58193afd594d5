"""The picture of the README and the book's first page, from the recorded run of Figure 3.

python -m workflow.front
"""

from dpo_helpers import plots
from dpo_helpers.config import configure
from dpo_helpers.runs import ROOT, Records

if __name__ == "__main__":
    records = Records(configure({"tier": "book"}))
    f3 = records.recorded("f3").arrays
    panels = {"training loss": f3["loss"][:, 0, 0], "‖W(t) − W(0)‖": f3["distance"]}
    figure = plots.curves(panels, records.config.behaviors)
    figure.savefig(ROOT / "book" / "_static" / "front.png", metadata={"Software": None})
