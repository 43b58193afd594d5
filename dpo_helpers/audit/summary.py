"""The results of an audit by group: strength, speed, competition, and suspicious labels."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd


@dataclass(frozen=True)
class Audit:
    """Inner products of the first gradients of N pairs.

    A group is divided into strata: the pairs that share the same two responses, if there are enough
    of them, and all others. M_s is the mean of G over stratum s. (In a group that prefers Yes as
    often as No, the difference between the two preferences is not noise.)

    names              of the groups
    group, stratum     (N,) int: the group and the stratum of each pair
    mirror             (strata,) int: the stratum of the same group and responses with the opposite
                       preference, −1 if there is none
    stratum_gram       (strata, strata) ⟨M_s, M_s'⟩
    pair_stratum       (N, strata) ⟨G_i, M_s⟩
    squared_norm       (N,) ‖G_i‖²
    gap                (N,) log π(chosen) − log π(rejected) before training, nats
    duplicate_of       (N,) int: the first pair with the same tokens, the pair itself if it is first
    contradicted_by    (N,) int: a pair with the same tokens and the opposite preference, or −1
    """

    names: tuple[str, ...]
    group: np.ndarray
    stratum: np.ndarray
    mirror: np.ndarray
    stratum_gram: np.ndarray
    pair_stratum: np.ndarray
    squared_norm: np.ndarray
    gap: np.ndarray
    duplicate_of: np.ndarray
    contradicted_by: np.ndarray

    @property
    def counts(self) -> np.ndarray:
        """(groups,) number of pairs in each group."""
        return np.bincount(self.group, minlength=len(self.names))

    @property
    def composition(self) -> np.ndarray:
        """(groups, strata) share of a group's pairs in each: M_a = Σ_s composition[a, s] M_s."""
        found = np.zeros((len(self.names), len(self.stratum_gram)))
        np.add.at(found, (self.group, self.stratum), 1)
        return found / self.counts[:, None]

    @property
    def means(self) -> np.ndarray:
        """(groups, groups) ⟨M_a, M_b⟩."""
        return self.composition @ self.stratum_gram @ self.composition.T

    @property
    def spread(self) -> np.ndarray:
        """(strata,) unbiased variance of G within each stratum; 0 for a single pair."""
        size = np.bincount(self.stratum)
        within = np.bincount(self.stratum, self.squared_norm) / size - self.stratum_gram.diagonal()
        return within * size / np.maximum(size - 1, 1)

    @property
    def signal_gram(self) -> np.ndarray:
        """(groups, groups) ⟨M_a, M_b⟩ with the noise on the diagonal subtracted, unbiased.

        The signal: what the pairs of a group have in common, and so do for a new pair of it.
        """
        noise = self.composition**2 @ (self.spread / np.bincount(self.stratum))
        return self.means - np.diag(noise)

    @property
    def others(self) -> np.ndarray:
        """(N,) ⟨G_i, M_a without pair i⟩, a the group of i: negative if i opposes the others."""
        return (self._left_out * self.composition[self.group]).sum(1)

    @property
    def leave_one_out_score(self) -> np.ndarray:
        """(N,) ``others`` without the component shared by all pairs of the same two responses.

        A step that raises Yes for every prompt helps all pairs that prefer Yes and hurts the
        others; within a group it cancels. For a stratum s with mirror s' this component of G is
        (M_s − M_s')/2. Once it is removed, a pair below zero would fit better with its label
        flipped.
        """
        rows, size = np.arange(len(self.squared_norm)), np.bincount(self.stratum)[self.stratum]
        strata = np.eye(len(self.mirror))
        common = np.where(self.mirror[:, None] < 0, 0, (strata - strata[self.mirror]) / 2)
        rest = (self.composition @ (strata - common))[self.group]
        # ⟨C_s, M_t without pair i⟩, C_s the shared component.
        left = (common @ self.stratum_gram)[self.stratum]
        along = (self.pair_stratum * common[self.stratum]).sum(1) - left[rows, self.stratum]
        left[rows, self.stratum] -= along / np.maximum(size - 1, 1)
        return ((self._left_out - left) * rest).sum(1)

    @property
    def _left_out(self) -> np.ndarray:
        """(N, strata) ⟨G_i, M_s without pair i⟩; 0 if the stratum has no other pair."""
        rows, size = np.arange(len(self.squared_norm)), np.bincount(self.stratum)[self.stratum]
        left = self.pair_stratum.copy()
        rest = size * left[rows, self.stratum] - self.squared_norm
        left[rows, self.stratum] = np.where(size > 1, rest / np.maximum(size - 1, 1), 0)
        return left

    def speeds(self, weights: Sequence[float] | None = None) -> np.ndarray:
        """(groups,) predicted growth of the gap of a new pair of each group, nats per ηβ/2.

        In a mixture with group ``weights``, by default the groups' shares of the pairs.
        """
        return self.signal_gram @ self._weights(weights)

    def errors(self, weights: Sequence[float] | None = None) -> np.ndarray:
        """(groups,) standard errors of ``speeds`` over random samples of pairs.

        Computed from each pair's contribution, without its product with itself. Too large by √2 if
        a group has no signal at all.
        """
        rows, size = np.arange(len(self.squared_norm)), np.bincount(self.stratum)
        inside = self.pair_stratum[rows, self.stratum]
        # ‖G_i − M_s‖² and ⟨G_i − M_s, M_t⟩
        alone = self.squared_norm - 2 * inside + self.stratum_gram.diagonal()[self.stratum]
        apart = self.pair_stratum - self.stratum_gram[self.stratum]
        apart[rows, self.stratum] -= alone / np.maximum(size - 1, 1)[self.stratum]
        mixture = self._weights(weights) @ self.composition
        found = []
        for group in self.composition:
            adds = group[self.stratum] * (apart @ mixture) + mixture[self.stratum] * (apart @ group)
            mean = np.bincount(self.stratum, adds) / size
            square = np.bincount(self.stratum, (adds - mean[self.stratum]) ** 2)
            found.append(np.sqrt((square / np.maximum(size - 1, 1) / size).sum()))
        return np.array(found)

    def _weights(self, weights: Sequence[float] | None) -> np.ndarray:
        return self.counts / len(self.group) if weights is None else np.asarray(weights)

    @property
    def first_update(self) -> np.ndarray:
        """(groups,) share of each group in the first update: (n_a/N) ⟨M_a, M⟩ / ‖M‖², sums to 1."""
        weights = self.counts / len(self.group)
        towards = weights * (self.means @ weights)
        return towards / towards.sum()

    def flip_fraction(self) -> np.ndarray:
        """(groups, 2) smallest share of flipped pairs that stops a group from being learned.

        At the first step, trained alone and in the mixture. The most helpful pairs are flipped
        first. inf if no share is enough.
        """
        weights, means = self.counts / len(self.group), self.means
        pull = (self.pair_stratum * self.composition[self.group]).sum(1)
        found = np.full((len(self.names), 2), np.inf)
        for a, n in enumerate(self.counts):
            # Flipping pair i takes 2 ⟨G_i, M_a⟩/n off ‖M_a‖².
            lost = 2 * np.cumsum(np.sort(pull[self.group == a])[::-1]) / n
            for kind, goal in enumerate((means[a, a], means[a] @ weights / weights[a])):
                enough = np.flatnonzero(lost >= goal)
                if goal <= 0:
                    found[a, kind] = 0
                elif len(enough):
                    found[a, kind] = (enough[0] + 1) / n
        return found


