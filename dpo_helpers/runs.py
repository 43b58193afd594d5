"""Recorded runs: replay one when its key matches, else make it and record it.

A run is a folder with ``run.json`` (key, provenance) and one ``.npz`` of arrays.
Its key is the settings, the hashes of what went in, and the hash of the code
that made it. No other module writes under ``results/``.
"""

import ast
import contextlib
import dataclasses
import datetime
import fnmatch
import functools
import hashlib
import io
import json
import os
import platform
import subprocess
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from filelock import FileLock

from . import data, models
from .config import Config, is_default
from .errors import InputError
from .geometry import Geometry, geometry
from .hidden import hidden_states

# Where results/ and notebooks/ stand: beside the package, or where $DPO_ROOT says.
_DAMAGED = (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile, zlib.error)
ROOT = Path(os.environ.get("DPO_ROOT") or Path(__file__).resolve().parents[1])


@dataclass(frozen=True)
class Run:
    """A run as replayed or just made.

    name     its name under the store
    arrays   what it measured
    info     ``run.json``: key, commit, device, date, wall_seconds
    stale    why its key does not match what is here; empty if it does
    missing  what its key could not be checked against, for lack of it
    """

    name: str
    arrays: dict[str, np.ndarray]
    info: dict
    stale: str = ""
    missing: tuple[str, ...] = ()

    @property
    def sha256(self) -> str:
        """Of the arrays' content."""
        return self.info["sha256"]


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


