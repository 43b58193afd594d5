"""Carry recorded runs over to changed code that computes the same numbers, and prove it.

    python -m workflow.carry                    list the records whose code has changed, by kind
    python -m workflow.carry remake NAME ...    make these again beside the stored ones, and compare
    python -m workflow.carry rekey              give the new key to every kind that is proven

A kind is all records that are made by the same code. It is proven if at least one of its records
was made again with the present code and every array agrees with the stored one to the tolerance
of its kind. The evidence is kept in results/carried.json. No record is changed but for the hash of
its code.
"""

import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping

import numpy as np

from dpo_helpers.errors import InputError, unknown
from dpo_helpers.files import atomic_write
from experiments import CHAPTERS, record_hidden_states
from ledger.config import configure
from ledger.paths import ROOT
from ledger.record import Run, read
from ledger.store import RunStore

EVIDENCE = ROOT / "results" / "carried.json"
# Of the largest absolute value of an array. Training in bf16 products amplifies rounding, which
# differs between CPUs and numbers of threads; everything else is computed in float32 or float64.
TOLERANCE = {"trained": 2e-2, "computed": 1e-4}
TRAINED = ("full/", "flipped/", "undone/", "hh/", "first-step", "remedy/", "audit/")


def asked(wanted: tuple[str, ...] = (), made: Callable | None = None) -> dict[str, dict]:
    """Every record that the book tier's chapters ask for: its name and its key now.

    All are replayed as they are; those named in ``wanted`` are made again, and given to ``made``
    with their names.
    """
    keys: dict[str, dict] = {}
    replay = RunStore.replay_or_run

    def ask(self: RunStore, name: str, settings: Mapping, inputs: Mapping, make: Callable) -> Run:
        key = self.key(settings, inputs, make)
        stored = next(iter(self.find(name)), None)
        if stored is None or self.root != ROOT / "results":
            return replay(self, name, settings, inputs, make)
        if stored.info["key"]["settings"] != key["settings"]:
            raise InputError(f"{name}: its settings have changed; it cannot be carried over")
        first, keys[name] = name not in keys, key
        if name in wanted and first:
            start = time.monotonic()
            made(name, stored, {n: np.asarray(x) for n, x in make().items()}, start)
        self.used[name] = stored
        return stored

    RunStore.replay_or_run = ask
    try:
        records = RunStore(configure({"tier": "book"}))
        record_hidden_states(records)
        for runs in CHAPTERS.values():
            for run in runs:
                run(records)
    finally:
        RunStore.replay_or_run = replay
    return keys


def difference(stored: Mapping[str, np.ndarray], again: Mapping[str, np.ndarray]) -> float:
    """The largest difference of two runs' arrays, relative to each array's largest value.

    inf if names, shapes, texts, or the places of NaN differ.
    """
    if set(stored) != set(again):
        return np.inf
    worst = 0.0
    for name, one in stored.items():
        other = np.asarray(again[name])
        if one.shape != other.shape:
            return np.inf
        if one.dtype.kind not in "fiub":
            worst = max(worst, 0.0 if (one == other).all() else np.inf)
            continue
        one, other = one.astype(np.float64), other.astype(np.float64)
        if (np.isnan(one) != np.isnan(other)).any():
            return np.inf
        apart = np.abs(np.nan_to_num(one) - np.nan_to_num(other)).max(initial=0)
        worst = max(worst, apart / max(np.abs(np.nan_to_num(one)).max(initial=0), 1e-300))
    return float(worst) if worst else 0.0


def tolerance(name: str) -> float:
    """How far a record made again may be from the stored one."""
    return TOLERANCE["trained" if name.startswith(TRAINED) else "computed"]


def evidence() -> dict[str, dict]:
    """By record: code with which it was made again, largest difference, tolerance, seconds."""
    return json.loads(EVIDENCE.read_text("utf-8")) if EVIDENCE.exists() else {}


def kinds(keys: Mapping[str, Mapping]) -> dict[str, list[str]]:
    """The names of the records by the hash of the code that makes them."""
    found = defaultdict(list)
    for name, key in keys.items():
        found[key["code"]].append(name)
    return dict(found)


def stale(keys: Mapping[str, Mapping]) -> list[str]:
    """The names of the records whose stored code differs from the present code."""
    stored = {name: read(ROOT / "results" / name).info["key"]["code"] for name in keys}
    return [name for name, key in keys.items() if stored[name] != key["code"]]


def remake(names: tuple[str, ...]) -> None:
    """Make some records again, compare, and keep the evidence. The records stay as they are."""

    def made(name: str, stored: Run, again: dict[str, np.ndarray], start: float) -> None:
        worst = difference(stored.arrays, again)
        row = {"difference": worst, "tolerance": tolerance(name), "code": ""}
        row["seconds"] = round(time.monotonic() - start, 1)
        pending[name] = row
        print(
            f"{name}: largest relative difference {worst:.2g}, {row['seconds']:.0f} s", flush=True
        )

    pending: dict[str, dict] = {}
    known = {
        str(p.parent.relative_to(ROOT / "results")) for p in (ROOT / "results").rglob("run.json")
    }
    for name in names:
        if name not in known:
            raise unknown("record", name, known)
    keys = asked(names, made)
    for name, row in pending.items():
        row["code"] = keys[name]["code"]
    rows = evidence() | pending
    atomic_write(EVIDENCE, (json.dumps(rows, indent=1, sort_keys=True) + "\n").encode())


def rekey() -> None:
    """Give the present code's hash to the records of every kind that is proven."""
    keys, proof = asked(), evidence()
    good = {row["code"] for row in proof.values() if row["difference"] <= row["tolerance"]}
    bad = {row["code"] for row in proof.values() if row["difference"] > row["tolerance"]}
    for name in stale(keys):
        code = keys[name]["code"]
        if code not in good or code in bad:
            print(f"{name}: not proven")
            continue
        path = ROOT / "results" / name / "run.json"
        info = json.loads(path.read_text("utf-8"))
        info["key"]["code"] = code
        atomic_write(path, (json.dumps(info, indent=1, sort_keys=True) + "\n").encode())


def main(command: str = "", *names: str) -> None:
    if command == "remake":
        remake(names)
    elif command == "rekey":
        rekey()
    elif command:
        raise unknown("command", command, ("remake", "rekey"))
    else:
        keys = asked()
        changed = set(stale(keys))
        for code, members in kinds(keys).items():
            seconds = [(read(ROOT / "results" / n).info["wall_seconds"], n) for n in members]
            left = sum(name in changed for name in members)
            print(f"{code[:8]}: {len(members)} records, {left} stale; quickest {min(seconds)}")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except InputError as problem:
        sys.exit(f"error: {problem}")
