"""Outlines of hidden states: what is kept of many behaviors, or of another model."""

from collections.abc import Callable
from dataclasses import astuple, dataclass, replace
from functools import partial

import numpy as np

from dpo_helpers import data, lm, mixtures
from dpo_helpers.states import Geometry
from ledger.store import RunStore, States

from . import distributional_changes


@dataclass(frozen=True)
class Outline:
    """What is kept of the hidden states of one behavior, in place of ``ledger.store.States``.

    geometry   statistics of all statements
    b          (d,) μ̂₊ − μ̂₋ of the training statements
    along      (2,) ``distributional_changes.along`` of all statements
    whole      returns the states themselves, from the cache or measured
    """

    behavior: str
    labels: np.ndarray
    train: np.ndarray
    rows: np.ndarray
    sha256: str
    geometry: Geometry
    b: np.ndarray
    along: np.ndarray
    whole: Callable[[], States]

    boundary = States.boundary

    @property
    def g(self) -> np.ndarray:
        """(n, d). Raises InputError if they are not cached, and model or data not available."""
        return self.whole().g


class Outlined(RunStore):
    """A store that keeps outlines of hidden states only; the states themselves are in the cache.

    It shares the folders of ``records``, and their configuration but for ``changes``.
    """

    def __init__(self, records: RunStore, **changes: object) -> None:
        super().__init__(replace(records.config, **changes))
        self.root, self.roots, self.used = records.root, records.roots, records.used

    def states(self, behavior: str) -> Outline:
        """The outline of a behavior's hidden states.

        Raises InputError as ``data.load_behavior`` and ``lm.load`` do.
        """
        whole = partial(RunStore(self.config, lm.cache_dir() / "runs").states, behavior)

        def measure(_: data.Behavior) -> dict[str, np.ndarray]:
            s = whole()
            g, labels = s.g[s.train], s.labels[s.train]
            (b,) = mixtures.mean_differences(g, labels, np.zeros(len(g), int))
            return {
                "labels": s.labels,
                "rows": s.rows.astype(np.float32),
                "geometry": np.array(astuple(s.geometry)),
                "b": b.astype(np.float32),
                "along": np.array(distributional_changes.along(s.g, s.labels)),
            }

        run = self.of_behavior("outline", behavior, measure)
        n, d, *rest = run.arrays["geometry"].tolist()
        return Outline(
            behavior=behavior,
            labels=run.arrays["labels"],
            train=np.isin(np.arange(int(n)), data.split(int(n))[0]),
            rows=run.arrays["rows"].astype(np.float64),
            sha256=run.sha256,
            geometry=Geometry(int(n), int(d), *rest),
            b=run.arrays["b"].astype(np.float64),
            along=run.arrays["along"],
            whole=whole,
        )