class Records:
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
        fingerprint = _digest(dataclasses.asdict(config))[:8]
        self.root = home if is_default(config) else tiers / f"{config.tier}-{fingerprint}"
        self.roots = list(dict.fromkeys((self.root, home, book)))
        if results is not None:
            self.root, self.roots = results, [results]
        self.used: dict[str, Run] = {}
        self._model: models.Model | None = None
        self._states: dict[str, States] = {}

    def get(
        self,
        name: str,
        settings: Mapping[str, object],
        inputs: Mapping[str, str | None],
        code: tuple[str, ...],
        make: Callable[[], Mapping[str, np.ndarray]],
    ) -> Run:
        """Replay the run ``name`` if its key matches, else ``make`` and record it.

        ``inputs`` maps what went in to its hash, None where it is not at hand:
        then the record's own hash is taken on trust and named in ``missing``.
        ``code`` names what decides the numbers: modules, or module.function. A record that does
        not match and cannot be made again is replayed, marked stale.

        Raises InputError when there is no record and it cannot be made.
        """
        key = {"settings": _plain(settings), "inputs": dict(inputs), "code": code_hash(code)}
        missing = tuple(what for what, sha256 in inputs.items() if sha256 is None)
        found = [(_differs(record.info["key"], key), record) for record in self.find(name)]
        differs, record = min(
            found, key=lambda pair: ("settings" in pair[0], len(pair[0])), default=([], None)
        )
        if record and not differs:
            run = dataclasses.replace(record, name=name, missing=missing)
        else:
            try:
                if missing:
                    remedy = "; set DPO_DATA_DIR to a copy of the data" * (missing != ("model",))
                    raise InputError(
                        f"run {name}: not recorded as asked for, and {' and '.join(missing)} not "
                        f"at hand to make it{remedy}"
                    )
                with _alone(key):
                    start = time.monotonic()
                    arrays = make()
                    seconds = time.monotonic() - start
            except InputError as problem:
                if not record or "settings" in differs:
                    raise
                stale = (
                    f"{' and '.join(differs)} changed since, and it cannot be redone ({problem})"
                )
                run = dataclasses.replace(record, name=name, stale=stale, missing=missing)
            else:
                info = {"key": key, "device": _device(self.config.device)}
                info |= {"wall_seconds": round(seconds, 1), **_provenance()}
                write(self.root / name, arrays, info)
                run = dataclasses.replace(read(self.root / name), name=name)
        self.used[name] = run
        return run

    def find(self, name: str) -> list[Run]:
        """The records of that name, this configuration's own first."""
        records = (read(root / name) for root in self.roots)
        return [record for record in records if record]

    def holds(
        self,
        name: str,
        settings: Mapping[str, object],
        inputs: Mapping[str, str | None],
        code: tuple[str, ...],
    ) -> bool:
        """Whether a record of that name matches, as far as can be told from here."""
        key = {"settings": _plain(settings), "inputs": dict(inputs), "code": code_hash(code)}
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

        Raises InputError as ``data.load_behavior`` and ``models.load`` do.
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

        run = self.of_behavior("hidden", behavior, ("tree", "hidden"), measure)
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
        code: tuple[str, ...],
        measure: Callable[[data.Behavior], Mapping[str, np.ndarray]],
    ) -> Run:
        """The run KIND/MODEL/BEHAVIOR: what ``measure`` makes of a behavior under the model.

        Raises InputError as ``data.load_behavior`` and ``models.load`` do.
        """
        config = self.config
        data.checked(behavior, "behavior")
        name = f"{kind}/{config.model.strip('/').replace('/', '--')}/{behavior}"
        settings = {"model": config.model, "behavior": behavior}
        settings |= {"newline": config.newline, "dtype": config.dtype}
        new = not self.find(name)
        inputs = {"data": None, "model": self.weights(needed=new)}
        statements = None
        if data.at_hand(config.data) or not self.holds(name, settings, inputs, code):
            try:
                statements = data.load_behavior(behavior, config.data)
                inputs["data"] = statements.sha256
            except InputError:
                if new or data.at_hand(config.data):
                    raise
        return self.get(name, settings, inputs, code, lambda: measure(statements))

    def model(self) -> models.Model:
        """The configuration's model, loaded once."""
        if self._model is None:
            self._model = models.load(self.config.model, self.config.device, self.config.dtype)
        return self._model

    def weights(self, needed: bool) -> str | None:
        """The hash of the model's weights; where they are not at hand nor ``needed``, None.

        Raises InputError where they are needed and not at hand.
        """
        try:
            return models.weights_sha256(self.config.model)
        except InputError:
            if needed:
                raise
            return None

    def header(self, kind: str = "persona") -> str:
        """The machine, the model and the data of a ``kind``, in Markdown: the top of a page.

        With "persona" its behaviors. Recorded runs are replayed where the data is not at hand.
        """
        import torch

        config = self.config
        try:
            where, here = data.source(config.data, kind), data.at_hand(config.data, kind)
        except InputError as problem:
            where, here = str(problem), False
        rows = {
            "tier": config.tier,
            "machine": f"{_device(config.device)}, Python {platform.python_version()}, "
            f"torch {torch.__version__.split('+')[0]}",
            "model": f"{models.describe(config.model)} {models.whereabouts(config.model)}",
            "data": where + ("" if here else "; not here, recorded runs are replayed"),
        }
        if kind == "persona":
            rows["behaviors"] = ", ".join(config.behaviors)
        return "\n".join(f"- **{name}:** {value}" for name, value in rows.items())

    def provenance(self) -> str:
        """One line of Markdown: where the numbers shown so far come from."""
        runs = list(self.used.values())

        def every(key: str) -> str:
            return ", ".join(sorted({str(run.info[key]) for run in runs}))

        keys = [run.info["key"] for run in runs]
        names = {key["settings"].get("model", self.config.model) for key in keys}
        sets = sorted({"HH-RLHF" if "HH-RLHF" in key["inputs"] else "Persona" for key in keys})
        parts = [
            f"{len(runs)} recorded runs",
            f"commit {every('commit')}",
            f"model {', '.join(sorted(names))}",
            f"data: {'embedded sample' if self.config.data == 'sample' else ', '.join(sets)}",
            every("device"),
            every("date"),
            f"{sum(run.info['wall_seconds'] for run in runs):.0f} s",
        ]
        stale = [f"{run.name}: {run.stale}" for run in runs if run.stale]
        if stale:
            parts.append("**stale**: " + "; ".join(stale))
        return "*Provenance:* " + " · ".join(parts)


def _alone(key: Mapping[str, object]) -> FileLock:
    """Held while a run is made: two at once would write into one folder of checkpoints."""
    folder = models.cache_dir() / "locks"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be made ({error.strerror}); set DPO_CACHE_DIR to another folder"
        ) from None
    return FileLock(folder / f"{_digest(key)[:16]}.lock")


