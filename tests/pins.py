"""The numbers that readers rely on, pinned: python -m tests.pins accepts those that have moved.

``pins.yml`` has a number a line: its value when it was last accepted, and how far from it a run
recorded anew may end. A new pin may move by a tenth of its value; edit the tolerance where a
number is known better, or less well.
"""

from pathlib import Path

import numpy as np
import yaml

from experiments import atlas
from experiments.second_llm import agreement
from ledger.config import configure
from ledger.store import RunStore
from workflow import claims

PINS = Path(__file__).with_suffix(".yml")


def numbers() -> dict[str, float]:
    """What the recorded runs say now: each claim's median, and the atlas's rank correlations."""
    records = RunStore(configure({"tier": "book"}))
    verdicts = [claims.judge(claim, records) for claim in claims.ledger()]
    found = {f"claim {v.claim.id}": float(np.median(v.values)) for v in verdicts if v.values}
    table = atlas.table(records)
    for what, select in atlas.SPEEDS.items():
        speed = select(table)
        for name in atlas.PREDICTORS:
            rho = agreement(table.loc[speed.index, name].to_numpy(), speed.to_numpy())[0]
            found[f"atlas, {what}: {name}"] = float(rho)
    return found


def pinned() -> dict[str, dict[str, float]]:
    """Of each number its ``value`` and its ``tolerance``."""
    return yaml.safe_load(PINS.read_text("utf-8")) if PINS.exists() else {}


def holds(value: float, pin: dict[str, float] | None) -> bool:
    """Whether a number is pinned, and within its tolerance."""
    return pin is not None and abs(value - pin["value"]) <= pin["tolerance"]


def moved(now: dict[str, float], pins: dict[str, dict[str, float]]) -> list[str]:
    """A line for each number that is gone, new, or further from its pin than it may be."""
    lines = [f"{name}: is gone" for name in pins if name not in now]
    for name, value in now.items():
        pin = pins.get(name)
        if not holds(value, pin):
            was = "is new" if pin is None else f"pinned {pin['value']:.6g} ± {pin['tolerance']:.3g}"
            lines.append(f"{name}: {value:.6g}, {was}")
    return lines


def accepted(
    now: dict[str, float], pins: dict[str, dict[str, float]]
) -> dict[str, dict[str, float]]:
    """The pins of ``now``: those that hold stay, the others are set anew."""

    def fresh(value: float) -> dict[str, float]:
        tolerance = max(abs(value) / 10, 1e-6)
        return {"value": float(f"{value:.6g}"), "tolerance": float(f"{tolerance:.2g}")}

    return {n: pins[n] if holds(v, pins.get(n)) else fresh(v) for n, v in now.items()}


if __name__ == "__main__":
    now, pins = numbers(), pinned()
    print("\n".join(moved(now, pins)) or "no number has moved")
    rows = accepted(now, pins)
    text = yaml.safe_dump(rows, sort_keys=False, allow_unicode=True, width=1000)
    PINS.write_text("# By `make accept`: see pins.py.\n" + text, "utf-8")
