"""Recorded runs: replay one when its key matches, else make it and record it.

The key of a run is its settings, the hashes of what went in, and the hash of the code that makes
it (``ledger.keys``). No other module writes under ``results/``.
"""

import dataclasses
import fnmatch
import functools
import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from filelock import FileLock

from dpo_helpers import data, lm
from dpo_helpers.errors import InputError
from dpo_helpers.files import content_keyed
from dpo_helpers.states import Geometry, geometry, hidden_states

from . import provenance
from .config import Config, is_default
from .keys import code_sha256
from .paths import ROOT
from .record import Run, read, write

__all__ = ["ROOT", "Run", "RunStore", "States"]


@dataclass(frozen=True)
class States:
    """Hidden states of one behavior, kept in float16.

    behavior   its name
    g          (n, d) float64, float16 values
    labels     (n,) ±1
    train      (n,) bool, the paper's split
    rows       (2, d) W_U[Yes], W_U[No]
    """

    behavior: str
    g: np.ndarray
    labels: np.ndarray
    train: np.ndarray
    rows: np.ndarray
    sha256: str

    @property
    def boundary(self) -> np.ndarray:
        """W_B = W_U[Yes] − W_U[No], (d,)."""
        return self.rows[0] - self.rows[1]

    @functools.cached_property
    def geometry(self) -> Geometry:
        """The statistics of all statements."""
        return geometry(self.g, self.labels)