# The columns of ``table``, and what they mean.
TERMS = {
    "pairs": "Number of pairs.",
    "base gap": "Mean log π(chosen) − log π(rejected) before training, nats.",
    "already right": "Share of pairs whose gap is above zero before training.",
    "strength": "Norm of the gradient shared by all pairs of the group, noise subtracted: the "
    "signal. For one-token responses it is ‖b̂‖ / √2.",
    "coherence": "Squared strength divided by squared strength plus the variance of single pairs: "
    "1 if all pairs have the same gradient, 0 if they share nothing.",
    "first update": "Share of the group in the first step of training on all groups.",
    "speed": "Predicted initial growth of the gap of a new pair of this group, trained on all "
    "groups. Negative: the other groups undo it.",
    "its error": "Standard error of the speed over random samples of pairs. A speed below two "
    "standard errors is indistinguishable from zero.",
    "speed alone": "The speed if only this group is trained on.",
    "error alone": "Its standard error.",
    "against": "Share of pairs whose gradient opposes the mean gradient of the rest of their "
    "group, apart from what all pairs with the same responses share. Mislabeled pairs do this, and "
    "rare ones.",
    "undone by": "Smallest share of the group's pairs that, if their labels are flipped, stops the "
    "group from being learned at the first step, trained alone.",
    "undone in the mixture": "The same, trained on all groups. inf: no share is enough, because "
    "the other groups teach it too.",
}


def table(found: Audit) -> pd.DataFrame:
    """``TERMS`` of each group, one row per group."""
    n, shared = found.counts, found.signal_gram
    signal = np.maximum(shared.diagonal(), 0)

    def mean(values: np.ndarray) -> np.ndarray:
        return np.bincount(found.group, values, len(n)) / n

    columns = (
        n,
        mean(found.gap),
        mean(found.gap > 0),
        np.sqrt(signal),
        signal / (signal + found.composition @ found.spread),
        found.first_update,
        found.speeds(),
        found.errors(),
        shared.diagonal(),
        [found.errors(alone)[a] for a, alone in enumerate(np.eye(len(n)))],
        mean(found.leave_one_out_score < 0),
        *found.flip_fraction().T,
    )
    return pd.DataFrame(dict(zip(TERMS, columns, strict=True)), index=list(found.names))


def cosines(found: Audit) -> pd.DataFrame:
    """Cosines of the groups' gradients, noise subtracted; NaN if a group has no signal."""
    shared = found.signal_gram
    with np.errstate(invalid="ignore", divide="ignore"):
        length = np.sqrt(np.where(shared.diagonal() > 0, shared.diagonal(), np.nan))
        values = np.clip(shared / np.outer(length, length), -1, 1)
    return pd.DataFrame(values, list(found.names), list(found.names))
