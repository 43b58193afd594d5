"""Carry recorded runs over to changed code that computes the same numbers, and prove it.

    python -m workflow.carry                    list the kinds of records, and which are stale
    python -m workflow.carry remake NAME ...    make records again beside the stored ones; compare
    python -m workflow.carry compare OLD NEW    compare the smoke runs that the old and the new code
                                                made on one machine, in two folders
    python -m workflow.carry rekey              give the new key to every kind that is proven

A kind is all records that are made by the same code. It is proven by a record made again that
agrees with the stored one, or by a smoke run that the old and the new code made alike on one
machine. The evidence is kept in results/carried.json. Nothing of a record changes but the hash of
its code.
"""

import json
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from dpo_helpers.errors import InputError, unknown
from dpo_helpers.files import atomic_write
from experiments import CHAPTERS, record_hidden_states
from ledger.config import configure
from ledger.paths import ROOT
from ledger.record import Run, read
from ledger.store import RunStore

EVIDENCE = ROOT / "results" / "carried.json"
# Largest difference that counts as equal, relative to the largest value of an array: of a record
# made again, perhaps on another CPU, and of two runs on one machine with equally many threads.
TOLERANCE = {"remade": 1e-4, "compared": 1e-6}


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
            made(name, stored, {n: np.asarray(x) for n, x in make().items()})
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


def evidence() -> dict[str, dict]:
    """By run: how it was proven, with which code, and the largest difference."""
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

    def made(name: str, stored: Run, again: dict[str, np.ndarray]) -> None:
        worst = difference(stored.arrays, again)
        pending[name] = {"proof": "remade", "difference": worst}
        print(f"{name}: largest relative difference {worst:.2g}", flush=True)

    pending: dict[str, dict] = {}
    known = {
        str(p.parent.relative_to(ROOT / "results")) for p in (ROOT / "results").rglob("run.json")
    }
    for name in names:
        if name not in known:
            raise unknown("record", name, known)
    keys = asked(names, made)
    _keep({name: row | {"code": keys[name]["code"]} for name, row in pending.items()})


def compare(old: str, new: str) -> None:
    """Compare the runs in two folders, made by the old and by the new code; keep the evidence."""
    rows = {}
    for path in sorted(Path(new).rglob("run.json")):
        name, again = str(path.parent.relative_to(new)), read(path.parent)
        stored = read(Path(old) / name)
        if stored is None or stored.info["key"]["settings"] != again.info["key"]["settings"]:
            print(f"smoke/{name}: no old run with these settings")
            continue
        worst = difference(stored.arrays, again.arrays)
        row = {"proof": "compared", "difference": worst, "code": again.info["key"]["code"]}
        rows[f"smoke/{name}"] = row
        print(f"smoke/{name}: largest relative difference {worst:.2g}")
    _keep(rows)


def _keep(rows: Mapping[str, dict]) -> None:
    text = json.dumps(evidence() | dict(rows), indent=1, sort_keys=True) + "\n"
    atomic_write(EVIDENCE, text.encode())


def proven() -> set[str]:
    """The hashes of the code of all proven kinds."""
    rows = evidence().values()
    return {row["code"] for row in rows if row["difference"] <= TOLERANCE[row["proof"]]}


def rekey() -> None:
    """Give the present code's hash to the records of every kind that is proven."""
    keys, good = asked(), proven()
    for name in stale(keys):
        code = keys[name]["code"]
        if code not in good:
            print(f"{name}: not proven")
            continue
        path = ROOT / "results" / name / "run.json"
        info = json.loads(path.read_text("utf-8"))
        info["key"]["code"] = code
        atomic_write(path, (json.dumps(info, indent=1, sort_keys=True) + "\n").encode())


def main(command: str = "", *names: str) -> None:
    if command == "remake":
        remake(names)
    elif command == "compare":
        compare(*names)
    elif command == "rekey":
        rekey()
    elif command:
        raise unknown("command", command, ("remake", "compare", "rekey"))
    else:
        keys = asked()
        changed = set(stale(keys))
        for code, members in kinds(keys).items():
            seconds = [(read(ROOT / "results" / n).info["wall_seconds"], n) for n in members]
            left = f"{sum(name in changed for name in members)} stale"
            how = "proven" if code in proven() else "not proven"
            print(f"{code[:8]}: {len(members)} records, {left}, {how}; quickest {min(seconds)}")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except InputError as problem:
        sys.exit(f"error: {problem}")
