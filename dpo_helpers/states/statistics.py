"""Statistics of hidden states: distance between the classes, and their spread (§4.1)."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Geometry:
    """Statistics of n hidden states g (n, d) with labels ±1, in float64.

    n, d                  number of statements, dimension
    distinguishability    ‖μ̂₊ − μ̂₋‖
    delta                 Δ with d^Δ = ‖μ̂₊ − μ̂₋‖
    mean_norm             max ‖μ̂±‖
    cov_norm              max ‖Σ̂±‖, operator norm
    cov_trace             max Tr Σ̂±
    c_v, c_n              the least constants of Theorem 4.1's conditions:
                          ‖Σ̂±‖ ≤ c_v √d,  ‖μ̂±‖ + Tr(Σ̂±)^½ ≤ c_n √d
    lambda_max            λ, largest eigenvalue of (1/n) Σ g gᵀ
    """

    n: int
    d: int
    distinguishability: float
    delta: float
    mean_norm: float
    cov_norm: float
    cov_trace: float
    c_v: float
    c_n: float
    lambda_max: float

    def kappa(self, learning_rate: float, beta: float) -> float:
        """κ = ηβ²λ. Gradient descent contracts whatever the data iff κ ≤ 4."""
        return learning_rate * beta**2 * self.lambda_max


def geometry(g: np.ndarray, labels: np.ndarray) -> Geometry:
    """The statistics of hidden states ``g`` (n, d) with ``labels`` (n,) of ±1."""
    g = np.asarray(g, np.float64)
    n, d = g.shape
    means, norms, traces = {}, {}, {}
    for side in (1, -1):
        rows = g[labels == side]
        means[side] = rows.mean(0)
        centered = rows - means[side]
        norms[side] = np.linalg.norm(centered, 2) ** 2 / len(rows)
        traces[side] = (centered**2).sum() / len(rows)
    apart = float(np.linalg.norm(means[1] - means[-1]))
    spread = max(np.linalg.norm(means[s]) + np.sqrt(traces[s]) for s in (1, -1))
    return Geometry(
        n=n,
        d=d,
        distinguishability=apart,
        delta=float(np.log(apart) / np.log(d)),
        mean_norm=float(max(np.linalg.norm(m) for m in means.values())),
        cov_norm=float(max(norms.values())),
        cov_trace=float(max(traces.values())),
        c_v=float(max(norms.values()) / np.sqrt(d)),
        c_n=float(spread / np.sqrt(d)),
        lambda_max=float(np.linalg.norm(g, 2) ** 2 / n),
    )


def umap_2d(g: np.ndarray, seed: int = 0) -> np.ndarray:
    """UMAP coordinates (n, 2) of hidden states, with UMAP's defaults.

    They differ between operating systems even with the same seed. Measure in the original space.
    """
    import umap

    return umap.UMAP(random_state=seed, n_jobs=1).fit_transform(g).astype(np.float32)


def probe(g: np.ndarray, labels: np.ndarray, train: np.ndarray) -> tuple[float, float]:
    """Mean margin and accuracy of a linear probe on held-out statements.

    The probe is logistic regression on standardized states ``g`` (n, d), with scikit-learn's
    default penalty, fitted where ``train`` (n,) is True. A margin is the signed distance from its
    boundary; it is positive where the probe predicts the label of ±1.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    model.fit(g[train], labels[train])
    margin = labels[~train] * model.decision_function(g[~train])
    return float(margin.mean() / np.linalg.norm(model[-1].coef_)), float((margin > 0).mean())


def knn_label_agreement(g: np.ndarray, labels: np.ndarray, neighbors: int = 10) -> float:
    """Mean share of a statement's nearest neighbors, in the original space, with its own label."""
    from sklearn.neighbors import NearestNeighbors

    near = NearestNeighbors(n_neighbors=neighbors).fit(g).kneighbors(return_distance=False)
    return float((labels[near] == labels[:, None]).mean())