@functools.cache
def code_hash(names: tuple[str, ...]) -> str:
    """Hash of what modules of this package, or functions of them (``module.function``), do.

    Of their code, that is, without comments and docstrings.
    """
    text = []
    for name in names:
        path, function = Path(__file__).parent / name.replace(".", "/"), ""
        if not path.with_suffix(".py").exists():
            path, function = path.parent, path.name
        tree = ast.parse(path.with_suffix(".py").read_text("utf-8"))
        if function:
            parts = [part for part in tree.body if getattr(part, "name", None) == function]
            if not parts:
                raise ValueError(f"{path.name}.py has no {function}")
            tree = ast.Module(body=parts, type_ignores=[])
        for node in ast.walk(tree):
            documented = ast.Module | ast.ClassDef | ast.FunctionDef
            if isinstance(node, documented) and ast.get_docstring(node, clean=False) is not None:
                node.body[0].value.value = ""
        text.append(ast.unparse(tree))
    return _digest(text)


def read(folder: Path) -> Run | None:
    """The run recorded in ``folder``, or None.

    Raises InputError if the record is damaged.
    """
    try:
        info = json.loads((folder / "run.json").read_text("utf-8"))
        blob = (folder / info["arrays"]).read_bytes()
        if not isinstance(info["key"], dict):
            raise ValueError("its key is none")
        if hashlib.sha256(blob).hexdigest() != info["file_sha256"]:
            raise ValueError("its arrays are not those recorded")
        with np.load(io.BytesIO(blob), allow_pickle=False) as arrays:
            return Run(folder.name, dict(arrays), info)
    except FileNotFoundError:
        return None
    except _DAMAGED as error:
        raise InputError(
            f"{folder}: damaged record ({error}); delete the folder, the next run makes it again"
        ) from None


def write(folder: Path, arrays: Mapping[str, np.ndarray], info: Mapping[str, object]) -> None:
    """Record a run: its arrays first, then ``run.json`` in one move, so that a kill loses nothing.

    Raises InputError if the disk is full or the folder cannot be written.
    """
    blob = io.BytesIO()
    np.savez_compressed(blob, **arrays)
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype} {array.shape} ".encode() + array.tobytes())
    file_sha256 = hashlib.sha256(blob.getvalue()).hexdigest()
    file = f"arrays-{file_sha256[:8]}.npz"
    shapes = {name: [str(a.dtype), list(a.shape)] for name, a in sorted(arrays.items())}
    info = {**info, "arrays": file, "shapes": shapes}
    info |= {"sha256": digest.hexdigest(), "file_sha256": file_sha256}
    text = json.dumps(info, indent=1, sort_keys=True) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(".*"):  # by a write that was killed
            left.unlink(missing_ok=True)
        new = not (folder / file).exists()
        replace(folder / file, blob.getvalue())
        try:
            replace(folder / "run.json", text.encode())
        except BaseException:
            if new:
                (folder / file).unlink()
            raise
        for other in folder.glob("arrays-*.npz"):
            if other.name != file:
                other.unlink()
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be written ({error.strerror or error}); free some space, the run "
            "was not recorded"
        ) from None


def replace(path: Path, content: bytes) -> None:
    """Write beside ``path``, then move there: the old file stays until the new one is whole."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


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


def _device(device: str) -> str:
    import torch

    kind = models.resolve_device(device)
    if kind.startswith("cuda"):
        return torch.cuda.get_device_name(kind)
    return f"{kind.upper()}, {torch.get_num_threads()} threads"


def _provenance() -> dict[str, str]:
    """Commit (``+`` where the code had changed since), and date."""

    def git(*arguments: str) -> str:
        try:
            command = ["git", "-C", str(ROOT), *arguments]
            return subprocess.run(command, capture_output=True, text=True).stdout.strip()
        except OSError:  # no git here
            return ""

    changed = git("status", "--porcelain", "--", "dpo_helpers", "notebooks/*.py")
    commit = git("rev-parse", "--short=10", "HEAD") or "unknown"
    return {
        "commit": commit + "+" * bool(changed),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
    }