@content_keyed
class RunStore:
    """The store of one configuration's runs.

    The book tier's own runs stand under ``results/``; other tiers, and what a
    reader varies, are written under ``build/runs/``, so that play overwrites
    nothing. Whatever still holds after a change, such as the hidden states
    under another learning rate, is replayed from where it stands.
    """

    def __init__(self, config: Config, results: Path | None = None) -> None:
        self.config = config
        book, tiers = ROOT / "results", ROOT / "build" / "runs"
        home = book if config.tier == "book" else tiers / config.tier
        varied = _digest(dataclasses.asdict(config))[:8]
        self.root = home if is_default(config) else tiers / f"{config.tier}-{varied}"
        self.roots = list(dict.fromkeys((self.root, home, book)))
        if results is not None:
            self.root, self.roots = results, [results]
        self.used: dict[str, Run] = {}
        self._model: lm.Model | None = None
        self._states: dict[str, States] = {}

    def replay_or_run(
        self,
        name: str,
        settings: Mapping[str, object],
        inputs: Mapping[str, str | None],
        make: Callable[[], Mapping[str, np.ndarray]],
    ) -> Run:
        """Replay the run ``name`` if its key matches, else ``make`` and record it.

        ``inputs`` maps what went in to its hash, None where it is not available: then the record's
        own hash is trusted and named in ``missing``. A record that does not match and cannot be
        made again is replayed, marked stale. So is, where $DPO_REPLAY is set, one that differs in
        its code alone.

        Raises InputError when there is no record and it cannot be made.
        """
        key = self.key(settings, inputs, make)
        missing = tuple(what for what, sha256 in inputs.items() if sha256 is None)
        differs, record = self._nearest(name, key)
        if record and not differs:
            run = dataclasses.replace(record, name=name, missing=missing)
        else:
            try:
                if missing:
                    raise _not_available(name, missing)
                if record and differs == ["code"] and os.environ.get("DPO_REPLAY"):
                    raise InputError("DPO_REPLAY is set")
                run = self._made(name, key, make)
            except InputError as problem:
                if not record or "settings" in differs:
                    raise
                changed = " and ".join(differs)
                stale = f"{changed} changed since, and it cannot be made again ({problem})"
                run = dataclasses.replace(record, name=name, stale=stale, missing=missing)
        self.used[name] = run
        return run

    def _nearest(self, name: str, key: Mapping) -> tuple[list[str], Run | None]:
        """The record of that name that differs least from a key, and in what."""
        found = [(_differs(record.info["key"], key), record) for record in self.find(name)]
        return min(
            found, key=lambda pair: ("settings" in pair[0], len(pair[0])), default=([], None)
        )

    def _made(self, name: str, key: Mapping, make: Callable[[], Mapping[str, np.ndarray]]) -> Run:
        with _alone(key):
            start = time.monotonic()
            arrays = make()
            seconds = time.monotonic() - start
        info = {"key": key, "device": provenance.device(self.config.device)}
        info |= {"wall_seconds": round(seconds, 1), **provenance.commit_and_date()}
        write(self.root / name, arrays, info)
        return dataclasses.replace(read(self.root / name), name=name)

    def key(self, settings: Mapping, inputs: Mapping, make: Callable) -> dict[str, object]:
        """What decides a run: its settings, the hashes of its inputs, the hash of its code."""
        code = code_sha256(make, RunStore)
        return {"settings": _plain(settings), "inputs": dict(inputs), "code": code}

    @property
    def model_slug(self) -> str:
        """The model's name as a folder's."""
        return self.config.model.strip("/").replace("/", "--")

    def find(self, name: str) -> list[Run]:
        """The records of that name, this configuration's own first."""
        records = (read(root / name) for root in self.roots)
        return [record for record in records if record]

    def holds(
        self,
        name: str,
        settings: Mapping[str, object],
        inputs: Mapping[str, str | None],
        make: Callable[[], Mapping[str, np.ndarray]],
    ) -> bool:
        """Whether a record of that name matches, as far as its inputs are available."""
        key = self.key(settings, inputs, make)
        return any(not _differs(record.info["key"], key) for record in self.find(name))

    def recorded(self, name: str) -> Run | None:
        """The run of that name: the one used last here, else the one on disk, whatever its key."""
        return self.used.get(name) or next(iter(self.find(name)), None)

    def matching(self, pattern: str) -> list[Run]:
        """The runs whose name matches, as in a shell: used here, else the first on disk."""
        used = [run for name, run in self.used.items() if fnmatch.fnmatch(name, pattern)]
        if used:
            return used
        folders = (path.parent for root in self.roots for path in root.glob(f"{pattern}/run.json"))
        return [read(folder) for folder in islice(folders, 1)]

    def states(self, behavior: str) -> States:
        """The hidden states of a behavior under the configuration's model, looked up once.

        Raises InputError as ``data.load_behavior`` and ``lm.load`` do.
        """
        if behavior in self._states:
            return self._states[behavior]

        def measure(statements: data.Behavior) -> dict[str, np.ndarray]:
            model = self.model()
            g = hidden_states(model, statements.prompts(self.config.newline))
            return {
                "g": g.astype(np.float16),
                "labels": statements.labels,
                "rows": model.unembedding_rows().numpy(),
            }

        run = self.of_behavior("hidden", behavior, measure)
        g = run.arrays["g"].astype(np.float64)
        train = np.zeros(len(g), bool)
        train[data.split(len(g))[0]] = True
        found = self._states[behavior] = States(
            behavior=behavior,
            g=g,
            labels=run.arrays["labels"],
            train=train,
            rows=run.arrays["rows"].astype(np.float64),
            sha256=_digest([run.sha256, train.tolist()]),
        )
        return found

    def of_behavior(
        self,
        kind: str,
        behavior: str,
        measure: Callable[[data.Behavior], Mapping[str, np.ndarray]],
    ) -> Run:
        """The run KIND/MODEL/BEHAVIOR: what ``measure`` makes of a behavior under the model.

        Raises InputError as ``data.load_behavior`` and ``lm.load`` do.
        """
        config = self.config
        data.checked_name(behavior, "behavior")
        name = f"{kind}/{self.model_slug}/{behavior}"
        settings = {"model": config.model, "behavior": behavior}
        settings |= {"newline": config.newline, "dtype": config.dtype}
        new = not self.find(name)
        inputs = {"data": None, "model": self.weights_sha256(needed=new)}
        statements = None

        def make() -> Mapping[str, np.ndarray]:
            return measure(statements)

        if data.at_hand(config.data) or not self.holds(name, settings, inputs, make):
            try:
                statements = data.load_behavior(behavior, config.data)
                inputs["data"] = statements.sha256
            except InputError:
                if new or data.at_hand(config.data):
                    raise
        return self.replay_or_run(name, settings, inputs, make)

    def model(self) -> lm.Model:
        """The configuration's model, loaded once."""
        if self._model is None:
            self._model = lm.load(self.config.model, self.config.device, self.config.dtype)
        return self._model

    def weights_sha256(self, needed: bool) -> str | None:
        """The hash of the model's weights; None if they are unavailable and not ``needed``.

        Raises InputError if they are needed and unavailable.
        """
        try:
            return lm.weights_sha256(self.config.model)
        except InputError:
            if needed:
                raise
            return None

    def header(self, kind: str = "persona") -> str:
        """The machine, the model and the data of a ``kind``, in Markdown: the top of a page."""
        return provenance.header(self.config, kind)

    def provenance(self) -> str:
        """One line of Markdown: where the numbers shown so far come from."""
        return provenance.line(list(self.used.values()), self.config)


def _not_available(name: str, missing: tuple[str, ...]) -> InputError:
    remedy = "; set DPO_DATA_DIR to a copy of the data" * (missing != ("model",))
    return InputError(
        f"run {name}: not recorded with these settings, and {' and '.join(missing)} not available "
        f"to make it{remedy}"
    )


def _alone(key: Mapping[str, object]) -> FileLock:
    """Held while a run is made: two at once would write into one folder of checkpoints."""
    folder = lm.cache_dir() / "locks"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be made ({error.strerror}); set DPO_CACHE_DIR to another folder"
        ) from None
    return FileLock(folder / f"{_digest(key)[:16]}.lock")


def _differs(recorded: Mapping, key: Mapping) -> list[str]:
    """The parts of the key in which a record differs; an unknown input differs from nothing."""
    parts = [part for part in ("settings", "code") if recorded[part] != key[part]]
    if set(recorded["inputs"]) != set(key["inputs"]):
        return [*parts, "inputs"]
    return parts + [
        what
        for what, sha256 in key["inputs"].items()
        if sha256 is not None and recorded["inputs"][what] != sha256
    ]


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _plain(value: object) -> dict:
    return json.loads(json.dumps(value))
